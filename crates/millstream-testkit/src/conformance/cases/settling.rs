//! What settlements do, and what the lack of one does.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use millstream_core::rt::{self, Duration};
use millstream_core::{
    Failure, Message, Outcome, Outgoing, RetryStrategy, Settlement, SharedConnector, SharedSinkConnector,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::conformance::pipe::{Pipe, non_zero};
use crate::conformance::publisher::{numbered, publish};
use crate::conformance::reader::{Delivery, Reader, payloads, rejection};
use crate::conformance::subject::{DynPlace, Rejected};
use crate::conformance::subscribers::Subscribers;
use crate::conformance::tally::Tally;
use crate::conformance::trial::{A_WHILE, Trial, soon, until};

/// How long a delayed message is delayed.
const DELAY: Duration = Duration::from_millis(300);

pub(super) async fn resend_on_error(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(100);
    publish(&place.sink(), &sent).await;
    let mut reader = Reader::open(&place.connector()).await;
    let mut read = reader.collect(sent.len()).await;
    let released = read.split_off(98);
    reader.release(&released).await;
    reader.ack(&read).await;
    let mut again = reader.collect(2).await;
    again.sort_by_key(|(ticket, _)| ticket.sequence);
    let tally = Tally::default();
    let all = read.iter().chain(&again);
    all.for_each(|(_, message)| tally.add(&message.payload));
    tally.assert_once(&sent);
    reader.ack(&again).await;
    reader.assert_nothing("all is acknowledged").await;
}

pub(super) async fn no_ack(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &numbered(2)).await;
    let (tally, gate) = (Tally::default(), Arc::new(Semaphore::new(0)));
    let (counted, waiting) = (tally.clone(), Arc::clone(&gate));
    let pipe = Pipe::each(
        place.connector(),
        |spec| spec.limits.in_flight = non_zero(1),
        move |message| {
            counted.add(&message.payload);
            let waiting = Arc::clone(&waiting);
            async move {
                waiting.acquire().await?.forget();
                Ok(())
            }
        },
    );
    tally.reaches(1).await;
    rt::sleep(A_WHILE).await;
    assert_eq!(
        tally.total(),
        1,
        "another came, or the same again, while one was unsettled"
    );
    gate.add_permits(1);
    tally.reaches(2).await;
    gate.add_permits(1);
    until("both to be acknowledged", || pipe.status().counts.acked == 2).await;
    rt::sleep(A_WHILE).await;
    assert_eq!(tally.total(), 2, "an acknowledged message came again");
}

/// Three consumers, one after the other, release a hundred messages each.
pub(super) async fn continue_after_errors(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(50);
    publish(&place.sink(), &sent).await;
    for _ in 0..3 {
        let mut reader = Reader::open(&place.connector()).await;
        for _ in 0..2 {
            let read = reader.collect(sent.len()).await;
            reader.release(&read).await;
        }
    }
    let mut reader = Reader::open(&place.connector()).await;
    let read = reader.collect(sent.len()).await;
    let tally = Tally::default();
    read.iter().for_each(|(_, message)| tally.add(&message.payload));
    tally.assert_once(&sent);
    reader.ack(&read).await;
    reader.assert_nothing("all is acknowledged").await;
}

/// Reads five messages, acknowledges the first, second and fourth, and gives the others as they came.
async fn all_but_the_third_and_fifth(place: &dyn DynPlace, reader: &mut Reader) -> Vec<Delivery> {
    publish(&place.sink(), &["a", "b", "c", "d", "e"].map(Outgoing::new)).await;
    let read = reader.collect(5).await;
    let (others, acknowledged): (Vec<_>, Vec<_>) = read
        .into_iter()
        .partition(|(_, message)| message.payload == "c" || message.payload == "e");
    reader.ack(&acknowledged).await;
    others
}

/// The third and the fifth come; the fourth may, where what is acknowledged is a position and no message.
async fn the_third_and_fifth_come(trial: &Trial, place: &dyn DynPlace) {
    let mut allowed: Vec<&[u8]> = vec![b"c", b"e"];
    if !trial.features().settles_singly {
        allowed.push(b"d");
    }
    let mut reader = Reader::open(&place.connector()).await;
    let mut came = BTreeSet::new();
    while !(came.contains("c".as_bytes()) && came.contains("e".as_bytes())) {
        let delivery = reader.one().await;
        let payload = delivery.1.payload.clone();
        assert!(
            allowed.contains(&&*payload),
            "what was acknowledged came again: {payload:?}"
        );
        assert!(came.insert(payload.to_vec()), "{payload:?} came twice");
        reader.ack(&[delivery]).await;
    }
    reader.assert_nothing("all is acknowledged").await;
}

pub(super) async fn checkpoint_capture(trial: Trial) {
    let place = trial.place().await;
    let mut reader = Reader::open(&place.connector()).await;
    let others = all_but_the_third_and_fifth(&*place, &mut reader).await;
    reader.release(&others).await;
    drop(reader);
    the_third_and_fifth_come(&trial, &*place).await;
}

pub(super) async fn at_least_once_delivery(trial: Trial) {
    let place = trial.place().await;
    let mut reader = Reader::open(&place.connector()).await;
    all_but_the_third_and_fifth(&*place, &mut reader).await;
    drop(reader);
    the_third_and_fifth_come(&trial, &*place).await;
}

/// Consumers that release every tenth message the first time that they see it.
struct Lossy {
    tally: Tally,
    released: Arc<Mutex<BTreeSet<Bytes>>>,
}

impl Lossy {
    fn start(&self, trial: &Trial, place: &dyn DynPlace) -> Subscribers {
        let number = if trial.features().consumers { 4 } else { 1 };
        let connectors: Vec<_> = (0..number).map(|_| place.connector()).collect();
        let (tally, released) = (self.tally.clone(), Arc::clone(&self.released));
        Subscribers::start(connectors, move |(_, message)| {
            let lost = message.payload.ends_with(b"7") && released.lock().insert(message.payload.clone());
            if !lost {
                tally.add(&message.payload);
            }
            !lost
        })
    }
}

pub(super) async fn parallel_lossy(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(trial.pick(200, 1_000));
    publish(&place.sink(), &sent).await;
    let lossy = Lossy {
        tally: Tally::default(),
        released: Arc::default(),
    };
    let consumers = lossy.start(&trial, &*place);
    lossy.tally.reaches(sent.len()).await;
    consumers.dismiss().await;
    lossy.tally.assert_once(&sent);
    assert_eq!(lossy.released.lock().len(), sent.len() / 10);
}

pub(super) async fn parallel_lossy_through_reconnect(trial: Trial) {
    let place = trial.place().await;
    let sent = numbered(trial.pick(200, 1_000));
    let (first, second) = sent.split_at(sent.len() / 2);
    let lossy = Lossy {
        tally: Tally::default(),
        released: Arc::default(),
    };
    publish(&place.sink(), first).await;
    let consumers = lossy.start(&trial, &*place);
    // Not all of them: some are on their way when the consumers end.
    lossy.tally.reaches(first.len() / 2).await;
    publish(&place.sink(), second).await;
    consumers.dismiss().await;
    let consumers = lossy.start(&trial, &*place);
    lossy.tally.reaches(sent.len()).await;
    consumers.dismiss().await;
    lossy.tally.assert_all(&sent);
    if trial.features().settles_singly {
        lossy.tally.assert_once(&sent);
    }
}

pub(super) async fn says_what_it_declares(trial: Trial) {
    let place = trial.place().await;
    let connector = place.connector();
    // It may have to ask its broker first.
    let _reader = Reader::open(&connector).await;
    let features = trial.features();
    assert_eq!(connector.capabilities(), features.capabilities);
    assert_eq!(
        connector.retry_sink().is_some(),
        features.retry_sink,
        "whether it has a retry sink"
    );
}

pub(super) async fn stale_generation(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &[Outgoing::new("one")]).await;
    let connector = place.connector();
    let (late, _) = Reader::open(&connector).await.one().await;
    let mut reader = Reader::open(&connector).await;
    let held = reader.one().await;
    assert_ne!(late.generation, held.0.generation);
    for settlement in [
        Settlement::Ack,
        Settlement::Release,
        rejection("late"),
        Settlement::Retry {
            after: Duration::ZERO,
            failures: 1,
        },
    ] {
        assert_eq!(reader.settle(late, settlement).await, Outcome::Stale);
    }
    reader.assert_nothing("the message is held").await;
    reader.ack(&[held]).await;
    reader.assert_nothing("the message is acknowledged").await;
}

pub(super) async fn redelivery_count(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &[Outgoing::new("one")]).await;
    let mut before = 0;
    for _ in 0..3 {
        let (_, message) = Reader::open(&place.connector()).await.one().await;
        assert_eq!(message.deliveries, before + 1, "a consumer had it and has ended");
        before = message.deliveries;
    }
    if trial.features().takes_back {
        let mut reader = Reader::open(&place.connector()).await;
        let delivery = reader.one().await;
        let deliveries = delivery.1.deliveries;
        reader.release(&[delivery]).await;
        let (_, again) = reader.one().await;
        assert_eq!(again.deliveries, deliveries, "a release counts as no delivery");
    }
}

pub(super) async fn rejected_are_kept(trial: Trial) {
    let place = trial.place().await;
    let sent = [Outgoing::new("bad").with_key("k"), Outgoing::new("good")];
    publish(&place.sink(), &sent).await;
    let mut reader = Reader::open(&place.connector()).await;
    for (ticket, message) in reader.collect(2).await {
        let settlement = match &*message.payload {
            b"bad" => rejection("no such sku"),
            _ => Settlement::Ack,
        };
        assert_eq!(reader.settle(ticket, settlement).await, Outcome::Sent);
    }
    reader.assert_nothing("both are settled").await;
    drop(reader);
    let kept = soon("the rejected message to be kept", async {
        loop {
            let kept = place.rejected().await;
            if !kept.is_empty() {
                return kept;
            }
            rt::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let [Rejected { payload, key, error }] = &kept[..] else {
        panic!("one was rejected, and kept are {kept:?}");
    };
    assert_eq!(payload, "bad");
    assert!(
        key.as_deref() == Some(b"k") || !trial.features().keys,
        "its key was {key:?}"
    );
    assert!(
        error.is_empty() || error == "no such sku",
        "its error was {error}"
    );
}

/// Where the store cannot hold a delivery back, the engine's way is gone here: to the retry sink, and once that has
/// confirmed the message, its delivery is acknowledged.
pub(super) async fn retry_delay(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &[Outgoing::new("one").with_key("k")]).await;
    let connector = place.connector();
    let mut reader = Reader::open(&connector).await;
    let delivery = reader.one().await;
    let began = rt::now();
    if trial.features().capabilities.delay {
        let settlement = Settlement::Retry {
            after: DELAY,
            failures: 2,
        };
        reader.send(&[delivery], &settlement).await;
    } else {
        let mut later = Outgoing::new(delivery.1.payload.clone())
            .with_key("k")
            .with_header(Message::FAILURES, "2");
        later.delay = DELAY;
        publish(&retry_sink(&connector), &[later]).await;
        reader.ack(&[delivery]).await;
    }
    // Where it took long to get there, its time may have come.
    if began.elapsed() + A_WHILE < DELAY {
        reader.assert_nothing("its time has not come").await;
    }
    let again = reader.one().await;
    // Stores count in whole milliseconds.
    assert!(
        began.elapsed() + Duration::from_millis(2) >= DELAY,
        "it came after {:?}",
        began.elapsed()
    );
    assert_eq!(
        (payloads(std::slice::from_ref(&again)), again.1.failures),
        (vec!["one".into()], 2)
    );
    assert!(
        again.1.key.as_deref() == Some(b"k") || !trial.features().keys,
        "its key was {:?}",
        again.1.key
    );
    reader.ack(&[again]).await;
    reader.assert_nothing("the retry is acknowledged").await;
}

fn retry_sink(connector: &SharedConnector) -> SharedSinkConnector {
    let sink = connector.retry_sink();
    sink.expect("`retry_sink` is declared, and the connector has none")
}

pub(super) async fn redelivered_attempts(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &[Outgoing::new("one")]).await;
    let began = Arc::new(Mutex::new(Vec::new()));
    let runs = Arc::clone(&began);
    let pipe = Pipe::each(
        place.connector(),
        |spec| {
            spec.retry.strategy = RetryStrategy::Redeliver;
            spec.retry.backoff = DELAY;
            spec.retry.factor = 1.0;
            spec.retry.jitter = false;
        },
        move |message| {
            let run = {
                let mut runs = runs.lock();
                runs.push((message.failures, rt::now()));
                runs.len()
            };
            async move {
                // A store that forgets the failures and knows no delay would go on for ever.
                if message.failures < 2 && run < 10 {
                    return Err(Failure::from("not yet"));
                }
                Ok(())
            }
        },
    );
    until("the third run to be acknowledged", || {
        let status = pipe.status();
        began.lock().len() >= 3 && status.in_flight == 0
    })
    .await;
    rt::sleep(A_WHILE).await;
    pipe.stop().await;
    let runs = began.lock().clone();
    let failures: Vec<_> = runs.iter().map(|(failures, _)| *failures).collect();
    assert_eq!(failures, [0, 1, 2], "failures before each run");
    for pair in runs.windows(2) {
        let [(_, before), (_, after)] = pair else { continue };
        let between = after.duration_since(*before) + Duration::from_millis(2);
        assert!(between >= DELAY, "it ran again after {between:?}");
    }
    let mut reader = Reader::open(&place.connector()).await;
    reader.assert_nothing("the third run has succeeded").await;
}
