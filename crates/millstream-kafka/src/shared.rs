//! What the poll thread, the source and the acknowledger share: [`Shared`].
//!
//! # Locks
//!
//! The state is never locked around a call to librdkafka, which has locks of its own. What it calls with those held is
//! [`Signal::raise`](crate::signal::Signal::raise), which does not need the state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use millstream_core::{Chunk, Credit, Message, OriginId, Partition, Scope, rt};
use parking_lot::{Condvar, Mutex};
use rdkafka::Offset;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use crate::ends::Ends;
use crate::gate::Gate;
use crate::metadata;
use crate::offsets::Offsets;
use crate::signal::Signal;
use crate::statistics::End;

mod arrivals;
mod buffer;
mod commits;
mod left;
mod settling;
pub(crate) mod transactional;
mod turns;

use buffer::Buffer;
pub(crate) use commits::Commit;
pub(crate) use left::Left;

/// Generations of this process: no two assignments have the same.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// How far the poll thread reads ahead of the engine: messages, and bytes.
pub(crate) const AHEAD: (usize, usize) = (8_000, 4 << 20);
/// The most messages that go to the engine at once.
const READ: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) signal: Signal,
    /// Something to read has come, or there will be nothing more.
    pub(crate) arrived: Notify,
    /// The source and the acknowledger are gone.
    pub(crate) closing: Notify,
    ended: Condvar,
    rules: Rules,
    /// How often partitions have come and gone. It changes with the state locked.
    rebalances: AtomicU64,
    left: Arc<Left>,
}

/// What goes for every partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Where a partition begins of which the group has committed nothing.
    pub(crate) begins: Offset,
    /// The most offsets that are kept for a partition.
    pub(crate) window: usize,
    /// A rejected message stops its partition.
    pub(crate) halts: bool,
    /// All that is settled beyond a mark must be told beside it: nothing is handed out that would not fit there.
    pub(crate) tells_all: bool,
}

#[derive(Debug, Default)]
struct State {
    buffer: Buffer,
    assignments: FxHashMap<OriginId, Assignment>,
    phase: Phase,
    /// Partitions are being given back, and all of this will be committed before they are.
    revoking: bool,
    /// Nothing of these runs any more, and the next commit is the last of them.
    given_up: Vec<OriginId>,
    /// Whoever waits for a commit of all that is settled now.
    commits: Vec<oneshot::Sender<bool>>,
    /// The thread has ended, and why if nobody told it to.
    ended: Option<Option<String>>,
    /// Some assignment may have suspects: nothing is handed out beside one.
    suspicious: bool,
    /// The suspect that was handed out: from where, in which assignment, and its offset.
    suspect: Option<(OriginId, u32, u64)>,
    /// After a commit has failed: when a note is tried again.
    note_again: Option<rt::Instant>,
    /// Whether a partition came to stand still, or ceased to, since somebody looked.
    halts_changed: bool,
    /// Commits that were not made because they would have passed an unsettled message, until somebody hears of them.
    gaps: Vec<(String, u64, u64)>,
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
    /// What the generation was when it was assigned.
    assigned: u32,
    generation: u32,
    /// The generation before its log was cut last, and where it was.
    cut: Option<(u32, u64)>,
    offsets: Offsets<Message>,
    /// What was last sent to be committed.
    committed: Option<(u64, String)>,
    /// What the group is known to have.
    kept: Option<(u64, String)>,
    /// It has too many offsets in memory: nothing is read from it.
    stuck: bool,
    /// Where the partition ends, once statistics have said so.
    end: Option<End>,
    gate: Gate,
    /// Read, and not taken in before there is room to tell of it.
    outside: VecDeque<(Message, Return)>,
    /// Where fetching has failed last.
    failed_at: Option<Offset>,
}

impl Assignment {
    /// Behind what was read last; where the group has committed before that.
    fn next(&self) -> Option<u64> {
        let outside = self.outside.back().map(|(message, _)| message.position + 1);
        outside.or_else(|| self.offsets.end())
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
}

impl Place {
    pub(crate) fn name(&self) -> String {
        format!("{}[{}]", self.topic, self.partition)
    }
}

/// What a message of a retry topic waits for, and where it was first read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Return {
    pub(crate) due: Option<rt::Instant>,
    pub(crate) home: Option<(OriginId, u64)>,
}

impl Shared {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            state: Mutex::default(),
            signal: Signal::default(),
            arrived: Notify::new(),
            closing: Notify::new(),
            ended: Condvar::new(),
            rules,
            rebalances: AtomicU64::new(0),
            left: Arc::default(),
        }
    }

    // === the thread's

    pub(crate) fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// Messages read ahead and not handed out.
    pub(crate) fn ahead(&self) -> usize {
        let state = self.state.lock();
        let held = state
            .assignments
            .values()
            .map(|assignment| assignment.gate.held() + assignment.outside.len());
        state.buffer.len() + held.sum::<usize>()
    }

    /// Takes note of where a partition ends.
    pub(crate) fn learn(&self, topic: &str, partition: i32, end: End) {
        let mut state = self.state.lock();
        let assigned = state
            .assignments
            .values_mut()
            .find(|assignment| assignment.place.partition == partition && *assignment.place.topic == *topic);
        if let Some(assignment) = assigned {
            assignment.end = Some(end);
        }
    }

    /// The assigned partitions, in the order of their names.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let state = self.state.lock();
        let mut partitions: Vec<_> = state
            .assignments
            .values()
            .map(
                |Assignment {
                     place,
                     offsets,
                     stuck,
                     end,
                     ..
                 }| Partition {
                    topic: Arc::clone(&place.topic),
                    number: u32::try_from(place.partition).unwrap_or_default(),
                    lag: end.and_then(|end| end.lag(offsets.mark(), offsets.len() == 0)),
                    held: *stuck,
                },
            )
            .collect();
        drop(state);
        partitions.sort_by(|a, b| (&a.topic, a.number).cmp(&(&b.topic, b.number)));
        partitions
    }

    /// Takes note of an assignment: what the group has committed and written beside it, where the log ends if that is
    /// known, and whether its messages wait for their time.
    pub(crate) fn assign(
        &self,
        origin: OriginId,
        place: Place,
        committed: Option<(u64, &str)>,
        end: Option<u64>,
        delays: bool,
    ) {
        let (offset, text) = committed.map_or((None, ""), |(offset, text)| (Some(offset), text));
        let (note, done) = offset.map_or_else(Default::default, |offset| metadata::decode(offset, text));
        let left = offset.and_then(|offset| self.left.take(&place, offset, text));
        let note = left.unwrap_or(note);
        let gate = Gate::new(Ends::new(note, offset, end), delays);
        let suspicious = gate.ends.suspects();
        if suspicious {
            warn!(
                partition = place.name(),
                offset, "members ended uncleanly over it again and again: each message runs alone now"
            );
        }
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        let assignment = Assignment {
            place,
            assigned: generation,
            generation,
            cut: None,
            offsets: Offsets::new(offset, done),
            committed: offset.map(|offset| (offset, text.to_owned())),
            kept: offset.map(|offset| (offset, text.to_owned())),
            stuck: false,
            gate,
            end: None,
            outside: VecDeque::new(),
            failed_at: None,
        };
        let mut state = self.state.lock();
        state.suspicious |= suspicious;
        self.rebalances.fetch_add(1, Ordering::Relaxed);
        state.assignments.insert(origin, assignment);
    }

    /// How often partitions have come and gone.
    pub(crate) fn rebalances(&self) -> u64 {
        self.rebalances.load(Ordering::Relaxed)
    }

    /// The assigned partitions, each with where fetching goes on: behind what was read last, where the group has committed,
    /// or where fetching failed first, if any of that is known.
    pub(crate) fn positions(&self) -> Vec<(Place, Option<Offset>)> {
        let state = self.state.lock();
        let of = |assignment: &Assignment| {
            let next = assignment.next().and_then(|next| i64::try_from(next).ok());
            let at = next.map(Offset::Offset).or(assignment.failed_at);
            (assignment.place.clone(), at)
        };
        state.assignments.values().map(of).collect()
    }

    /// Takes note that a fetch has failed, of use where nothing else is known of a position: at an offset, or while the first
    /// was looked for, if that is negative.
    pub(crate) fn failed_at(&self, origin: OriginId, offset: i64) {
        if let Some(assignment) = self.state.lock().assignments.get_mut(&origin) {
            let begins = self.rules.begins;
            assignment.failed_at = Some(if offset < 0 {
                begins
            } else {
                Offset::Offset(offset)
            });
        }
    }

    /// What tells this partition's assignment from those before it.
    pub(crate) fn assigned(&self, origin: OriginId) -> Option<u32> {
        let state = self.state.lock();
        state
            .assignments
            .get(&origin)
            .map(|assignment| assignment.assigned)
    }

    /// Whether all that was read is settled.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        let mut assignments = state.assignments.values();
        assignments.all(|assignment| assignment.offsets.len() == 0 && assignment.outside.is_empty())
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
            assignments,
            commits,
            ..
        } = &mut *state;
        // Who waits for a commit must not be waited for by what comes before it.
        for waiting in commits.drain(..) {
            waiting.send(true).ok();
        }
        let mut scopes = Vec::new();
        for origin in origins {
            buffer.withdraw(*origin);
            let assignment = assignments.get(origin);
            scopes.extend(assignment.map(|assignment| Scope::Origin(*origin, assignment.generation)));
        }
        scopes
    }

    /// Nothing of these runs any more: what is committed next says that they were given up in good order.
    pub(crate) fn give_up(&self, origins: &[OriginId]) {
        self.state.lock().given_up = origins.to_vec();
    }

    /// Nothing runs any more.
    pub(crate) fn give_up_all(&self) {
        let mut state = self.state.lock();
        state.given_up = state.assignments.keys().copied().collect();
    }

    /// From here on, settlements for these are stale.
    pub(crate) fn unassign(&self, origins: &[OriginId]) {
        let mut state = self.state.lock();
        state.revoking = false;
        state.given_up.clear();
        self.rebalances.fetch_add(1, Ordering::Relaxed);
        let State {
            buffer,
            assignments,
            suspect,
            halts_changed,
            ..
        } = &mut *state;
        for origin in origins {
            // What was released meanwhile.
            buffer.withdraw(*origin);
            let gone = assignments.remove(origin);
            *halts_changed |= gone.is_some_and(|gone| gone.gate.halted().is_some());
            if suspect.is_some_and(|(from, ..)| from == *origin) {
                *suspect = None;
            }
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
        if state.suspicious && state.hand_out_suspect(chunk) {
            drop(state);
            self.signal.raise();
            return;
        }
        let most = credit.messages.min(READ);
        let State {
            buffer, assignments, ..
        } = &mut *state;
        // Messages of one partition mostly come one after the other.
        let mut last: Option<(OriginId, &Assignment)> = None;
        while chunk.len() < most && chunk.bytes() < credit.bytes {
            let Some(ticket) = buffer.pop_front() else {
                break;
            };
            if last.is_none_or(|(origin, _)| origin != ticket.origin) {
                last = assignments.get(&ticket.origin).map(|of| (ticket.origin, of));
            }
            // A transaction may have settled it meanwhile.
            if let Some(message) = last.and_then(|(_, of)| of.offsets.out(ticket.sequence)) {
                chunk.push(ticket, message.clone());
            }
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
}

#[cfg(test)]
mod tests;
