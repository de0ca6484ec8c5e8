//! Bounds on what is in flight (P4).

use std::sync::Arc;

use millstream_core::rt::{self, Duration};
use millstream_core::{Credit, Outgoing};
use tokio::sync::Semaphore;

use crate::conformance::gauge::Gauge;
use crate::conformance::pipe::{Pipe, non_zero};
use crate::conformance::publisher::{numbered, publish};
use crate::conformance::reader::Reader;
use crate::conformance::scale::Scale;
use crate::conformance::tally::Tally;
use crate::conformance::trial::{Trial, until};

/// Held for five seconds at full scale, as in Benthos.
pub(super) async fn saturated_unacked(trial: Trial) {
    let hold = match trial.scale {
        Scale::Small => Duration::from_millis(500),
        Scale::Full => Duration::from_secs(5),
    };
    let place = trial.place().await;
    let sent = numbered(trial.pick(100, 1_000));
    let half = sent.len() / 2;
    publish(&place.sink(), &sent).await;
    let (gauge, tally, gate) = (Gauge::default(), Tally::default(), Arc::new(Semaphore::new(0)));
    let (counted, waiting) = (tally.clone(), Arc::clone(&gate));
    let pipe = Pipe::each(
        gauge.watch(place.connector()),
        |spec| {
            spec.limits.in_flight = non_zero(half);
            spec.processor.concurrency = non_zero(half);
        },
        move |message| {
            counted.add(&message.payload);
            let waiting = Arc::clone(&waiting);
            async move {
                drop(waiting.acquire().await?);
                Ok(())
            }
        },
    );
    until("it to be saturated", || {
        gauge.messages() == half && tally.total() == half
    })
    .await;
    rt::sleep(hold).await;
    assert_eq!(
        (gauge.messages(), tally.total()),
        (half, half),
        "something moved while nothing was settled"
    );
    gate.add_permits(sent.len());
    tally.reaches(sent.len()).await;
    until("all to be acknowledged", || pipe.status().in_flight == 0).await;
    tally.assert_once(&sent);
    assert_eq!(gauge.most().0, half);
}

pub(super) async fn credit(trial: Trial) {
    let place = trial.place().await;
    let size = 100;
    let sent = vec![Outgoing::new(vec![b'x'; size]); 20];
    publish(&place.sink(), &sent).await;
    let mut reader = Reader::open(&place.connector()).await;
    let mut came = 0;
    while came < sent.len() {
        let credit = Credit {
            messages: 7,
            bytes: 2 * size + size / 2,
        };
        // That it keeps to the messages, every read checks.
        let read = reader.read(credit).await;
        let but_one: usize = read.iter().skip(1).map(|(_, message)| message.size()).sum();
        assert!(
            but_one < credit.bytes,
            "{} messages of {size} bytes came on credit for {} bytes",
            read.len(),
            credit.bytes
        );
        came += read.len();
        let mut one = credit;
        one.messages = 1;
        reader.ack(&read).await;
        if came < sent.len() {
            let read = reader.read(one).await;
            came += read.len();
            reader.ack(&read).await;
        }
    }
    assert_eq!(came, sent.len());
}

/// Runs a pipeline with these limits on these messages, and says how many messages and bytes were out at most.
async fn most(trial: &Trial, limits: (usize, usize), sent: &[Outgoing]) -> (usize, usize) {
    let place = trial.place().await;
    let (gauge, tally) = (Gauge::default(), Tally::default());
    publish(&place.sink(), sent).await;
    let counted = tally.clone();
    let pipe = Pipe::each(
        gauge.watch(place.connector()),
        |spec| {
            spec.limits.in_flight = non_zero(limits.0);
            spec.limits.bytes = non_zero(limits.1);
            spec.processor.concurrency = non_zero(4);
        },
        move |message| {
            let counted = counted.clone();
            async move {
                rt::sleep(Duration::from_millis(1)).await;
                counted.add(&message.payload);
                Ok(())
            }
        },
    );
    tally.reaches(sent.len()).await;
    pipe.stop().await;
    tally.assert_once(sent);
    gauge.most()
}

pub(super) async fn messages_in_flight(trial: Trial) {
    let sent = numbered(trial.pick(200, 1_000));
    let (messages, _) = most(&trial, (10, usize::MAX), &sent).await;
    assert!(
        messages <= 10,
        "{messages} messages were in flight, and 10 may be"
    );
}

pub(super) async fn bytes_in_flight(trial: Trial) {
    const BYTES: usize = 10_000;
    const LARGEST: usize = 2 * BYTES;
    let mut sent: Vec<_> = (0..trial.pick(200, 1_000))
        .map(|number| Outgoing::new(format!("{number:01000}")))
        .collect();
    if let Some(message) = sent.get_mut(50) {
        *message = Outgoing::new(vec![b'x'; LARGEST]);
    }
    let (_, bytes) = most(&trial, (1_000, BYTES), &sent).await;
    // What the broker adds to a message, such as a header of its own, may count too.
    let allowed = BYTES + LARGEST + LARGEST / 10;
    assert!(
        bytes <= allowed,
        "{bytes} bytes were in flight, and {BYTES} and one message may be"
    );
}
