//! The ready queue: what may run now, what waits in its lane, and what is parked until its next attempt.
//!
//! One lock guards it; it is taken once per chunk admitted, once per take and once per take finished, never once
//! per message.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::budget::Budget;
use super::envelope::{Envelope, LaneId};
use super::lanes::{Lanes, Outside};
use super::parked::Parked;
use super::returning::Returning;
use super::sentinels::{Sentinel, Sentinels};
use super::stall::Named;
use super::unordered::Unordered;
use crate::mutants::{Mutant, mutant};
use crate::ordering::Ordering;
use crate::rt::{self, Instant};

#[derive(Debug)]
pub(crate) struct Ready {
    sentinels: Arc<Sentinels>,
    state: Mutex<State>,
    /// Workers that found nothing to take wait here.
    takers: Notify,
    /// The timer task waits here for an earlier due time.
    pub(crate) parked_sooner: Notify,
    /// Intake waits here until there is little left to take.
    hungry: Notify,
    /// Told whenever messages are taken out of lanes.
    pub(crate) lane_room: Notify,
}

/// Messages in the queue beyond which reading on gains nothing, if enough of them may run: they would only go cold
/// before their turn.
const PLENTY: usize = 1024;

/// How many that may run are enough, for each worker.
const ENOUGH: usize = 16;

#[derive(Debug, Default)]
struct State {
    unordered: Unordered,
    lanes: Lanes,
    parked: Parked,
    /// Messages that wait for what comes of another one: they hold their lanes and places, and no worker.
    aside: Vec<Envelope>,
    /// Taken and not yet finished.
    running: usize,
    /// Seats that may take, from the first; none once it is closed.
    seats: usize,
    /// Workers that live.
    workers: usize,
    /// Workers that wait for something to take.
    idle: usize,
    /// Workers that wait for their handler.
    away: usize,
    /// Whether a lane's turn is next where one message is taken, and both lanes and unordered ones may run.
    lane_next: bool,
    /// The round of probes at the last look.
    round: u32,
    /// Messages that may run of which there shall not be more, where that is bounded.
    enough: Option<usize>,
}

/// What goes back to the source, and what must go with it.
#[derive(Debug)]
pub(crate) struct Following<'a>(pub(crate) &'a Returning, pub(crate) Vec<Envelope>);

/// How a message left its worker.
#[derive(Debug)]
pub(crate) enum Left {
    /// To be tried again then; it keeps its lane.
    Parked(Instant, Envelope),
    /// To wait for what comes of another message; it keeps its lane.
    Aside(Envelope),
    /// Not run: back to the front; it keeps its lane.
    Back(Envelope),
    /// Its run does not count: it may run again after all others that may now; it keeps its lane.
    Behind(Envelope),
    /// Given back to the source for later: what waits behind it leaves with it, so that its key stays in order.
    Withdrawn(LaneId),
}

/// What is in the queue, by where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) ready: usize,
    pub(crate) waiting: usize,
    pub(crate) parked: usize,
    pub(crate) aside: usize,
    pub(crate) running: usize,
    pub(crate) lanes: usize,
}

impl Load {
    pub(crate) fn is_empty(&self) -> bool {
        self.ready + self.waiting + self.parked + self.aside + self.running == 0
    }
}

impl Ready {
    /// An empty queue from which so many workers may take.
    pub(crate) fn new(workers: usize, sentinels: Arc<Sentinels>) -> Self {
        let state = State {
            seats: workers,
            ..State::default()
        };
        Self {
            sentinels,
            state: Mutex::new(state),
            takers: Notify::new(),
            parked_sooner: Notify::new(),
            hungry: Notify::new(),
            lane_room: Notify::new(),
        }
    }

    /// So many workers may take from now on, unless it is closed.
    pub(crate) fn resize(&self, workers: usize) {
        {
            let mut state = self.state.lock();
            if state.seats > 0 {
                state.seats = workers;
            }
        }
        // Those that are too many end; and intake may have to read more.
        self.wake_takers();
        self.hungry.notify_one();
    }

    /// How many workers may take; none once it is closed.
    pub(crate) fn seats(&self) -> usize {
        self.state.lock().seats
    }

    /// A worker begins: it counts until the guard is dropped.
    pub(crate) fn begin(&self) -> AtWork<'_> {
        self.state.lock().workers += 1;
        AtWork(self)
    }

    /// Takes in messages that are unordered, in chunks of at most so many. Another worker is woken where there are
    /// more than `spare`.
    pub(crate) fn admit(&self, envelopes: &mut Vec<Envelope>, chunk: usize, spare: usize) {
        let messages = envelopes.len();
        let parts = if messages <= chunk {
            // The next one will be about as long.
            vec![std::mem::replace(envelopes, Vec::with_capacity(messages))]
        } else {
            // Each message is moved once, however many parts there are.
            let mut all = envelopes.drain(..);
            (0..messages.div_ceil(chunk))
                .map(|_| all.by_ref().take(chunk).collect())
                .collect()
        };
        let mut state = self.state.lock();
        state.unordered.admit(parts.into_iter(), messages);
        self.wake(&state, spare);
    }

    /// Takes in messages in order. Those whose lane has `per_key` waiting go to `full`, where there is one; where
    /// there is none, admission ends at the first such message, and it and the rest stay. Those of which an earlier one
    /// is on its way back to the source follow it. `spare` as for [`admit`](Self::admit).
    pub(crate) fn admit_ordered(
        &self,
        envelopes: &mut Vec<Envelope>,
        ordering: &Ordering,
        per_key: usize,
        mut full: Option<&mut Vec<Envelope>>,
        following: &mut Following<'_>,
        spare: usize,
    ) {
        let mut state = self.state.lock();
        // Asked under the lock: what begins to leave from now on takes along what is in its lane.
        let any_follow = following.0.has_followed();
        let mut chunk = envelopes.drain(..);
        let mut rest = Vec::new();
        for envelope in chunk.by_ref() {
            let follows = |order| any_follow && following.0.is_followed(order);
            match (state.lanes.admit(ordering, envelope, per_key, follows), &mut full) {
                (Ok(()), _) => {}
                (Err(Outside::Unordered(envelope)), _) => state.unordered.push(envelope),
                (Err(Outside::Follows(envelope)), _) => {
                    following.0.add_followed(envelope.ticket, envelope.order);
                    following.1.push(envelope);
                }
                (Err(Outside::Full(envelope)), Some(full)) => full.push(envelope),
                (Err(Outside::Full(envelope)), None) => {
                    rest.push(envelope);
                    break;
                }
            }
        }
        rest.extend(chunk);
        envelopes.append(&mut rest);
        self.wake(&state, spare);
    }

    /// Takes up to `most` ready messages into `taken`, waiting for the first; false once nobody in this seat may take.
    ///
    /// `allowed` says how many may be taken right now, and can ask whether the first of them is doubtful, which has one that
    /// is not go first where there is one. It is asked again whenever something changes, and
    /// [`wake_takers`](Self::wake_takers) says that its answer may have. While more than `spare` remain, another
    /// worker is woken.
    pub(crate) async fn take(
        &self,
        seat: usize,
        taken: &mut VecDeque<Envelope>,
        most: impl Fn() -> usize,
        spare: impl Fn() -> usize,
        mut allowed: impl FnMut(usize, &mut dyn FnMut(u32) -> bool) -> usize,
    ) -> bool {
        loop {
            let mut notified = std::pin::pin!(self.takers.notified());
            {
                let mut state = self.state.lock();
                if seat >= state.seats {
                    // It may have been woken for something that another has to take now.
                    self.wake(&state, 0);
                    return false;
                }
                let ready = state.ready();
                if ready > 0 {
                    let most = most().min(ready);
                    let number = allowed(most, &mut |round| !state.bring_undoubted_forward(round));
                    if number > 0 {
                        let had_plenty = state.has_plenty();
                        let in_lanes = state.lanes.messages();
                        state.take(number, taken);
                        if had_plenty && !state.has_plenty() {
                            self.hungry.notify_one();
                        }
                        if state.lanes.messages() < in_lanes {
                            self.lane_room.notify_one();
                        }
                        // A busy worker wakes the next one, so that an admission wakes one and not all.
                        self.wake(&state, spare());
                        let inverted = state.lanes.inverted();
                        drop(state);
                        if let Some((times, position)) = inverted {
                            let known = format_args!("the first at position {position}");
                            self.sentinels.fire(Sentinel::KeyInversion, times, &known);
                        }
                        return true;
                    }
                }
                state.idle += 1;
                notified.as_mut().enable();
            }
            let idle = Idle(self);
            notified.await;
            drop(idle);
        }
    }

    /// Wakes an idle worker if there are more than so many to take, or if nobody else would take them. What those
    /// at work will have done before another is awake is left to them.
    fn wake(&self, state: &State, spare: usize) {
        let at_work = state.workers - state.idle - state.away;
        let spare = if at_work == 0 { 0 } else { spare };
        if state.idle > 0 && state.ready() > spare {
            self.takers.notify_one();
        }
    }

    /// Waits until there is less to take than would be plenty. Gives how much may be added: `enough` says, for so many
    /// workers, how much may be there.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn hungry(&self, enough: impl Fn(usize) -> Option<usize>) -> usize {
        loop {
            let mut hungry = std::pin::pin!(self.hungry.notified());
            hungry.as_mut().enable();
            {
                let mut state = self.state.lock();
                state.enough = enough(state.seats);
                if !state.has_plenty() {
                    return state.enough.map_or(usize::MAX, |enough| enough - state.ready());
                }
            }
            hungry.await;
        }
    }

    /// A worker waits for its handler: what it would have taken is left to another. It counts as waiting until the
    /// guard is dropped.
    pub(crate) fn away(&self) -> Away<'_> {
        let mut state = self.state.lock();
        state.away += 1;
        self.wake(&state, 0);
        Away(self)
    }

    /// Asks every idle worker to look again.
    pub(crate) fn wake_takers(&self) {
        self.takers.notify_waiters();
    }

    /// Takes back what left the workers: so many that are settled, in a batcher or given up, whose lanes go on, and
    /// these others. Messages that go back to the front come in reverse order. Gives the followers of what was
    /// withdrawn, to be released.
    #[must_use]
    pub(crate) fn finish(
        &self,
        gone: usize,
        lanes: impl Iterator<Item = LaneId>,
        left: impl Iterator<Item = Left>,
    ) -> Vec<Envelope> {
        let mut sooner = false;
        let mut followers = Vec::new();
        {
            let mut state = self.state.lock();
            state.running -= gone;
            for lane in lanes {
                state.lanes.advance(lane);
            }
            for left in left {
                state.running -= 1;
                match left {
                    Left::Withdrawn(LaneId::NONE) => {}
                    Left::Parked(due, mut envelope) if mutant(Mutant::RetryOvertaken) => {
                        if envelope.lane != LaneId::NONE {
                            state.lanes.advance(envelope.lane);
                            envelope.lane = LaneId::NONE;
                        }
                        sooner |= state.parked.park(due, envelope);
                    }
                    Left::Parked(due, envelope) => sooner |= state.parked.park(due, envelope),
                    Left::Aside(envelope) => state.aside.push(envelope),
                    Left::Back(envelope) => state.put_back(envelope),
                    Left::Behind(envelope) => state.put_behind(envelope),
                    Left::Withdrawn(lane) => {
                        followers.extend(state.lanes.take_followers(lane));
                        state.lanes.advance(lane);
                    }
                }
            }
            self.wake(&state, 0);
        }
        if sooner {
            self.parked_sooner.notify_one();
        }
        if !followers.is_empty() {
            self.lane_room.notify_one();
        }
        followers
    }

    /// Gives back a message that left the queue through a batcher and must go through the processor again.
    ///
    /// Its lane has gone on meanwhile, so it is treated as unordered: only handlers that take their items out
    /// come here, and they forgo order with it.
    pub(crate) fn readmit(&self, due: Instant, mut envelope: Envelope) {
        envelope.lane = LaneId::NONE;
        if self.state.lock().parked.park(due, envelope) {
            self.parked_sooner.notify_one();
        }
    }

    /// Moves what is due to the front of the queue, or behind all others while not all breakers are `closed`, as much of it
    /// as the budget allows. Says when to look again, and how many it holds for the first time.
    pub(crate) fn unpark(&self, budget: &Budget, closed: bool) -> (Option<Instant>, usize) {
        let now = rt::now();
        let mut state = self.state.lock();
        let (due, next, newly_held) = state.parked.take_due(budget, now);
        if closed {
            due.into_iter()
                .rev()
                .for_each(|envelope| state.put_back(envelope));
        } else {
            due.into_iter().for_each(|envelope| state.put_behind(envelope));
        }
        if !mutant(Mutant::LostWakeUp) {
            self.wake(&state, 0);
        }
        (next, newly_held)
    }

    /// Moves those to the front that wait for another message, and that `ready` says need not any more.
    pub(crate) fn bring_back(&self, ready: impl Fn(&Envelope) -> bool) {
        let mut state = self.state.lock();
        let back: Vec<_> = state.aside.extract_if(.., |envelope| ready(envelope)).collect();
        for envelope in back.into_iter().rev() {
            state.put_back(envelope);
        }
        self.wake(&state, 0);
    }

    /// What is in the queue, by where it is.
    pub(crate) fn load(&self) -> Load {
        let state = self.state.lock();
        Load {
            ready: state.ready(),
            waiting: state.lanes.messages() - state.lanes.ready(),
            parked: state.parked.len(),
            aside: state.aside.len(),
            running: state.running,
            lanes: state.lanes.len(),
        }
    }

    /// Whether one may run now that is not doubtful.
    pub(crate) fn has_undoubted(&self, round: u32) -> bool {
        let state = self.state.lock();
        state.unordered.has_undoubted(round) || state.lanes.has_undoubted(round)
    }

    /// When the next one that is parked is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.state.lock().parked.first().map(|(due, _)| due)
    }

    /// What of the queue is first to run, of each lane and of what is unordered, or overdue: for a stall to name.
    pub(crate) fn firsts(&self) -> Vec<Named> {
        let state = self.state.lock();
        let parked = state.parked.first().map(|(_, envelope)| envelope);
        let firsts = state.unordered.first().into_iter().chain(parked);
        firsts.chain(state.lanes.firsts()).map(Named::of).collect()
    }

    /// The key of a message that keeps this lane busy.
    pub(crate) fn key(&self, lane: LaneId) -> Option<Bytes> {
        self.state.lock().lanes.key(lane)
    }

    /// Takes out every message that is not running and that `leave` picks.
    pub(crate) fn remove(&self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let mut state = self.state.lock();
        let mut removed = state.lanes.remove(&leave);
        state.unordered.remove(&leave, &mut removed);
        let gone = state.parked.remove(&leave);
        let aside: Vec<_> = state.aside.extract_if(.., |envelope| leave(envelope)).collect();
        for envelope in gone.into_iter().chain(aside) {
            if envelope.lane != LaneId::NONE {
                state.lanes.advance(envelope.lane);
            }
            removed.push(envelope);
        }
        self.wake(&state, 0);
        if !state.has_plenty() {
            self.hungry.notify_one();
        }
        if !removed.is_empty() {
            self.lane_room.notify_one();
        }
        removed
    }

    /// Takes out what is parked, each with what waits behind it, and later ones follow: its key stays in order that way.
    pub(crate) fn remove_parked(&self, back: &Returning) -> Vec<(Instant, Envelope, VecDeque<Envelope>)> {
        self.lane_room.notify_one();
        let mut state = self.state.lock();
        let parked = state.parked.take_all();
        parked
            .map(|(due, envelope)| {
                let mut followers = VecDeque::new();
                if envelope.lane != LaneId::NONE {
                    followers = state.lanes.take_followers(envelope.lane);
                    let gone = followers.iter().chain([&envelope]);
                    gone.for_each(|gone| back.add_followed(gone.ticket, gone.order));
                    state.lanes.advance(envelope.lane);
                }
                (due, envelope, followers)
            })
            .collect()
    }

    /// Ends every worker once it asks for more.
    pub(crate) fn close(&self) {
        self.state.lock().seats = 0;
        self.wake_takers();
    }
}

impl State {
    /// How many messages may run now.
    fn ready(&self) -> usize {
        self.unordered.messages() + self.lanes.ready()
    }

    /// Whether enough may run for a while. What waits behind one key does not count where few others may run.
    fn has_plenty(&self) -> bool {
        self.enough.is_some_and(|enough| self.ready() >= enough)
            || self.ready() >= ENOUGH * self.seats
                && self.unordered.messages() + self.lanes.messages() >= PLENTY
    }

    /// Takes so many of those that may run, of both kinds alike.
    fn take(&mut self, number: usize, taken: &mut VecDeque<Envelope>) {
        let lanes = self.lanes.ready();
        let from_lanes = match (lanes, self.unordered.messages()) {
            (_, 0) => number,
            (0, _) => 0,
            (_, _) if number == 1 => usize::from(self.is_lanes_turn()),
            (_, unordered) => number
                .div_ceil(2)
                .min(lanes)
                .max(number.saturating_sub(unordered)),
        };
        self.lanes.take(from_lanes, taken);
        self.unordered.take(number - from_lanes, taken);
        self.running += number;
    }

    /// Of one message to take, whether it is a lane's: what is not doubtful goes before what is, and else they take turns.
    fn is_lanes_turn(&mut self) -> bool {
        let round = self.round;
        let doubtful = [self.lanes.first(), self.unordered.first()]
            .map(|first| first.is_some_and(|first| first.is_doubtful(round)));
        match doubtful {
            [true, false] => false,
            [false, true] => true,
            _ => {
                self.lane_next = !self.lane_next;
                self.lane_next
            }
        }
    }

    /// Has one that is not doubtful go before all that are. Says whether there is one.
    fn bring_undoubted_forward(&mut self, round: u32) -> bool {
        self.round = round;
        self.lanes.bring_undoubted_forward(round) | self.unordered.bring_undoubted_forward(round)
    }

    /// This one may run again, before all others.
    fn put_back(&mut self, envelope: Envelope) {
        if envelope.lane == LaneId::NONE {
            self.unordered.put_back(envelope);
        } else {
            self.lanes.put_back(envelope);
        }
    }

    /// This one may run again, after all others.
    fn put_behind(&mut self, envelope: Envelope) {
        if envelope.lane == LaneId::NONE {
            self.unordered.push(envelope);
        } else {
            self.lanes.put_behind(envelope);
        }
    }
}

/// Counts a worker for as long as it lives.
#[derive(Debug)]
pub(crate) struct AtWork<'a>(&'a Ready);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.state.lock().workers -= 1;
    }
}

/// Counts a worker that waits for its handler.
#[derive(Debug)]
pub(crate) struct Away<'a>(&'a Ready);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.state.lock().away -= 1;
    }
}

/// Counts a waiting worker for as long as it waits, also when it is dropped.
struct Idle<'a>(&'a Ready);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.state.lock().idle -= 1;
    }
}
