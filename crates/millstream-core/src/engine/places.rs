//! The limits on what is in flight, counted per place and generation (P4), and how long it has been in flight.

use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::histogram::Histogram;
use super::receipts::Receipts;
use super::sentinels::{Sentinel, Sentinels};
use crate::connector::Credit;
use crate::message::OriginId;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Instant};
use crate::spec::Limits;
use crate::ticket::{Scope, Ticket};

#[derive(Debug)]
pub(crate) struct Places {
    sentinels: Arc<Sentinels>,
    state: Mutex<State>,
    /// From receipt until the broker has answered for the settlement.
    pub(crate) settled_after: Histogram,
    /// Told whenever places are given back.
    pub(crate) freed: Notify,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    messages: usize,
    bytes: usize,
    by_scope: FxHashMap<(OriginId, u32), usize>,
    receipts: Receipts,
    /// When something last arrived or was settled, or the source came up; nothing while it is down.
    quiet_since: Option<Instant>,
    /// Until when nothing arrives of what was given back because of a limit.
    limited_until: Option<Instant>,
    /// Until when nothing is fetched because of the limit that is set.
    fetches_from: Option<Instant>,
}

impl Places {
    pub(crate) fn new(limits: Limits, sentinels: Arc<Sentinels>) -> Self {
        Self {
            sentinels,
            state: Mutex::new(State {
                limits,
                messages: 0,
                bytes: 0,
                by_scope: FxHashMap::default(),
                receipts: Receipts::default(),
                quiet_since: None,
                limited_until: None,
                fetches_from: None,
            }),
            settled_after: Histogram::of_times(),
            freed: Notify::new(),
        }
    }

    /// From now on these limits hold. What is beyond them already goes on, and nothing is fetched meanwhile.
    pub(crate) fn set(&self, limits: Limits) {
        self.state.lock().limits = limits;
        self.freed.notify_waiters();
    }

    /// What a source may fetch now; nothing while a limit is reached.
    pub(crate) fn credit(&self) -> Option<Credit> {
        let state = self.state.lock();
        let messages = state.limits.in_flight.get().saturating_sub(state.messages);
        let bytes = if mutant(Mutant::BytesIgnored) {
            usize::MAX
        } else {
            state.limits.bytes.get().saturating_sub(state.bytes)
        };
        (messages > 0 && bytes > 0).then_some(Credit { messages, bytes })
    }

    /// Occupies a place for each. They were received together, now.
    pub(crate) fn occupy<'a>(&self, tickets: impl Iterator<Item = &'a mut Ticket>) {
        let now = rt::now();
        let mut state = self.state.lock();
        if let Some(since) = &mut state.quiet_since {
            *since = now;
        }
        let before = state.messages;
        let receipt = state.receipts.open(now);
        let stamped = tickets.map(|ticket| {
            ticket.receipt = receipt;
            &*ticket
        });
        by_run(stamped, |run| {
            state.messages += run.messages;
            state.bytes += run.bytes;
            *state.by_scope.entry(run.scope).or_default() += run.messages;
        });
        let received = state.messages - before;
        state.receipts.add(receipt, received);
    }

    /// Gives back the place of each, for whose settlement the broker has answered. There is one, or a sentinel fires.
    pub(crate) fn settled<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) {
        self.free(tickets, Some(&self.settled_after));
    }

    /// Gives back the place of each, which will never be settled; alike.
    pub(crate) fn lost<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) {
        self.free(tickets, None);
    }

    fn free<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>, ages: Option<&Histogram>) {
        let mut twice: Option<(usize, Ticket)> = None;
        {
            let now = rt::now();
            let mut state = self.state.lock();
            by_run(tickets, |mut run| {
                let held = state.by_scope.get(&run.scope).copied().unwrap_or(0);
                let held = held.min(state.receipts.in_flight(run.receipt));
                if let Some(more) = run.messages.checked_sub(held).filter(|more| *more > 0) {
                    let (times, first) = twice.unwrap_or((0, run.first));
                    twice = Some((times + more, first));
                    run.bytes = run.bytes.min(state.bytes) / run.messages * held;
                    run.messages = held;
                    if held == 0 {
                        return;
                    }
                }
                if mutant(Mutant::PlaceTwice) {
                    state.messages = state.messages.saturating_sub(run.messages).max(run.messages);
                }
                state.messages -= run.messages;
                state.bytes = state.bytes.saturating_sub(run.bytes);
                if let Some(held) = state.by_scope.get_mut(&run.scope) {
                    *held -= run.messages;
                    if *held == 0 {
                        state.by_scope.remove(&run.scope);
                    }
                }
                let received = state.receipts.remove(run.receipt, run.messages);
                if let (Some(ages), Some(received)) = (ages, received) {
                    ages.record_time(now.saturating_duration_since(received), run.messages);
                }
            });
            if let Some(since) = &mut state.quiet_since {
                *since = now;
            }
        }
        if let Some((times, first)) = twice {
            self.sentinels
                .fire(Sentinel::DoubleSettlement, times, &format_args!("{first:?}"));
        }
        self.freed.notify_waiters();
    }

    /// When the oldest message in flight was received.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.state.lock().receipts.oldest()
    }

    /// When the delivery with this ticket was received, while it is in flight.
    pub(crate) fn received(&self, ticket: &Ticket) -> Option<Instant> {
        self.state.lock().receipts.received(ticket.receipt)
    }

    /// Messages in flight.
    pub(crate) fn messages(&self) -> usize {
        self.state.lock().messages
    }

    /// Bytes in flight.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// Messages of this scope in flight.
    pub(crate) fn messages_of(&self, scope: Scope) -> usize {
        let held = &self.state.lock().by_scope;
        match scope {
            Scope::Origin(origin, generation) => held.get(&(origin, generation)).copied().unwrap_or(0),
            Scope::Generation(generation) => held
                .iter()
                .filter(|((_, of), _)| *of == generation)
                .map(|(_, messages)| messages)
                .sum(),
        }
    }

    /// Every place and generation that has messages in flight.
    pub(crate) fn scopes(&self) -> Vec<Scope> {
        let mut scopes: Vec<_> = self.state.lock().by_scope.keys().copied().collect();
        scopes.sort_unstable();
        scopes
            .into_iter()
            .map(|(origin, generation)| Scope::Origin(origin, generation))
            .collect()
    }

    /// The source can be read, or cannot.
    pub(crate) fn source_is(&self, up: bool) {
        self.state.lock().quiet_since = up.then(rt::now);
        self.freed.notify_waiters();
    }

    /// Whether the source can be read.
    pub(crate) fn has_source(&self) -> bool {
        self.state.lock().quiet_since.is_some()
    }

    /// What is there is fetched only then, because of the limit that is set, or as soon as there is room.
    pub(crate) fn fetches_from(&self, then: Option<Instant>) {
        self.state.lock().fetches_from = then;
        self.freed.notify_waiters();
    }

    /// What was given back arrives only then, because of a limit: that nothing arrives before says nothing.
    pub(crate) fn limited(&self, until: Instant) {
        let mut state = self.state.lock();
        state.limited_until = state.limited_until.max(Some(until));
    }

    /// Since when nothing has arrived, while nothing is in flight and the source can be read; a later time while a limit
    /// holds back what may be there.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        let since = state.quiet_since.filter(|_| state.messages == 0)?;
        let limits = [state.limited_until, state.fetches_from];
        Some(limits.into_iter().flatten().fold(since, Instant::max))
    }

    /// Waits until the condition holds; it is looked at again whenever places are given back.
    pub(crate) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if condition(self) {
                return;
            }
            freed.await;
        }
    }
}

/// Tickets in a row with the same place, generation and receipt.
struct Run {
    first: Ticket,
    scope: (OriginId, u32),
    receipt: u32,
    messages: usize,
    bytes: usize,
}

/// Sums up runs, as which tickets mostly come.
fn by_run<'a>(tickets: impl Iterator<Item = &'a Ticket>, mut each: impl FnMut(Run)) {
    let mut run: Option<Run> = None;
    for ticket in tickets {
        let scope = (ticket.origin, ticket.generation);
        let bytes = ticket.weight as usize;
        match &mut run {
            Some(run) if run.scope == scope && run.receipt == ticket.receipt => {
                run.messages += 1;
                run.bytes += bytes;
            }
            _ => {
                let next = Run {
                    first: *ticket,
                    scope,
                    receipt: ticket.receipt,
                    messages: 1,
                    bytes,
                };
                if let Some(run) = run.replace(next) {
                    each(run);
                }
            }
        }
    }
    if let Some(run) = run {
        each(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> (Places, Arc<Sentinels>) {
        let sentinels = Sentinels::new("test".into());
        (Places::new(Limits::default(), Arc::clone(&sentinels)), sentinels)
    }

    fn fired(sentinels: &Sentinels) -> u64 {
        sentinels.counts().into_iter().map(|(_, times)| times).sum()
    }

    /// P2: the second answer for a delivery takes nobody else's place away.
    #[tokio::test]
    async fn p2_a_delivery_that_is_settled_twice_fires_the_sentinel_and_frees_one_place() {
        let (places, sentinels) = places();
        let mut tickets = [1, 2].map(|sequence| Ticket::new(1, OriginId::default(), sequence));
        let [first, second] = &mut tickets;
        places.occupy([first].into_iter());
        places.occupy([second].into_iter());
        let [first, second] = &tickets;
        places.settled([first].into_iter());
        assert_eq!((places.messages(), fired(&sentinels)), (1, 0));
        places.settled([first].into_iter());
        assert_eq!((places.messages(), fired(&sentinels)), (1, 1));
        places.settled([second, second].into_iter());
        assert_eq!((places.messages(), fired(&sentinels)), (0, 2));
        places.settled([&Ticket::new(9, OriginId::default(), 3)].into_iter());
        assert_eq!((places.messages(), places.bytes(), fired(&sentinels)), (0, 0, 3));
    }
}
