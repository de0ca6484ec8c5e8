//! Consumers that share a place, come and go.

use millstream_core::rt::{self, Duration};

use crate::conformance::publisher::{numbered, publish};
use crate::conformance::reader::{Reader, messages, payloads};
use crate::conformance::subscribers::{Subscribers, join};
use crate::conformance::tally::Tally;
use crate::conformance::trial::Trial;

pub(super) async fn concurrent_subscribe(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(trial.pick(100, 5_000));
    let tally = Tally::default();
    let counted = tally.clone();
    let connectors: Vec<_> = (0..trial.pick(10, 50)).map(|_| place.connector()).collect();
    let subscribers = Subscribers::start(connectors, move |(_, message)| {
        counted.add(&message.payload);
        true
    });
    publish(&place.sink(), &sent).await;
    tally.reaches(sent.len()).await;
    subscribers.dismiss().await;
    tally.assert_once(&sent);
}

pub(super) async fn concurrent_subscribe_multiple_topics(trial: Trial) {
    let mut topics = Vec::new();
    for _ in 0..trial.pick(10, 20) {
        let (place, sent) = (trial.place().await, numbered(trial.pick(50, 100)));
        topics.push(rt::spawn(async move {
            let mut reader = Reader::open(&place.connector()).await;
            let sink = place.sink();
            let ((), read) = tokio::join!(publish(&sink, &sent), reader.collect(sent.len()));
            let tally = Tally::default();
            read.iter().for_each(|(_, message)| tally.add(&message.payload));
            tally.assert_once(&sent);
            reader.ack(&read).await;
        }));
    }
    join(topics).await;
}

/// Twenty consumers at most, as in Watermill, one after the other. The first ten leave a fifth of what they have
/// read unsettled.
pub(super) async fn continue_after_subscribe_close(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(trial.pick(500, 5_000));
    publish(&place.sink(), &sent).await;
    let tally = Tally::default();
    for round in 0..20 {
        let left = sent.len() - tally.distinct();
        if left == 0 {
            break;
        }
        let mut reader = Reader::open(&place.connector()).await;
        let read = reader.collect(left.min(sent.len() / 5)).await;
        let unsettled = if round < 10 { read.len() / 5 } else { 0 };
        let (_, settled) = read.split_at(unsettled);
        settled
            .iter()
            .for_each(|(_, message)| tally.add(&message.payload));
        reader.ack(settled).await;
    }
    tally.assert_all(&sent);
    if trial.features().settles_singly {
        tally.assert_once(&sent);
    }
}

pub(super) async fn concurrent_close(trial: Trial) {
    let place = trial.place().await;
    let racers = (0..10)
        .map(|_| {
            let connector = place.connector();
            rt::spawn(async move {
                for _ in 0..3 {
                    let mut reader = Reader::open(&connector).await;
                    // It may or may not have been given something when it ends.
                    reader.read_within(Duration::from_millis(1), messages(10)).await;
                }
            })
        })
        .collect();
    let sent = numbered(50);
    publish(&place.sink(), &sent).await;
    join(racers).await;
    let mut reader = Reader::open(&place.connector()).await;
    let read = reader.collect(sent.len()).await;
    let tally = Tally::default();
    read.iter().for_each(|(_, message)| tally.add(&message.payload));
    tally.assert_once(&sent);
    reader.ack(&read).await;
    reader.assert_nothing("all is acknowledged").await;
}

pub(super) async fn consumer_groups(trial: Trial) {
    let place = trial.place().await;
    let groups = [place.group("one").await, place.group("other").await];
    let sent = numbered(50);
    publish(&place.sink(), &sent).await;
    for group in &groups {
        let mut reader = Reader::open(group).await;
        let read = reader.collect(sent.len()).await;
        let tally = Tally::default();
        read.iter().for_each(|(_, message)| tally.add(&message.payload));
        tally.assert_once(&sent);
        reader.ack(&read).await;
        reader.assert_nothing("the group has acknowledged all").await;
    }
}

/// Where Watermill cancels a subscription, a read is dropped here, at whatever point it has come to.
pub(super) async fn subscribe_ctx(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(20);
    let mut reader = Reader::open(&place.connector()).await;
    let mut read = Vec::new();
    for (number, message) in sent.iter().enumerate() {
        publish(&place.sink(), std::slice::from_ref(message)).await;
        let moment = Duration::from_micros(200 * number as u64);
        read.extend(reader.read_within(moment, messages(1)).await);
    }
    read.extend(reader.collect(sent.len() - read.len()).await);
    let tally = Tally::default();
    read.iter().for_each(|(_, message)| tally.add(&message.payload));
    tally.assert_once(&sent);
    reader.end().await;

    let mut another = Reader::open(&place.connector()).await;
    let mut again = payloads(&another.collect(sent.len()).await);
    let mut all = payloads(&read);
    again.sort();
    all.sort();
    assert_eq!(again, all, "another consumer gets what was not settled");
}
