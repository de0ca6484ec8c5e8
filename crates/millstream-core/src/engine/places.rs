//! The limits on what is in flight, counted per place and generation (P4).

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::connector::Credit;
use crate::message::OriginId;
use crate::rt::{self, Instant};
use crate::spec::Limits;
use crate::ticket::{Scope, Ticket};

#[derive(Debug)]
pub(crate) struct Places {
    limits: Limits,
    state: Mutex<State>,
    /// Told whenever places are given back.
    pub(crate) freed: Notify,
}

#[derive(Debug)]
struct State {
    messages: usize,
    bytes: usize,
    by_scope: FxHashMap<(OriginId, u32), usize>,
    /// When something last arrived or was settled, or the source came up; nothing while it is down.
    quiet_since: Option<Instant>,
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                messages: 0,
                bytes: 0,
                by_scope: FxHashMap::default(),
                quiet_since: None,
            }),
            freed: Notify::new(),
        }
    }

    /// What a source may fetch now; nothing while a limit is reached.
    pub(crate) fn credit(&self) -> Option<Credit> {
        let state = self.state.lock();
        let messages = self.limits.in_flight.get().saturating_sub(state.messages);
        let bytes = self.limits.bytes.get().saturating_sub(state.bytes);
        (messages > 0 && bytes > 0).then_some(Credit { messages, bytes })
    }

    /// Occupies a place for each.
    pub(crate) fn occupy<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) {
        let mut state = self.state.lock();
        if let Some(since) = &mut state.quiet_since {
            *since = rt::now();
        }
        by_run(tickets, |scope, messages, bytes| {
            state.messages += messages;
            state.bytes += bytes;
            *state.by_scope.entry(scope).or_default() += messages;
        });
    }

    /// Gives back the place of each; there must be one.
    pub(crate) fn free<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) {
        {
            let mut state = self.state.lock();
            by_run(tickets, |scope, messages, bytes| {
                state.messages -= messages;
                state.bytes -= bytes;
                if let Some(held) = state.by_scope.get_mut(&scope) {
                    *held -= messages;
                    if *held == 0 {
                        state.by_scope.remove(&scope);
                    }
                }
            });
            if let Some(since) = &mut state.quiet_since {
                *since = rt::now();
            }
        }
        self.freed.notify_waiters();
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

    /// Since when nothing has arrived, while nothing is in flight and the source can be read.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.quiet_since.filter(|_| state.messages == 0)
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

/// Sums up runs of the same place and generation, as which tickets mostly come.
fn by_run<'a>(
    tickets: impl Iterator<Item = &'a Ticket>,
    mut each: impl FnMut((OriginId, u32), usize, usize),
) {
    let mut run: Option<((OriginId, u32), usize, usize)> = None;
    for ticket in tickets {
        let scope = (ticket.origin, ticket.generation);
        match &mut run {
            Some((same, messages, bytes)) if *same == scope => {
                *messages += 1;
                *bytes += ticket.weight as usize;
            }
            _ => {
                if let Some((scope, messages, bytes)) = run.replace((scope, 1, ticket.weight as usize)) {
                    each(scope, messages, bytes);
                }
            }
        }
    }
    if let Some((scope, messages, bytes)) = run {
        each(scope, messages, bytes);
    }
}
