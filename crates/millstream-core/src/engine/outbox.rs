//! The outbox stage: a message goes to a sink, and is acknowledged at its source once the sink has confirmed it
//! (P1). What was given up goes so to the dead-letter sink; what shall come again later goes to the retry sink of
//! a source that cannot hold it back itself.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::elsewhere::Why;
use super::envelope::Envelope;
use super::hub::Hub;
use super::retry::patience;
use super::stall::Named;
use crate::connector::{Delivered, DynSink, DynSinkConnector};
use crate::message::Outgoing;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Rejection, Settlement};

/// The most that is written at a time.
const MOST: usize = 500;

/// How long to wait before what was refused is offered again.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// Messages on their way to a sink. Each holds its place in flight until it is there.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// What the pipeline's condition calls it.
    part: &'static str,
    /// How many are being written, and the first of them.
    writing: Mutex<(usize, Option<Named>)>,
    queue: Mutex<VecDeque<(Envelope, Letter)>>,
    added: Notify,
}

/// Why a message goes to a sink.
#[derive(Debug)]
pub(crate) enum Letter {
    /// It was given up.
    Dead(Arc<Rejection>),
    /// It shall come again then.
    Later(Instant),
}

impl Letter {
    fn write(&self, hub: &Hub, envelope: &Envelope) -> Outgoing {
        let message = &envelope.message;
        let mut outgoing = match self {
            Self::Dead(rejection) => rejection.dead_letter(message),
            Self::Later(due) => {
                let mut later = message.put_off(
                    hub.origin_name(message.origin),
                    due.saturating_duration_since(rt::now()),
                );
                if let Some(received) = hub.first_received(envelope) {
                    later.set_first_received(received);
                }
                later
            }
        };
        outgoing.ticket = envelope.unsettled();
        outgoing
    }
}

impl Outbox {
    pub(crate) fn new(part: &'static str) -> Self {
        Self {
            part,
            writing: Mutex::default(),
            queue: Mutex::default(),
            added: Notify::new(),
        }
    }

    pub(crate) fn part(&self) -> &'static str {
        self.part
    }

    pub(crate) fn add(&self, envelope: Envelope, letter: Letter) {
        self.queue.lock().push_back((envelope, letter));
        self.added.notify_one();
    }

    /// How many there are, those that are being written included.
    pub(crate) fn len(&self) -> usize {
        self.queue.lock().len() + self.writing.lock().0
    }

    /// The first of them, for a stall to name.
    pub(crate) fn first(&self) -> Option<Named> {
        let writing = self.writing.lock().1.clone();
        writing.or_else(|| self.queued())
    }

    fn queued(&self) -> Option<Named> {
        self.queue.lock().front().map(|(envelope, _)| Named::of(envelope))
    }

    /// Takes everything out, for the release at the end of a drain.
    pub(crate) fn take_all(&self) -> Vec<Envelope> {
        std::mem::take(&mut *self.queue.lock())
            .into_iter()
            .map(|(envelope, _)| envelope)
            .collect()
    }

    /// Takes out the oldest of those whose delivery still stands; the others are forgotten, as the source hands
    /// them out again.
    fn take(&self, hub: &Hub, held: &mut Vec<(Envelope, Letter)>) {
        let mut lost = Vec::new();
        {
            let mut queue = self.queue.lock();
            while held.len() < MOST
                && let Some((envelope, letter)) = queue.pop_front()
            {
                if hub.is_lost(&envelope.ticket) {
                    lost.push(envelope);
                } else {
                    held.push((envelope, letter));
                }
            }
        }
        hub.drop_lost(&lost);
    }
}

/// Writes what is in the outbox that this picks, until the stage is dropped. What it holds then goes back there.
pub(crate) async fn run(hub: Arc<Hub>, connector: Arc<dyn DynSinkConnector>, which: fn(&Hub) -> &Outbox) {
    let outbox = which(&hub);
    let mut sink: Option<Box<dyn DynSink>> = None;
    let mut failures = 0;
    let mut results = Vec::new();
    loop {
        let mut held = Held {
            hub: &hub,
            outbox,
            letters: Vec::new(),
        };
        outbox.take(&hub, &mut held.letters);
        if held.letters.is_empty() {
            // What its sink had not taken may have been lost with its connection: nothing is wrong any more then.
            hub.degraded(outbox.part, None);
            outbox.added.notified().await;
            continue;
        }
        let first = held.letters.first();
        *outbox.writing.lock() = (held.letters.len(), first.map(|(envelope, _)| Named::of(envelope)));
        let outgoing: Vec<Outgoing> = held
            .letters
            .iter()
            .map(|(envelope, letter)| letter.write(&hub, envelope))
            .collect();
        results.clear();
        let trouble = write(&mut sink, &*connector, &outgoing, &mut results).await.err();
        let again = held.sort(&results);
        hub.degraded(outbox.part, trouble.as_deref().or(again.as_deref()));
        if trouble.is_some() || again.is_some() {
            failures += 1;
            hub.counters.outbox_retries.add(held.letters.len());
            held.give_up_waiting();
            drop(held);
            // One that is refused must not keep others waiting for long, and a drain waits for none.
            let wait = if trouble.is_some() {
                patience(failures)
            } else {
                REFUSED_WAIT
            };
            let mut gate = hub.gate.watch();
            let was_draining = hub.is_draining();
            tokio::select! {
                biased;
                _ = gate.wait_for(|gate| gate.draining), if !was_draining => {}
                () = rt::sleep(wait) => {}
            }
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

/// What is being written. Dropped, what is not written goes back to the outbox.
struct Held<'a> {
    hub: &'a Hub,
    outbox: &'a Outbox,
    letters: Vec<(Envelope, Letter)>,
}

impl Held<'_> {
    /// Acknowledges what was confirmed. Gives the reason why the rest was not, if there is a rest.
    fn sort(&mut self, results: &[Delivered]) -> Option<String> {
        let mut reason = None;
        let mut results = results.iter();
        let mut acks = Vec::new();
        let (mut dead, mut later) = (0, 0);
        self.letters.retain(|(envelope, letter)| match results.next() {
            Some(Delivered::Confirmed) => {
                let why = match letter {
                    Letter::Dead(_) => {
                        dead += 1;
                        Why::GivenUp
                    }
                    Letter::Later(_) => {
                        later += 1;
                        Why::PutOff
                    }
                };
                self.hub.elsewhere.add(envelope.ticket, why);
                acks.extend(envelope.settle(Settlement::Ack));
                false
            }
            Some(Delivered::Failed(_)) if mutant(Mutant::AckUnconfirmed) => {
                acks.extend(envelope.settle(Settlement::Ack));
                false
            }
            Some(Delivered::Refused(why) | Delivered::Failed(why)) => {
                reason.get_or_insert_with(|| why.clone());
                true
            }
            None => true,
        });
        self.hub.counters.dead_lettered.add(dead);
        self.hub.counters.put_off.add(later);
        self.hub.settling.add(acks);
        reason
    }
}

impl Held<'_> {
    /// In a drain, what was to come later comes sooner when its sink does not take it: nothing waits for that.
    fn give_up_waiting(&mut self) {
        if !self.hub.is_draining() {
            return;
        }
        let (later, rest) = std::mem::take(&mut self.letters)
            .into_iter()
            .partition(|(_, letter)| matches!(letter, Letter::Later(_)));
        self.letters = rest;
        let later: Vec<(Envelope, Letter)> = later;
        self.hub.release(later.into_iter().map(|(envelope, _)| envelope));
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.outbox.writing.lock() = (0, None);
        if !self.letters.is_empty() {
            let mut queue = self.outbox.queue.lock();
            for letter in self.letters.drain(..).rev() {
                queue.push_front(letter);
            }
            self.outbox.added.notify_one();
        }
    }
}
