//! What was published arrives, where it was published to.

use millstream_core::{Delivered, Outgoing, Settlement};

use crate::conformance::publisher::{numbered, publish};
use crate::conformance::reader::{Reader, payloads};
use crate::conformance::subscribers::join;
use crate::conformance::tally::Tally;
use crate::conformance::trial::Trial;

pub(super) async fn publish_subscribe(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(100);
    publish(&place.sink(), &sent).await;
    let mut reader = Reader::open(&place.connector()).await;
    let tally = Tally::default();
    for _ in 0..sent.len() {
        let delivery = reader.one().await;
        tally.add(&delivery.1.payload);
        reader.ack(&[delivery]).await;
    }
    tally.assert_once(&sent);
    reader.assert_nothing("all is acknowledged").await;
    reader.end().await;
}

pub(super) async fn headers(trial: Trial) {
    let place = trial.place().await;
    let sent = Outgoing::new("payload")
        .with_header("tenant", "acme")
        .with_header("trace-id", "4bf92f3577b34da6");
    publish(&place.sink(), &[sent]).await;
    let (_, message) = Reader::open(&place.connector()).await.one().await;
    assert_eq!(message.headers.get("tenant"), Some("acme"));
    assert_eq!(message.headers.get("trace-id"), Some("4bf92f3577b34da6"));
}

pub(super) async fn keys(trial: Trial) {
    let place = trial.place().await;
    publish(
        &place.sink(),
        &[
            Outgoing::new("with").with_key("customer-7"),
            Outgoing::new("without"),
        ],
    )
    .await;
    for (_, message) in Reader::open(&place.connector()).await.collect(2).await {
        let key = (message.payload == "with").then_some(&b"customer-7"[..]);
        assert_eq!(message.key.as_deref(), key);
    }
}

pub(super) async fn publisher_close(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(trial.pick(1_000, 10_000));
    let publishers: Vec<_> = sent
        .chunks(sent.len() / 20)
        .map(|share| {
            let (sink, share) = (place.sink(), share.to_vec());
            millstream_core::rt::spawn(async move {
                // Each of them opens a sink and closes it, time and again.
                for some in share.chunks(25) {
                    publish(&sink, some).await;
                }
            })
        })
        .collect();
    join(publishers).await;
    let mut reader = Reader::open(&place.connector()).await;
    let tally = Tally::default();
    while tally.total() < sent.len() {
        let read = reader.collect((sent.len() - tally.total()).min(100)).await;
        read.iter().for_each(|(_, message)| tally.add(&message.payload));
        reader.ack(&read).await;
    }
    tally.assert_once(&sent);
}

pub(super) async fn topic(trial: Trial) {
    let (one, other) = (trial.place().await, trial.place().await);
    publish(&one.sink(), &[Outgoing::new("for one")]).await;
    publish(&other.sink(), &[Outgoing::new("for the other")]).await;
    for (place, payload) in [(one, "for one"), (other, "for the other")] {
        let mut reader = Reader::open(&place.connector()).await;
        let delivery = reader.one().await;
        assert_eq!(delivery.1.payload, payload);
        reader.ack(&[delivery]).await;
        reader.assert_nothing("there was one message for each").await;
    }
}

pub(super) async fn new_subscriber_receives_old_messages(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(100);
    publish(&place.sink(), &sent).await;
    let mut reader = Reader::open(&place.connector()).await;
    let read = reader.collect(sent.len()).await;
    if trial.features().ordered {
        let in_order: Vec<_> = sent.iter().map(|message| message.payload.clone()).collect();
        assert_eq!(payloads(&read), in_order);
    }
    let tally = Tally::default();
    read.iter().for_each(|(_, message)| tally.add(&message.payload));
    tally.assert_once(&sent);
    reader.send(&read, &Settlement::Ack).await;
}

pub(super) async fn send_batch_count_isolated(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(10);
    let mut sink = place.sink().open().await.expect("the sink opens");
    let mut results = Vec::new();
    sink.send(&sent, &mut results).await.expect("the sink sends");
    assert_eq!(results, vec![Delivered::Confirmed; sent.len()]);
    let mut reader = Reader::open(&place.connector()).await;
    let read = reader.collect(sent.len()).await;
    let tally = Tally::default();
    read.iter().for_each(|(_, message)| tally.add(&message.payload));
    tally.assert_once(&sent);
    reader.assert_nothing("there were ten").await;
}
