//! How far a stream was read: [`Progress`], and the task that stores it, [`Keeper`].
//!
//! A stream takes nothing back, and no other consumer gets what this one leaves undone. So a message stays in hand
//! when the channel goes that delivered it: the acks on the channel are for credit alone, and what is done is what
//! [`Offsets`] says. The position is stored once a second while it moves, sooner after many settlements, and at the
//! end of a drain before the last settlements are answered for. A process that is killed repeats what it had settled
//! since, and loses nothing.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::types::{AMQPValue, ShortString};
use millstream_core::{Outcome, Outgoing, Settle, Settlement, Ticket, rt};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::dial::Dial;
use crate::inbox::{Inbox, Want};
use crate::offsets::{Arrival, Delivery, Offsets};
use crate::position::Place;
use crate::publisher::{Fate, Publisher, Route};
use crate::reader::backoff;
use crate::settings::Begin;
use crate::trouble::Trouble;

/// How often the position is stored.
const EVERY: Duration = Duration::from_secs(1);
/// After how many settlements it is stored sooner.
const MANY: usize = 10_000;
/// How long the broker may be silent while it stores one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last one may take.
const LAST: Duration = Duration::from_secs(2);

/// How far one reader of a stream is.
#[derive(Debug)]
pub(crate) struct Progress {
    place: Place,
    begin: Begin,
    state: Mutex<State>,
    stored: watch::Sender<Stored>,
    /// The consumer has to go back for what was given back.
    back: Notify,
    /// The position is to be stored now.
    urgent: Notify,
}

#[derive(Debug, Default)]
struct State {
    offsets: Offsets,
    /// Settlements since the position was stored.
    settled: usize,
}

/// What the broker has, and how often that was tried to change.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    position: Option<u64>,
    tries: u64,
    failed: bool,
}

impl Progress {
    pub(crate) fn new(place: Place, begin: Begin) -> Self {
        Self {
            place,
            begin,
            state: Mutex::default(),
            stored: watch::Sender::default(),
            back: Notify::new(),
            urgent: Notify::new(),
        }
    }

    /// Where the position is kept.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Finds out where to begin. Before anything was delivered.
    pub(crate) async fn recall(&self, channel: &Channel) -> Result<(), Trouble> {
        let stored = self.place.recall(channel).await?;
        let begin = match self.begin {
            Begin::At(offset) => Some(offset),
            Begin::Found(_) => None,
        };
        self.state.lock().offsets = Offsets::at(stored.or(begin));
        self.stored.send_modify(|now| now.position = stored);
        self.urgent.notify_one();
        match stored {
            Some(offset) => info!(offset, queue = self.place.queue().as_str(), "the stored position"),
            None => info!(
                queue = self.place.queue().as_str(),
                "no position is stored: reading begins as the settings have it"
            ),
        }
        Ok(())
    }

    // === for the reader

    /// Where a new consumer is to begin, as the broker has it, and whether something must come from there at once.
    ///
    /// It begins with one message too many, which was there once. If not even that one comes, the stream is another
    /// than it was; the broker would say nothing, and keep back what is published until the old offset is reached.
    pub(crate) fn resume(&self) -> (AMQPValue, bool) {
        let offset = self.state.lock().offsets.resume();
        match (offset, &self.begin) {
            (None, Begin::Found(found)) => (found.clone(), false),
            (None, Begin::At(offset)) => (number(*offset), false),
            (Some(offset), begin) => {
                let was_there = offset > 0 && *begin != Begin::At(offset);
                (number(offset.saturating_sub(1)), was_there)
            }
        }
    }

    /// Why nothing comes although something must.
    pub(crate) fn is_another(&self) -> String {
        format!(
            "the stream ends before the stored position: if it was made anew, stop the pipeline and delete queue `{}`",
            self.place.queue()
        )
    }

    /// Whether the consumer has to begin anew, further back.
    pub(crate) fn has_to_go_back(&self) -> bool {
        self.state.lock().offsets.has_to_go_back()
    }

    /// Waits until the consumer may have to go back.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn back(&self) {
        self.back.notified().await;
    }

    /// Something was delivered. Says whether it is to be handed out.
    pub(crate) fn arrive(&self, offset: u64, ticket: Ticket) -> bool {
        let Arrival { wanted, vanished } = self.state.lock().offsets.arrive(offset, delivery(&ticket));
        if vanished > 0 {
            warn!(
                messages = vanished,
                before = offset,
                "messages that were given back are gone from the stream: its retention was faster"
            );
        }
        wanted
    }

    /// Whether a position is stored. Until then a process that ends would begin somewhere else next time, where
    /// that is not a number; so nothing is handed out.
    pub(crate) fn is_anchored(&self) -> bool {
        self.stored.borrow().position.is_some()
    }

    /// Waits until a position is stored.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn anchored(&self) {
        self.urgent.notify_one();
        let mut stored = self.stored.subscribe();
        // The sender is here.
        stored.wait_for(|stored| stored.position.is_some()).await.ok();
    }

    // === for the acknowledger

    /// Decides about these, and says of each whether it was in hand.
    pub(crate) fn settle(&self, settlements: &[Settle], mut each: impl FnMut(&Settle, Outcome)) {
        let mut state = self.state.lock();
        for settle in settlements {
            let delivery = delivery(&settle.ticket);
            let was_in_hand = match settle.settlement {
                Settlement::Ack | Settlement::Reject(_) => state.offsets.settle(delivery),
                // Nothing here can hold it back, so what is to come later comes again at once.
                Settlement::Release | Settlement::Retry { .. } => state.offsets.release(delivery),
            };
            state.settled += 1;
            each(
                settle,
                if was_in_hand {
                    Outcome::Sent
                } else {
                    Outcome::Stale
                },
            );
        }
        if state.settled >= MANY {
            self.urgent.notify_one();
        }
        if state.offsets.has_to_go_back() {
            self.back.notify_one();
        }
    }

    /// Has the position stored. Says whether the broker has what it is now.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn store(&self) -> bool {
        let goal = self.state.lock().offsets.position();
        let mut stored = self.stored.subscribe();
        loop {
            let Stored { position, tries, .. } = *stored.borrow_and_update();
            if position >= goal {
                return true;
            }
            // One that is under way may have begun before.
            self.urgent.notify_one();
            let tried = stored.wait_for(|stored| stored.tries > tries).await;
            if tried.is_ok_and(|stored| stored.failed) {
                return false;
            }
        }
    }
}

fn delivery(ticket: &Ticket) -> Delivery {
    (ticket.generation, ticket.sequence)
}

fn number(offset: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX))
}

/// The task that stores the position, over a connection of its own: the broker stops reading from one that publishes
/// when it is short of memory.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) dial: Dial,
    pub(crate) progress: Arc<Progress>,
    pub(crate) inbox: Arc<Inbox>,
}

impl Keeper {
    /// Stores it until both sides are gone, and then once more.
    pub(crate) async fn run(self) {
        let mut publisher = None;
        let mut failures = 0;
        let mut wants = self.inbox.wants();
        loop {
            let pace = async {
                if failures > 0 {
                    return rt::sleep(backoff(failures)).await;
                }
                tokio::select! {
                    biased;
                    () = self.progress.urgent.notified() => {}
                    () = rt::sleep(EVERY) => {}
                }
            };
            tokio::select! {
                biased;
                _ = wants.wait_for(|want| *want == Want::Goodbye) => break,
                () = pace => {}
            }
            let goodbye = async {
                wants.wait_for(|want| *want == Want::Goodbye).await.ok();
                rt::sleep(LAST).await;
            };
            let stored = tokio::select! {
                biased;
                stored = self.store(&mut publisher) => stored,
                () = goodbye => return,
            };
            if failures > 0 || stored.is_err() {
                self.inbox
                    .report(Inbox::KEEPER, stored.as_ref().err().map(String::as_str));
            }
            failures = if stored.is_err() { failures + 1 } else { 0 };
        }
        if !matches!(timeout(LAST, self.store(&mut publisher)).await, Ok(Ok(()))) {
            warn!("the last position could not be stored: some messages come again");
        }
    }

    /// Stores the position if it has moved.
    async fn store(&self, publisher: &mut Option<Publisher>) -> Result<(), String> {
        let progress = &*self.progress;
        let position = {
            let mut state = progress.state.lock();
            state.settled = 0;
            state.offsets.position()
        };
        let stored = match position {
            Some(position) if progress.stored.borrow().position < Some(position) => {
                self.publish(publisher, position).await
            }
            _ => Ok(()),
        };
        progress.stored.send_modify(|now| {
            now.tries += 1;
            now.failed = stored.is_err();
            if stored.is_ok() {
                now.position = position.max(now.position);
            }
        });
        stored.map_err(|why| {
            format!(
                "the position cannot be stored in queue `{}`: {why}",
                progress.place.queue()
            )
        })
    }

    async fn publish(&self, publisher: &mut Option<Publisher>, position: u64) -> Result<(), String> {
        // Taken out, so that none is left behind that failed or was dropped.
        let mut open = match publisher.take().filter(Publisher::is_open) {
            Some(open) => open,
            None => {
                let open = Publisher::open(&self.dial, PATIENCE)
                    .await
                    .map_err(|error| error.to_string())?;
                let declaring = self.progress.place.declare(open.channel());
                match timeout(PATIENCE, declaring).await {
                    Ok(declared) => declared.map_err(|trouble| trouble.text)?,
                    Err(_) => return Err(format!("no answer within {PATIENCE:?}")),
                }
                open
            }
        };
        let message = Outgoing::new(position.to_string());
        let queue = self.progress.place.queue();
        let route = |_: &Outgoing| {
            Ok(Route {
                exchange: ShortString::default(),
                routing_key: queue.clone(),
            })
        };
        let fates = open
            .publish(std::slice::from_ref(&message), route)
            .await
            .map_err(|error| error.0)?;
        match fates.into_iter().next() {
            Some(Fate::Confirmed) => {
                *publisher = Some(open);
                Ok(())
            }
            Some(Fate::Unroutable) => Err("it is gone, and is declared anew".to_owned()),
            Some(Fate::Refused(why) | Fate::Failed(why)) => Err(why),
            None => Err("the broker said nothing of it".to_owned()),
        }
    }
}
