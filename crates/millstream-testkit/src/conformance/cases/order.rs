//! Order by key (P3).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_core::rt::{self, Duration};
use millstream_core::{Failure, Message, Ordering, Outgoing, PipelineSpec, Settlement};
use parking_lot::Mutex;

use crate::conformance::pipe::{Pipe, non_zero};
use crate::conformance::publisher::{keyed, publish};
use crate::conformance::reader::{Reader, messages, payloads};
use crate::conformance::tally::Tally;
use crate::conformance::trial::Trial;

/// Keys of the messages, as in Watermill.
const KEYS: usize = 16;
/// Messages that run at a time, as many as Watermill has subscribers.
const CONCURRENCY: usize = 10;

/// Watches the runs of messages that [`keyed`] made.
#[derive(Clone, Default)]
struct Keys {
    tally: Tally,
    /// For each key: how many have begun, and whether one runs.
    keys: Arc<Mutex<HashMap<Bytes, (usize, bool)>>>,
    broken: Arc<Mutex<Vec<String>>>,
}

impl Keys {
    async fn run(self, message: Message) -> Result<(), Failure> {
        let key = message.key.clone().unwrap_or_default();
        {
            let mut keys = self.keys.lock();
            let (next, runs) = keys.entry(key.clone()).or_default();
            let expected = format!("{}-{next}", String::from_utf8_lossy(&key));
            if message.payload != expected || *runs {
                let ran = String::from_utf8_lossy(&message.payload).into_owned();
                self.broken.lock().push(format!(
                    "{ran} ran, {expected} was next, and one ran already: {runs}"
                ));
            }
            (*next, *runs) = (*next + 1, true);
        }
        rt::sleep(Duration::from_micros(100)).await;
        if let Some((_, runs)) = self.keys.lock().get_mut(&key) {
            *runs = false;
        }
        self.tally.add(&message.payload);
        Ok(())
    }

    fn assert_kept(&self) {
        let broken = self.broken.lock();
        assert!(
            broken.is_empty(),
            "P3: {} times, first {:?}",
            broken.len(),
            broken.first()
        );
    }
}

fn by_key(spec: &mut PipelineSpec) {
    spec.ordering = Ordering::Key;
    spec.processor.concurrency = non_zero(CONCURRENCY);
}

/// Watermill's ten subscribers are the ten workers of one pipeline here.
pub(super) async fn publish_subscribe_in_order(trial: Trial) {
    let place = trial.place().await;
    let sent = keyed(trial.pick(200, 1_000), KEYS);
    let keys = Keys::default();
    let watching = keys.clone();
    let pipe = Pipe::each(place.connector(), by_key, move |message| {
        watching.clone().run(message)
    });
    publish(&place.sink(), &sent).await;
    keys.tally.reaches(sent.len()).await;
    pipe.stop().await;
    keys.tally.assert_once(&sent);
    keys.assert_kept();
}

pub(super) async fn keys_across_consumers(trial: Trial) {
    let place = trial.place().await;
    let sent = keyed(trial.pick(200, 1_000), KEYS);
    let keys = Keys::default();
    let pipes: Vec<_> = (0..4)
        .map(|_| {
            let watching = keys.clone();
            let few = |spec: &mut PipelineSpec| {
                by_key(spec);
                // So that no one of them takes all there is.
                spec.limits.in_flight = non_zero(20);
            };
            Pipe::each(place.connector(), few, move |message| {
                watching.clone().run(message)
            })
        })
        .collect();
    publish(&place.sink(), &sent).await;
    keys.tally.reaches(sent.len()).await;
    for pipe in pipes {
        pipe.stop().await;
    }
    keys.tally.assert_once(&sent);
    keys.assert_kept();
}

pub(super) async fn keys_while_delayed(trial: Trial) {
    let place = trial.place().await;
    let message = |payload: &'static str, key: &'static str| Outgoing::new(payload).with_key(key);
    publish(&place.sink(), &[message("a1", "a")]).await;
    let mut reader = Reader::open(&place.connector()).await;
    let first = reader.one().await;
    publish(&place.sink(), &[message("a2", "a"), message("b1", "b")]).await;
    let settlement = Settlement::Retry {
        after: Duration::from_millis(300),
        failures: 1,
    };
    reader.send(&[first], &settlement).await;
    let mut order = Vec::new();
    while order.len() < 3 {
        let read = reader.read(messages(1)).await;
        order.extend(payloads(&read));
        reader.ack(&read).await;
    }
    assert_eq!(order, ["b1", "a1", "a2"]);
}
