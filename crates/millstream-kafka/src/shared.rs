//! What the poll thread, the source and the acknowledger share: [`Shared`].
//!
//! # Locks
//!
//! librdkafka calls [`Signal::raise`] with locks of its own held. So the signal has a lock to itself, under which nothing
//! is called, and the state is never locked around a call to librdkafka.

pub(crate) mod transactional;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_core::{Chunk, Credit, Message, OriginId, Outcome, Scope, Settle, Settlement, Ticket};
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use crate::metadata;
use crate::offsets::{Arrival, Offsets};

/// Generations of this process: no two assignments have the same.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// How far the poll thread reads ahead of the engine.
const AHEAD: (usize, usize) = (1_000, 1 << 20);

/// Wakes the poll thread.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.raised.lock() = true;
        self.changed.notify_one();
    }

    /// Waits until it is raised, but not for longer than this.
    pub(crate) fn wait(&self, most: Duration) {
        let mut raised = self.raised.lock();
        if !*raised {
            self.changed.wait_for(&mut raised, most);
        }
        *raised = false;
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) signal: Signal,
    /// Something to read has come, or there will be nothing more.
    pub(crate) arrived: Notify,
    /// The source and the acknowledger are gone.
    pub(crate) closing: Notify,
    ended: Condvar,
    /// The most offsets that are kept for a partition.
    window: usize,
    /// All that is settled beyond a mark must be told beside it: nothing is handed out that would not fit there.
    tells_all: bool,
}

#[derive(Debug, Default)]
struct State {
    buffer: VecDeque<(Ticket, Message)>,
    buffered: usize,
    assignments: FxHashMap<OriginId, Assignment>,
    /// How often partitions have come and gone.
    rebalances: u64,
    phase: Phase,
    /// Partitions are being given back, and all of this will be committed before they are.
    revoking: bool,
    /// Whoever waits for a commit of all that is settled now.
    commits: Vec<oneshot::Sender<bool>>,
    /// The thread has ended, and why if nobody told it to.
    ended: Option<Option<String>>,
}

/// How far a member has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Running,
    /// Nothing is read any more; settlements are answered once they are committed.
    Draining,
    /// The member leaves its group.
    Closing,
}

#[derive(Debug)]
struct Assignment {
    place: Place,
    generation: u32,
    offsets: Offsets<Message>,
    /// What was last sent to be committed.
    committed: Option<(u64, String)>,
    /// It has too many offsets in memory: nothing is fetched from it.
    stuck: bool,
    /// Read, and not to be handed out before others are settled.
    held: VecDeque<Message>,
}

impl Assignment {
    /// The next of what was read, if there is room for it.
    fn next_held(&mut self, tells_all: bool) -> Option<Message> {
        if tells_all && !self.may_go_on() {
            return None;
        }
        self.held.pop_front()
    }

    fn may_go_on(&self) -> bool {
        let next = self.held.front();
        next.is_some_and(|message| self.offsets.has_room(message.position))
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
}

impl Place {
    pub(crate) fn name(&self) -> String {
        format!("{}[{}]", self.topic, self.partition)
    }
}

/// What is to be committed for one partition.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) place: Place,
    pub(crate) offset: u64,
    pub(crate) metadata: String,
}

/// Messages that came from one partition one after the other.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) origin: OriginId,
    pub(crate) messages: Vec<Message>,
}

/// What came of handing over a batch.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// These hold too many offsets in memory now.
    pub(crate) stuck: Vec<Place>,
    /// These assignments ended because their logs were made anew.
    pub(crate) lost: Vec<Scope>,
}

impl Shared {
    pub(crate) fn new(window: usize, tells_all: bool) -> Self {
        Self {
            state: Mutex::default(),
            signal: Signal::default(),
            arrived: Notify::new(),
            closing: Notify::new(),
            ended: Condvar::new(),
            window,
            tells_all,
        }
    }

    // === the thread's

    pub(crate) fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// How many more messages may be read ahead.
    pub(crate) fn room(&self) -> usize {
        let state = self.state.lock();
        let (messages, bytes) = AHEAD;
        if state.phase != Phase::Running || state.buffered >= bytes {
            return 0;
        }
        messages.saturating_sub(state.buffer.len())
    }

    /// Messages read ahead and not handed out.
    pub(crate) fn ahead(&self) -> usize {
        self.state.lock().buffer.len()
    }

    pub(crate) fn assign(&self, origin: OriginId, place: Place, committed: Option<u64>, text: &str) {
        let done = committed.map_or_else(Vec::new, |offset| metadata::decode(offset, text));
        let assignment = Assignment {
            place,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            offsets: Offsets::new(committed, done),
            committed: committed.map(|offset| (offset, text.to_owned())),
            stuck: false,
            held: VecDeque::new(),
        };
        let mut state = self.state.lock();
        state.rebalances += 1;
        state.assignments.insert(origin, assignment);
    }

    /// Hands over what was read.
    pub(crate) fn take(&self, runs: Vec<Run>) -> Taken {
        let mut taken = Taken::default();
        let mut state = self.state.lock();
        let State {
            buffer,
            buffered,
            assignments,
            ..
        } = &mut *state;
        for Run { origin, messages } in runs {
            if let Some(assignment) = assignments.get_mut(&origin) {
                assignment.held.extend(messages);
            }
        }
        for (&origin, assignment) in assignments.iter_mut().filter(|(_, one)| !one.held.is_empty()) {
            while let Some(mut message) = assignment.next_held(self.tells_all) {
                let offset = message.position;
                message.origin = origin;
                let mut arrival = assignment.offsets.arrive(offset, || message.clone());
                if arrival == Arrival::Backwards {
                    warn!(
                        partition = assignment.place.name(),
                        offset, "the log was cut or made anew: what was read of it is read again"
                    );
                    taken.lost.push(Scope::Origin(origin, assignment.generation));
                    withdraw(buffer, buffered, origin);
                    assignment.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
                    assignment.offsets = Offsets::new(None, Vec::new());
                    arrival = assignment.offsets.arrive(offset, || message.clone());
                }
                if arrival == Arrival::New {
                    *buffered += message.size();
                    buffer.push_back((Ticket::new(assignment.generation, origin, offset), message));
                }
            }
            let full = assignment.offsets.len() >= self.window || !assignment.held.is_empty();
            if full && !assignment.stuck {
                assignment.stuck = true;
                taken.stuck.push(assignment.place.clone());
            }
        }
        drop(state);
        self.arrived.notify_one();
        taken
    }

    /// The partitions that were stuck and are no longer.
    pub(crate) fn freed(&self) -> Vec<Place> {
        self.state
            .lock()
            .assignments
            .values_mut()
            .filter(|assignment| assignment.stuck && self.is_free(assignment))
            .map(|assignment| {
                assignment.stuck = false;
                assignment.place.clone()
            })
            .collect()
    }

    /// Whether it may be fetched from again.
    fn is_free(&self, assignment: &Assignment) -> bool {
        let told = !self.tells_all || assignment.offsets.has_plenty();
        told && assignment.held.is_empty() && assignment.offsets.len() <= self.window / 2
    }

    /// Whether anything that was read is held back and need not be any more.
    pub(crate) fn is_holding_back(&self) -> bool {
        let state = self.state.lock();
        state.assignments.values().any(Assignment::may_go_on)
    }

    /// The partitions that may be fetched from.
    pub(crate) fn fetchable(&self) -> Vec<Place> {
        let state = self.state.lock();
        let free = state.assignments.values().filter(|assignment| !assignment.stuck);
        free.map(|assignment| assignment.place.clone()).collect()
    }

    /// What has come to be settled and was not sent to be committed, of these partitions or of all. It counts as sent.
    pub(crate) fn uncommitted(&self, of: Option<&[OriginId]>) -> Vec<Commit> {
        let mut commits = Vec::new();
        for (origin, assignment) in &mut self.state.lock().assignments {
            if of.is_some_and(|of| !of.contains(origin)) {
                continue;
            }
            let Some(offset) = assignment.offsets.mark() else {
                continue;
            };
            let metadata = metadata::encode(offset, &assignment.offsets.settled());
            let unchanged = assignment
                .committed
                .as_ref()
                .is_some_and(|(committed, text)| *committed == offset && *text == metadata);
            if !unchanged {
                assignment.committed = Some((offset, metadata.clone()));
                commits.push(Commit {
                    place: assignment.place.clone(),
                    offset,
                    metadata,
                });
            }
        }
        commits
    }

    /// These did not come to be committed.
    pub(crate) fn commit_failed(&self, commits: &[Commit]) {
        for assignment in self.state.lock().assignments.values_mut() {
            if commits.iter().any(|commit| commit.place == assignment.place) {
                assignment.committed = None;
            }
        }
    }

    /// Whoever has asked for a commit since the last call.
    pub(crate) fn asked_for_commit(&self) -> Vec<oneshot::Sender<bool>> {
        std::mem::take(&mut self.state.lock().commits)
    }

    /// Nothing more of these is handed out; the scopes of those that are assigned.
    pub(crate) fn stop(&self, origins: &[OriginId]) -> Vec<Scope> {
        let mut state = self.state.lock();
        state.revoking = true;
        let State {
            buffer,
            buffered,
            assignments,
            ..
        } = &mut *state;
        let mut scopes = Vec::new();
        for origin in origins {
            withdraw(buffer, buffered, *origin);
            let assignment = assignments.get(origin);
            scopes.extend(assignment.map(|assignment| Scope::Origin(*origin, assignment.generation)));
        }
        scopes
    }

    /// From here on, settlements for these are stale.
    pub(crate) fn unassign(&self, origins: &[OriginId]) {
        let mut state = self.state.lock();
        state.revoking = false;
        state.rebalances += 1;
        for origin in origins {
            state.assignments.remove(origin);
        }
    }

    /// The thread has ended; the first to say so says why.
    pub(crate) fn end(&self, why: Option<String>) {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return;
        }
        state.assignments.clear();
        state.commits.clear();
        state.ended = Some(why);
        drop(state);
        self.ended.notify_all();
        self.arrived.notify_one();
    }

    // === the source's

    /// Moves what was read into the chunk.
    pub(crate) fn read(&self, credit: Credit, chunk: &mut Chunk) {
        let mut state = self.state.lock();
        while chunk.len() < credit.messages && chunk.bytes() < credit.bytes {
            let Some((ticket, message)) = state.buffer.pop_front() else {
                break;
            };
            state.buffered -= message.size();
            chunk.push(ticket, message);
        }
        drop(state);
        if !chunk.is_empty() {
            self.signal.raise();
        }
    }

    /// Whether the thread has ended, and why if nobody told it to.
    pub(crate) fn ended(&self) -> Option<Option<String>> {
        self.state.lock().ended.clone()
    }

    /// Nothing more is handed out.
    pub(crate) fn drain(&self) {
        let mut state = self.state.lock();
        state.phase = state.phase.max(Phase::Draining);
        state.buffer.clear();
        state.buffered = 0;
        drop(state);
        self.signal.raise();
    }

    /// Asks for a commit of what is settled; the answer says whether all of it was committed. None where it need not
    /// be waited for.
    pub(crate) fn commit(&self) -> Option<oneshot::Receiver<bool>> {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state.lock();
        if state.revoking || state.ended.is_some() {
            return None;
        }
        state.commits.push(answer);
        drop(state);
        self.signal.raise();
        Some(answered)
    }

    /// Has the thread end, and waits for that, but not for longer than this.
    pub(crate) fn close(&self, most: Duration) {
        self.state.lock().phase = Phase::Closing;
        self.closing.notify_one();
        self.signal.raise();
        let mut state = self.state.lock();
        if state.ended.is_none() {
            self.ended.wait_for(&mut state, most);
        }
    }

    // === the acknowledger's

    /// Settles what is still assigned.
    pub(crate) fn settle(&self, settlements: &[Settle], mut answer: impl FnMut(&Settle, Outcome)) {
        let (mut free, mut again) = (false, Vec::new());
        let mut state = self.state.lock();
        let running = state.phase == Phase::Running;
        for settle in settlements {
            let ticket = settle.ticket;
            let assignment = state
                .assignments
                .get_mut(&ticket.origin)
                .filter(|assignment| assignment.generation == ticket.generation);
            let Some(assignment) = assignment else {
                answer(settle, Outcome::Stale);
                continue;
            };
            match settle.settlement {
                Settlement::Ack | Settlement::Reject(_) => assignment.offsets.settle(ticket.sequence),
                // It stays unsettled, and is handed out again from memory: the broker hands out positions, and
                // would have to be asked for all that follows too.
                Settlement::Release | Settlement::Retry { .. } if running => {
                    let message = assignment.offsets.out(ticket.sequence).cloned();
                    again.extend(message.map(|message| (ticket, message)));
                }
                Settlement::Release | Settlement::Retry { .. } => {}
            }
            free |= assignment.stuck && (self.is_free(assignment) || assignment.may_go_on());
            answer(settle, Outcome::Sent);
        }
        // In front of what follows them.
        again.sort_by_key(|(ticket, _)| (ticket.origin, ticket.sequence));
        let came_back = !again.is_empty();
        for (ticket, message) in again.into_iter().rev() {
            state.buffered += message.size();
            state.buffer.push_front((ticket, message));
        }
        drop(state);
        if came_back {
            self.arrived.notify_one();
        }
        if free {
            self.signal.raise();
        }
    }
}

/// Takes out what was read ahead of a partition.
fn withdraw(buffer: &mut VecDeque<(Ticket, Message)>, buffered: &mut usize, origin: OriginId) {
    buffer.retain(|(ticket, message)| {
        let keep = ticket.origin != origin;
        if !keep {
            *buffered -= message.size();
        }
        keep
    });
}
