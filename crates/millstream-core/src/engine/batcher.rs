//! Batchers: they collect processed messages by batch key until size, bytes, age or a flush closes the batch.
//!
//! Without an ordering, one shard serves all batch workers. With one, each batch worker has a shard of its own
//! and a key stays with its shard while it has items there: batches that share a key never run at the same time
//! (P3). What waits for another attempt blocks its keys in its shard, and nothing else.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::any_batcher::{AnyBatcher, Look};
use super::bisect::Split;
use super::entrance::{Entrance, Entries};
use super::envelope::Envelope;
use super::fullness::Fullness;
use super::guard::put_away;
use super::hub::Hub;
use super::shard::{Closed, Shard, Turn};
use super::stage::Batches;
use super::stall::Named;
use crate::batch::{ClosedBy, DynBatchHandler};
use crate::failure::Failure;
use crate::future::BoxFuture;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::spec::{BatcherSpec, Limits};
use crate::ticket::{Scope, Ticket};

/// What of a batch that has run comes again.
pub(crate) enum Again<T> {
    Never,
    At(Instant, Closed<T>),
    /// As these, before anything else.
    InParts(Vec<Closed<T>>),
}

pub(crate) struct Batcher<T> {
    pub(crate) batches: Batches,
    pub(crate) handler: Arc<dyn DynBatchHandler<T>>,
    state: Mutex<State<T>>,
    fullness: Fullness,
    /// One for each shard.
    work: RwLock<Vec<Arc<Notify>>>,
    ordered: bool,
    /// Whether the source can keep what a stuck batcher cannot take. Under an ordering nothing may be given back
    /// out of turn.
    gives_back: bool,
    hub: std::sync::Weak<Hub>,
}

pub(crate) struct State<T> {
    spec: BatcherSpec,
    /// Once there are several, there are never fewer: those beyond `spec.concurrency` get no new keys.
    pub(crate) shards: Vec<Shard<T>>,
    /// The shard of each key that has items here, and how many.
    homes: FxHashMap<u64, (usize, usize)>,
    next_shard: usize,
    /// Since when it holds its share and intake waits for it.
    full: Option<Instant>,
    draining: bool,
    cut: bool,
    /// What the batch workers run now, to be cancelled.
    running: Vec<Option<Run>>,
}

/// A batch that runs.
#[derive(Clone)]
struct Run {
    cancellation: CancellationToken,
    first: Option<Named>,
}

impl<T: Send + 'static> Batcher<T> {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        name: &str,
        spec: BatcherSpec,
        handler: Arc<dyn DynBatchHandler<T>>,
    ) -> Arc<Self> {
        let ordered = hub.spec.ordering.is_ordered();
        let workers = spec.concurrency.get();
        let shards = if ordered { workers } else { 1 };
        Arc::new(Self {
            batches: Batches::new(name),
            handler,
            state: Mutex::new(State {
                spec,
                shards: (0..shards).map(|_| Shard::default()).collect(),
                homes: FxHashMap::default(),
                next_shard: 0,
                full: None,
                draining: false,
                cut: false,
                running: vec![None; workers],
            }),
            fullness: Fullness::new(hub.spec.limits),
            work: RwLock::new((0..shards).map(|_| Arc::default()).collect()),
            ordered,
            gives_back: !ordered && hub.can_put_off(),
            hub: Arc::downgrade(hub),
        })
    }

    pub(crate) fn shard_of(&self, worker: usize) -> usize {
        if self.ordered { worker } else { 0 }
    }

    /// Where the workers of this shard are told that there may be something to do.
    pub(crate) fn work_of(&self, shard: usize) -> Option<Arc<Notify>> {
        self.work.read().get(shard).cloned()
    }

    /// What this worker does next; nothing where it is one too many and ends. A batch it gives is under way until [`done`](Self::done).
    pub(crate) fn turn(&self, hub: &Hub, worker: usize) -> Option<Turn<T>> {
        let mut state = self.state.lock();
        if self.ordered && worker == 0 {
            state.divide();
        }
        let State {
            spec,
            shards,
            draining,
            cut,
            running,
            ..
        } = &mut *state;
        let surplus = worker >= spec.concurrency.get();
        let shard = self.shard_of(worker);
        let Some(shard) = shards.get_mut(shard) else {
            return (!surplus).then_some(Turn::Wait(None));
        };
        // Under an ordering its keys are its own until it has none.
        if surplus && (!self.ordered || shard.is_empty()) {
            return None;
        }
        if *cut {
            return Some(Turn::Wait(None));
        }
        let now = rt::now();
        let turn = match hub.one_at_a_time() {
            false => shard.turn(now, *draining),
            true => shard.probe(now, *draining, hub.breakers.round(), |doubtful| {
                hub.try_one(|_| doubtful)
            }),
        };
        if let (Turn::Run(batch), Some(slot)) = (&turn, running.get_mut(worker)) {
            *slot = Some(Run {
                cancellation: CancellationToken::new(),
                first: batch.envelopes.first().map(Named::of),
            });
        }
        Some(turn)
    }

    /// What cancels the batch that this worker runs, and how long it may take.
    pub(crate) fn terms(&self, worker: usize) -> (CancellationToken, Duration) {
        let state = self.state.lock();
        let cancellation = match state.running.get(worker) {
            Some(Some(run)) => run.cancellation.clone(),
            _ => CancellationToken::new(),
        };
        (cancellation, state.spec.timeout)
    }

    /// The parts of a split batch that wait in this worker's shard, taken out.
    pub(crate) fn parts_of(&self, worker: usize, split: &Arc<Split>) -> Vec<Closed<T>> {
        let mut state = self.state.lock();
        let shard = state.shards.get_mut(self.shard_of(worker));
        shard.map_or_else(Vec::new, |shard| shard.parts_of(split))
    }

    /// Whether a batch that fails as a whole is split.
    pub(crate) fn bisects(&self) -> bool {
        self.state.lock().spec.bisect
    }

    /// A batch has ended: so many messages are out of the batcher, with these keys, and these come again.
    pub(crate) fn done(&self, hub: &Hub, worker: usize, gone: usize, orders: &[u64], again: Again<T>) {
        let shard_index = self.shard_of(worker);
        let late = {
            let mut state = self.state.lock();
            if let Some(slot) = state.running.get_mut(worker) {
                *slot = None;
            }
            state.leave(orders);
            let late = match again {
                // It ran across the cut: what would come again goes back.
                Again::At(_, batch) if state.cut => vec![batch],
                Again::InParts(parts) if state.cut => parts,
                again => {
                    if let Some(shard) = state.shards.get_mut(shard_index) {
                        match again {
                            Again::Never => {}
                            Again::At(due, batch) => shard.park(due, batch),
                            Again::InParts(parts) => shard.put_first(parts),
                        }
                    }
                    Vec::new()
                }
            };
            for batch in &late {
                state.leave(&batch.orders());
            }
            self.account(
                hub,
                &mut state,
                gone + late.iter().map(Closed::len).sum::<usize>(),
            );
            late
        };
        // Taken apart first: the items are the user's, and are not dropped under a lock.
        for batch in late {
            hub.release(batch.envelopes);
            put_away(batch.items);
        }
        hub.ran_beside_suspects();
        self.wake_shard(shard_index);
    }

    fn wake_shard(&self, shard: usize) {
        if let Some(work) = self.work.read().get(shard) {
            work.notify_one();
        }
    }

    /// Counts messages out, and opens the gate again once there is room.
    fn account(&self, hub: &Hub, state: &mut State<T>, gone: usize) {
        if self.fullness.leave(&mut state.full, gone) {
            hub.gate.change(|gate| gate.full_batchers -= 1);
        }
    }

    /// Takes out what `remove` takes out of each shard.
    fn take_out(&self, remove: impl FnMut(&mut Shard<T>) -> Vec<Closed<T>>) -> Vec<Envelope> {
        let Some(hub) = self.hub.upgrade() else {
            return Vec::new();
        };
        let mut state = self.state.lock();
        let out: Vec<Closed<T>> = state.shards.iter_mut().flat_map(remove).collect();
        for batch in &out {
            state.leave(&batch.orders());
        }
        self.account(&hub, &mut state, out.iter().map(Closed::len).sum());
        drop(state);
        let mut envelopes = Vec::new();
        for batch in out {
            envelopes.extend(batch.envelopes);
            put_away(batch.items);
        }
        envelopes
    }
}

impl<T> State<T> {
    /// The shard for one more item of this key.
    fn home(&mut self, order: u64) -> usize {
        if self.shards.len() == 1 {
            return 0;
        }
        let shards = self.shards.len().min(self.spec.concurrency.get());
        let next = self.next_shard % shards;
        if order == 0 || mutant(Mutant::BatchOverlap) {
            self.next_shard = next + 1;
            return next;
        }
        let home = self.homes.entry(order).or_insert_with(|| {
            self.next_shard = next + 1;
            (next, 0)
        });
        home.1 += 1;
        home.0
    }

    /// Gives the only shard the company that it is to have: while its worker runs nothing, so that all its keys are in it.
    fn divide(&mut self) {
        let wanted = self.spec.concurrency.get();
        if let ([only], true) = (&*self.shards, wanted > 1) {
            for order in only.orders().filter(|order| *order != 0) {
                self.homes.entry(order).or_insert((0, 0)).1 += 1;
            }
            self.shards.resize_with(wanted, Shard::default);
        }
    }

    /// So many items of these keys are gone.
    fn leave(&mut self, orders: &[u64]) {
        if self.shards.len() == 1 {
            return;
        }
        for order in orders {
            if let Some(home) = self.homes.get_mut(order) {
                home.1 -= 1;
                if home.1 == 0 {
                    self.homes.remove(order);
                }
            }
        }
    }
}

impl<T: Send + 'static> Entrance<T> for Arc<Batcher<T>> {
    fn enter(&self, hub: &Hub, entries: &mut Entries<T>) {
        let entering = entries.envelopes.len();
        self.fullness.enter(entering);
        let mut wake: Vec<usize>;
        let workers;
        let mut released = Vec::new();
        let mut spent = Vec::new();
        {
            let mut state = self.state.lock();
            let deadline = rt::after(state.spec.max_age);
            workers = state.spec.concurrency.get();
            wake = vec![0; state.shards.len()];
            if state.cut {
                released = std::mem::take(&mut entries.envelopes);
                spent = std::mem::take(&mut entries.outputs);
                entries.marks.clear();
            } else {
                let messages = entries
                    .envelopes
                    .drain(..)
                    .zip(entries.outputs.drain(..))
                    .zip(entries.marks.drain(..));
                for ((envelope, output), mut mark) in messages {
                    // A scope that goes flushes its batches once.
                    mark.flush |= hub.is_lost(&envelope.ticket);
                    let home = state.home(envelope.order);
                    let State { shards, spec, .. } = &mut *state;
                    if let (Some(shard), Some(wakes)) = (shards.get_mut(home), wake.get_mut(home)) {
                        *wakes += shard.add(spec, deadline, envelope, output, mark);
                    }
                }
            }
            if self.fullness.fills(&mut state.full) {
                hub.counters.throttled.add(1);
                hub.gate.change(|gate| gate.full_batchers += 1);
                hub.batcher_full.notify_one();
            }
        }
        if !released.is_empty() {
            self.fullness.turned_away(released.len());
            hub.release(released);
        }
        put_away(spent);
        for (shard, wakes) in wake.into_iter().enumerate() {
            for _ in 0..wakes.min(workers) {
                self.wake_shard(shard);
            }
        }
    }

    fn is_stuck(&self) -> bool {
        self.fullness.is_stuck()
    }
}

impl<T: Send + 'static> AnyBatcher for Batcher<T> {
    fn batches(&self) -> &Batches {
        &self.batches
    }

    fn start(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.handler.start()
    }

    fn concurrency(&self) -> usize {
        self.state.lock().spec.concurrency.get()
    }

    fn set(&self, hub: &Hub, spec: BatcherSpec, limits: Limits) {
        let workers = spec.concurrency.get();
        {
            let mut state = self.state.lock();
            let old = std::mem::replace(&mut state.spec, spec.clone());
            let running = state.running.len().max(workers);
            state.running.resize_with(running, || None);
            if self.ordered {
                let mut work = self.work.write();
                let notifies = work.len().max(workers);
                work.resize_with(notifies, Arc::default);
                // The first company of a single shard comes when that can say which keys it has.
                if state.shards.len() > 1 {
                    let shards = state.shards.len().max(workers);
                    state.shards.resize_with(shards, Shard::default);
                }
            }
            for shard in &mut state.shards {
                shard.set(&old, &spec);
            }
            self.fullness.set(limits);
            self.account(hub, &mut state, 0);
        }
        self.wake();
    }

    fn work(self: Arc<Self>, hub: Arc<Hub>, worker: usize) -> BoxFuture<'static, ()> {
        Box::pin(super::batch_worker::run(self, hub, worker))
    }

    fn held(&self) -> usize {
        self.fullness.held()
    }

    fn runs(&self) -> bool {
        self.state.lock().running.iter().any(Option::is_some)
    }

    fn look(&self) -> Look {
        let state = self.state.lock();
        let now = rt::now();
        let running = state.running.iter().flatten().filter_map(|run| run.first.clone());
        let due = state.shards.iter().filter_map(|shard| shard.due(now));
        let firsts: Vec<_> = running.chain(due.map(Named::of)).collect();
        Look {
            busy: !firsts.is_empty(),
            timeout: state.spec.timeout,
            firsts,
        }
    }

    fn has_undoubted(&self, round: u32) -> bool {
        let state = self.state.lock();
        let now = rt::now();
        state.shards.iter().any(|shard| shard.has_undoubted(now, round))
    }

    fn wake(&self) {
        for work in &*self.work.read() {
            // Stored for a busy worker, and passed on to each idle one.
            work.notify_one();
            work.notify_waiters();
        }
    }

    fn begin_drain(&self) {
        self.state.lock().draining = true;
        self.wake();
    }

    fn cut(&self) {
        let running: Vec<CancellationToken> = {
            let mut state = self.state.lock();
            state.cut = true;
            if mutant(Mutant::CutForgetsRunning) {
                return;
            }
            let running = state.running.iter().flatten();
            running.map(|run| run.cancellation.clone()).collect()
        };
        if let Some(hub) = self.hub.upgrade() {
            hub.release(self.take_out(|shard| shard.remove(|_| true)));
        }
        for token in running {
            token.cancel();
        }
    }

    fn give_up_on(&self, hub: &Hub) -> Option<Instant> {
        let mut state = self.state.lock();
        let since = state.full.filter(|_| self.gives_back)?;
        if let Some(then) = self.fullness.give_up(&mut state.full, since) {
            return Some(then);
        }
        warn!(
            pipeline = hub.name(),
            batcher = self.name(),
            "stuck; what is for it goes back to the source for now"
        );
        hub.gate.change(|gate| gate.full_batchers -= 1);
        None
    }

    fn flush(&self, scope: Scope) -> Vec<Envelope> {
        let closed = self.hub.upgrade().is_none_or(|hub| hub.breakers.is_closed());
        let out = self.take_out(|shard| {
            let holds = |ticket: &Ticket| scope.holds(ticket);
            shard.close_all(ClosedBy::Flush, |envelope| holds(&envelope.ticket));
            match (self.ordered, closed) {
                (true, _) => Vec::new(),
                (false, true) => shard.remove_parked(holds),
                // What a breaker holds back would not run either.
                (false, false) => shard.remove(holds),
            }
        });
        self.wake();
        out
    }

    fn discard(&self, scope: Scope) -> Vec<Envelope> {
        let out = self.take_out(|shard| shard.remove(|ticket| scope.holds(ticket)));
        self.wake();
        out
    }
}
