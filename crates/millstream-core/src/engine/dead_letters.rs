//! The dead-letter stage: what was given up goes to the sink, and is acknowledged at its source once the sink has
//! confirmed it (P1).

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::envelope::Envelope;
use super::hub::Hub;
use super::retry::patience;
use crate::connector::{Delivered, DynSink, DynSinkConnector};
use crate::message::Outgoing;
use crate::rt::{self, Duration};
use crate::settlement::{Rejection, Settlement};

/// The most that is written at a time.
const MOST: usize = 500;

/// How long to wait before a refused letter is offered again.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

const PART: &str = "dead letter";

/// Messages on their way to the dead-letter sink. Each holds its place in flight until it is there.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    queue: Mutex<Vec<(Envelope, Arc<Rejection>)>>,
    added: Notify,
}

impl DeadLetters {
    pub(crate) fn add(&self, envelope: Envelope, rejection: Arc<Rejection>) {
        self.queue.lock().push((envelope, rejection));
        self.added.notify_one();
    }

    /// Takes everything out, for the release at the end of a drain.
    pub(crate) fn take_all(&self) -> Vec<Envelope> {
        std::mem::take(&mut *self.queue.lock())
            .into_iter()
            .map(|(envelope, _)| envelope)
            .collect()
    }
}

/// Writes dead letters until the stage is dropped. What it holds then goes back to the queue.
pub(crate) async fn run(hub: Arc<Hub>, connector: Arc<dyn DynSinkConnector>) {
    let mut sink: Option<Box<dyn DynSink>> = None;
    let mut failures = 0;
    let mut results = Vec::new();
    loop {
        let mut held = Held {
            hub: &hub,
            letters: Vec::new(),
        };
        {
            let mut queue = hub.dead_letters.queue.lock();
            let number = queue.len().min(MOST);
            held.letters.extend(queue.drain(..number));
        }
        if held.letters.is_empty() {
            hub.dead_letters.added.notified().await;
            continue;
        }
        let outgoing: Vec<Outgoing> = held
            .letters
            .iter()
            .map(|(envelope, rejection)| rejection.dead_letter(&envelope.message))
            .collect();
        results.clear();
        let trouble = write(&mut sink, &*connector, &outgoing, &mut results).await.err();
        let again = held.sort(&results);
        hub.degraded(PART, trouble.as_deref().or(again.as_deref()));
        if trouble.is_some() || again.is_some() {
            failures += 1;
            hub.counters.dead_letter_retries.add(held.letters.len());
            drop(held);
            // A letter that is refused must not keep others waiting for long.
            rt::sleep(if trouble.is_some() {
                patience(failures)
            } else {
                REFUSED_WAIT
            })
            .await;
        } else {
            failures = 0;
        }
    }
}

/// Writes them, opening the sink first where there is none. An error closes it.
async fn write(
    sink: &mut Option<Box<dyn DynSink>>,
    connector: &dyn DynSinkConnector,
    outgoing: &[Outgoing],
    results: &mut Vec<Delivered>,
) -> Result<(), String> {
    let mut open = match sink.take() {
        Some(open) => open,
        None => connector.open().await.map_err(|error| error.to_string())?,
    };
    open.send(outgoing, results)
        .await
        .map_err(|error| error.to_string())?;
    *sink = Some(open);
    Ok(())
}

/// Letters that are being written. Dropped, what is not written goes back to the queue.
struct Held<'a> {
    hub: &'a Hub,
    letters: Vec<(Envelope, Arc<Rejection>)>,
}

impl Held<'_> {
    /// Acknowledges what was confirmed. Gives the reason why the rest was not, if there is a rest.
    fn sort(&mut self, results: &[Delivered]) -> Option<String> {
        let mut reason = None;
        let mut results = results.iter();
        let mut acks = Vec::new();
        self.letters.retain(|(envelope, _)| match results.next() {
            Some(Delivered::Confirmed) => {
                acks.extend(envelope.settle(Settlement::Ack));
                false
            }
            Some(Delivered::Refused(why) | Delivered::Failed(why)) => {
                reason.get_or_insert_with(|| why.clone());
                true
            }
            None => true,
        });
        self.hub.counters.dead_lettered.add(acks.len());
        self.hub.settling.add(acks);
        reason
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.letters.is_empty() {
            let mut queue = self.hub.dead_letters.queue.lock();
            queue.splice(0..0, self.letters.drain(..));
            self.hub.dead_letters.added.notify_one();
        }
    }
}
