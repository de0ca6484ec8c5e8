//! Polls: how many there are, and that none is broken off.

use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Chunk, Credit, Outgoing, Read, Source as _};

use crate::bench::{Bench, payloads, soon};

const RECEIVE: &str = "ReceiveMessage";
const HIDE: &str = "ChangeMessageVisibilityBatch";

#[tokio::test]
async fn p4_a_queue_with_more_than_the_demand_is_read_within_it() {
    let bench = Bench::standard().await;
    bench.publish_numbered(60).await;
    let mut reader = bench.open().await;
    let mut read = Vec::new();
    while read.len() < 60 {
        let some = reader.read(7).await;
        assert!(some.len() <= 7);
        read.extend(some);
    }
    let mut numbers: Vec<usize> = payloads(&read)
        .iter()
        .map(|payload| std::str::from_utf8(payload).unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..60).collect::<Vec<_>>());
    reader.ack(&read).await;
    bench.empties().await;
}

#[tokio::test]
async fn p4_a_read_ends_with_the_message_that_exceeds_its_bytes() {
    let bench = Bench::standard().await;
    let messages: Vec<_> = (0..5).map(|_| Outgoing::new(vec![b'x'; 1000])).collect();
    bench.publish(&messages).await;
    let mut reader = bench.open().await;
    let mut read = 0;
    while read < 5 {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages: 10,
            bytes: 1500,
        };
        soon("a read", reader.source.read(credit, &mut chunk))
            .await
            .unwrap();
        assert!(chunk.len() <= 2, "{} messages came", chunk.len());
        read += chunk.len();
    }
}

#[tokio::test]
async fn an_empty_queue_is_polled_by_one() {
    let bench = Bench::standard().await;
    bench.publish_numbered(80).await;
    let mut reader = bench.open().await;
    let read = reader.collect(80).await;
    reader.ack(&read).await;
    // Until the polls that found it full have found it empty.
    assert!(reader.within(Duration::from_secs(2), 1000).await.is_empty());
    let before = bench.proxy.calls(RECEIVE);
    assert!(reader.within(Duration::from_secs(4), 1000).await.is_empty());
    let calls = bench.proxy.calls(RECEIVE) - before;
    assert!(
        (1..=5).contains(&calls),
        "{calls} polls of a second in four seconds"
    );
}

#[tokio::test]
async fn a_full_queue_is_polled_by_as_many_as_may() {
    let bench = Bench::standard().await;
    bench.publish_numbered(100).await;
    for _ in 0..8 {
        bench.proxy.hold(RECEIVE, Duration::from_secs(1));
    }
    let mut reader = crate::bench::Reader::open(&bench.connector().pollers(4)).await;
    let began = rt::now();
    reader.collect(100).await;
    // One, then two, then four at a time: three seconds for the first seven, where one after the other takes as many.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn p2_what_a_dropped_read_had_asked_for_is_given_by_the_next_one() {
    let bench = Bench::standard().await;
    let mut reader = bench.open().await;
    bench.proxy.hold(RECEIVE, Duration::from_millis(500));
    bench.publish_numbered(10).await;
    // The poll is on its way, and the answer is held.
    assert!(reader.within(Duration::from_millis(100), 10).await.is_empty());
    let read = reader.collect(10).await;
    assert!(read.iter().all(|(_, message)| message.deliveries == 1));
    assert_eq!(bench.proxy.calls(RECEIVE), 1);
}

#[tokio::test]
async fn p6_receiving_stops_when_a_drain_begins_and_the_last_poll_is_not_lost() {
    let bench = Bench::standard().await;
    let mut reader = bench.open().await;
    bench.proxy.hold(RECEIVE, Duration::from_millis(500));
    bench.publish_numbered(3).await;
    assert!(reader.within(Duration::from_millis(100), 10).await.is_empty());
    reader.source.drain();
    assert_eq!(reader.collect(3).await.len(), 3);
    let calls = bench.proxy.calls(RECEIVE);
    bench.publish_numbered(1).await;
    let mut chunk = Chunk::new();
    let credit = Credit {
        messages: usize::MAX,
        bytes: usize::MAX,
    };
    let read = soon("the end", reader.source.read(credit, &mut chunk)).await;
    assert_eq!(read.unwrap(), Read::Ended);
    assert_eq!(bench.proxy.calls(RECEIVE), calls);
    assert_eq!(bench.counts().await, (1, 3));
}

#[tokio::test]
async fn a_receive_that_hangs_is_given_up_and_its_messages_come_again() {
    let bench = Bench::standard().await;
    let mut reader = crate::bench::Reader::open(&bench.short()).await;
    bench.publish_numbered(1).await;
    bench.proxy.hold(RECEIVE, Duration::from_secs(600));
    let began = rt::now();
    let read = reader.collect(1).await;
    assert_eq!(read[0].1.deliveries, 2);
    // The wait of a second, and five for the answer.
    assert!(began.elapsed() >= Duration::from_secs(6), "{:?}", began.elapsed());
    reader.ack(&read).await;
    bench.empties().await;
}

#[tokio::test]
async fn p8_a_queue_that_cannot_be_reached_is_told_until_it_can() {
    let bench = Bench::standard().await;
    let mut reader = bench.open().await;
    bench.proxy.cut();
    soon("the trouble to be told", async {
        while reader.told.degraded().is_none() {
            assert!(reader.within(Duration::from_millis(20), 1).await.is_empty());
        }
    })
    .await;
    bench.proxy.mend();
    bench.publish_numbered(1).await;
    reader.collect(1).await;
    assert_eq!(reader.told.degraded(), None);
}

#[tokio::test]
async fn how_many_messages_wait_is_told() {
    let bench = Bench::standard().await;
    bench.publish_numbered(4).await;
    let reader = bench.open().await;
    soon("the depth", async {
        while reader.told.depth() != Some(4) {
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// P1: two processes that give each other's messages back raise all counts, until what nobody has run is given up.
#[tokio::test]
async fn what_came_with_suspects_is_kept_and_runs_before_them_or_after() {
    let bench = Bench::standard().await;
    bench.publish_numbered(4).await;
    bench.receive_in_vain(4, 3).await;
    bench.publish_numbered(5).await;
    let before = bench.proxy.entries(HIDE);
    let mut reader = bench.open().await;
    let mut read = Vec::new();
    while read.len() < 9 {
        let some = reader.read(20).await;
        let suspects = some.iter().filter(|(_, message)| message.deliveries > 3).count();
        assert!(suspects == 0 || some.len() == 1, "a suspect comes alone");
        reader.ack(&some).await;
        read.extend(some);
    }
    let suspects = read.iter().filter(|(_, message)| message.deliveries == 4);
    assert_eq!(
        suspects.count(),
        4,
        "each was received once more, and no more than once"
    );
    assert_eq!(bench.proxy.entries(HIDE), before, "nothing went back");
    bench.empties().await;
}
