//! Brokers that go away, and come back.

use millstream_core::Outcome;
use millstream_core::Settlement;
use millstream_core::rt::{self, Duration};

use crate::conformance::pipe::{Pipe, non_zero};
use crate::conformance::publisher::{insist, numbered, publish};
use crate::conformance::reader::{Reader, messages};
use crate::conformance::subscribers::join;
use crate::conformance::tally::Tally;
use crate::conformance::trial::{Trial, soon, until};

/// The broker is restarted where it can be; elsewhere connections are cut. As in Watermill, at a third and at half
/// of all messages.
pub(super) async fn reconnect(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(trial.pick(500, 10_000));
    let tally = Tally::default();
    let counted = tally.clone();
    let pipe = Pipe::each(
        place.connector(),
        |spec| spec.limits.in_flight = non_zero(50),
        move |message| {
            let counted = counted.clone();
            async move {
                rt::sleep(Duration::from_millis(1)).await;
                counted.add(&message.payload);
                Ok(())
            }
        },
    );
    let publishers = sent
        .chunks(sent.len() / trial.pick(10, 100))
        .map(|share| {
            let (sink, share) = (place.sink(), share.to_vec());
            rt::spawn(async move { insist(&sink, &share).await })
        })
        .collect();
    for part in [3, 2] {
        tally.reaches(sent.len() / part).await;
        trial.fault(&*place).await;
    }
    join(publishers).await;
    tally.reaches(sent.len()).await;
    tally.assert_all(&sent);
    until("nothing to be in flight", || pipe.status().in_flight == 0).await;
}

pub(super) async fn cut_connection(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &numbered(2)).await;
    let mut reader = Reader::open(&place.connector()).await;
    let held = reader.collect(2).await;
    place.cut().await;
    let again = soon("both messages to come again", async {
        let mut again = Vec::new();
        while again.len() < held.len() {
            again.extend(reader.read(messages(held.len() - again.len())).await);
        }
        again
    })
    .await;
    let lost = reader.told.lost();
    for (ticket, _) in held {
        assert!(
            lost.iter().any(|scope| scope.holds(&ticket)),
            "the engine was not told that its messages are gone"
        );
        for settlement in [Settlement::Ack, Settlement::Release] {
            assert_eq!(reader.settle(ticket, settlement).await, Outcome::Stale);
        }
    }
    reader.assert_nothing("both messages are held").await;
    reader.ack(&again).await;
    reader.assert_nothing("both messages are acknowledged").await;
}
