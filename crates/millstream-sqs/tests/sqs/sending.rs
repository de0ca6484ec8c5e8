//! The sink: what a call takes, and what SQS says of each message.

use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Delivered, Outgoing};

use crate::bench::{Bench, Reader, payloads};

const SEND: &str = "SendMessageBatch";

#[tokio::test]
async fn messages_go_ten_to_a_call() {
    let bench = Bench::standard().await;
    bench.publish_numbered(25).await;
    assert_eq!((bench.proxy.calls(SEND), bench.proxy.entries(SEND)), (3, 25));
    assert_eq!(bench.counts().await, (25, 0));
}

#[tokio::test]
async fn calls_are_no_larger_than_sqs_takes_and_a_message_that_is_is_refused_alone() {
    let bench = Bench::standard().await;
    let sizes = [100_000, 100_000, 100_000, 300_000, 10];
    let messages = sizes.map(|size| Outgoing::new(vec![b'x'; size]));
    let results = bench.send(&messages).await;
    let refused = |result: &Delivered| matches!(result, Delivered::Refused(why) if why.contains("TooLong"));
    assert!(refused(&results[3]), "{results:?}");
    for index in [0, 1, 2, 4] {
        assert_eq!(results[index], Delivered::Confirmed);
    }
    // A call takes 256 KiB here, so there are 200 000, 100 000, 300 000 and 10 bytes in one.
    assert_eq!(bench.proxy.calls(SEND), 4);
}

#[tokio::test]
async fn a_message_that_fails_in_a_batch_fails_alone() {
    let bench = Bench::standard().await;
    bench.proxy.fail_entries(SEND, 1);
    let results = bench.send(&["one", "two"].map(Outgoing::new)).await;
    assert!(
        matches!(&results[0], Delivered::Failed(why) if why.contains("as planned")),
        "{results:?}"
    );
    assert_eq!(results[1], Delivered::Confirmed);
}

#[tokio::test]
async fn p3_after_a_message_that_failed_nothing_more_is_sent_in_order() {
    let bench = Bench::fifo().await;
    bench.proxy.fail_entries(SEND, 10);
    let messages: Vec<_> = (0..15)
        .map(|number| Outgoing::new(number.to_string()).with_key("k"))
        .collect();
    let results = bench.send(&messages).await;
    assert!(
        results
            .iter()
            .all(|result| matches!(result, Delivered::Failed(_))),
        "{results:?}"
    );
    assert_eq!(bench.counts().await, (0, 0));
}

#[tokio::test]
async fn a_queue_that_cannot_be_reached_fails_what_was_to_be_sent() {
    let bench = Bench::standard().await;
    let mut sink = millstream_core::SinkConnector::open(&bench.sink()).await.unwrap();
    bench.proxy.cut();
    let mut results = Vec::new();
    let sent = millstream_core::Sink::send(&mut sink, &[Outgoing::new("one")], &mut results).await;
    assert!(
        sent.is_ok() && matches!(results[..], [Delivered::Failed(_)]),
        "{results:?}"
    );
}

#[tokio::test]
async fn a_message_is_delayed_by_as_long_as_sqs_can() {
    let bench = Bench::standard().await;
    let delayed = |seconds| Outgoing {
        delay: Duration::from_secs(seconds),
        ..Outgoing::new("later")
    };
    let began = rt::now();
    let results = bench.send(&[delayed(2), delayed(901)]).await;
    assert_eq!(results[0], Delivered::Confirmed);
    assert!(
        matches!(&results[1], Delivered::Refused(why) if why.contains("900s")),
        "{results:?}"
    );
    bench.open().await.collect(1).await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    let fifo = Bench::fifo().await;
    let results = fifo.send(&[delayed(2)]).await;
    assert!(
        matches!(&results[0], Delivered::Refused(why) if why.contains("FIFO")),
        "{results:?}"
    );
}

#[tokio::test]
async fn keys_headers_and_bytes_of_any_kind_arrive() {
    for bench in [Bench::standard().await, Bench::fifo().await] {
        let mut odd = Outgoing::new(vec![0, 255, 10]).with_key(vec![1, 2, 3]);
        for number in 0..15 {
            odd.headers.push(&format!("name {number}"), "\u{1}");
        }
        let empty = Outgoing::new("").with_key("two words");
        bench.publish(&[odd.clone(), empty.clone()]).await;
        let mut reader = Reader::open(&bench.connector()).await;
        let mut read = reader.collect(2).await;
        read.sort_by_key(|(_, message)| std::cmp::Reverse(message.payload.len()));
        assert_eq!(payloads(&read), [odd.payload, empty.payload]);
        assert_eq!((&read[0].1.key, &read[0].1.headers), (&odd.key, &odd.headers));
        assert_eq!((&read[1].1.key, &read[1].1.headers), (&empty.key, &empty.headers));
    }
}
