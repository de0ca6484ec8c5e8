//! A connector's word to the engine: [`EngineHandle`].

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::future::BoxFuture;
use crate::message::OriginId;
use crate::partition::{Partition, Rebalance};
use crate::rt::Instant;
use crate::ticket::Scope;

/// What a connector tells the engine outside a read, heard also while there is no demand.
///
/// Cheap to clone; it does not keep the engine alive.
#[derive(Clone)]
pub struct EngineHandle(Arc<dyn EngineCalls>);

impl EngineHandle {
    pub(crate) fn new(calls: Arc<dyn EngineCalls>) -> Self {
        Self(calls)
    }

    /// A handle with no engine behind it, for a connector's own tests; [`Detached`] says what it was told.
    pub fn detached() -> (Self, Detached) {
        let detached = Detached::default();
        (Self(Arc::new(detached.clone())), detached)
    }

    /// The id for a place of this name, the same for the same name for as long as the pipeline lives.
    pub fn origin(&self, name: &str) -> OriginId {
        self.0.origin(name)
    }

    /// The place is about to be taken away. Unstarted and parked messages of the scope are dropped, batches
    /// that hold some are flushed, and running ones are waited for, but not beyond `by`: then they are
    /// cancelled; a batch that runs on is not waited for. Settlements for what ended have been handed to the
    /// acknowledger when this returns, which may still flush them.
    ///
    /// # Cancel safety
    /// Cancel safe, but the scope stays revoked.
    pub async fn revoke(&self, scope: Scope, by: Instant) -> Drained {
        self.0.revoke(scope, by).await
    }

    /// The place is gone already. Unstarted and parked messages of the scope are dropped and what processors run
    /// is cancelled; settlements for them are the acknowledger's to answer as stale.
    pub fn lost(&self, scope: Scope) {
        self.0.lost(scope);
    }

    /// So many messages wait at the place it reads, handed out to nobody; say it every few seconds where it is
    /// cheap to know.
    pub fn depth(&self, messages: u64) {
        self.0.depth(Some(messages));
    }

    /// How many messages wait at the source cannot be told now: better none than one of an earlier time.
    pub fn depth_unknown(&self) {
        self.0.depth(None);
    }

    /// The partitions that it reads now, all of them; to be said every few seconds, and whenever one comes or goes.
    pub fn partitions(&self, partitions: Vec<Partition>) {
        self.0.partitions(partitions);
    }

    /// Partitions came or went.
    pub fn rebalanced(&self, how: Rebalance) {
        self.0.rebalanced(how);
    }

    /// The store did not take note of what is settled; the connector tells it again with what is settled next. To be
    /// said only where settlements have been answered already.
    pub fn commit_failed(&self) {
        self.0.commit_failed();
    }

    /// A commit of this place was about to pass a message that is not settled, and was not made (P7): a defect of the
    /// connector, which has a sentinel.
    pub fn commit_gap(&self, place: &str, offset: u64, unsettled: u64) {
        self.0.commit_gap(place, offset, unsettled);
    }

    /// These places stand still, each at a message that was given up, as `place@position`; none: all go on. Say it
    /// whenever that changes.
    pub fn halted(&self, at: &[String]) {
        self.0.halted(at);
    }

    /// Whether it is left to the source to keep what is given up, or to halt at it. A connector that finds, once connected, that
    /// nothing would keep it refuses to open then.
    pub fn rejects_to_source(&self) -> bool {
        self.0.rejects_to_source()
    }

    /// Whether anybody goes by the ids of messages: a connector that puts them in a header of its own
    /// ([`Ids::Header`](crate::Ids::Header)) need not otherwise.
    pub fn wants_ids(&self) -> bool {
        self.0.wants_ids()
    }

    /// How many messages workers and batches hold while all of them are busy: with fewer underway some have nothing to do.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// The connector cannot do its work now, and keeps trying.
    pub fn degraded(&self, cause: &str) {
        self.0.degraded(Some(cause));
    }

    /// The connector works again.
    pub fn recovered(&self) {
        self.0.degraded(None);
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineHandle")
    }
}

/// What a revocation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Messages that ended in time.
    pub ended: usize,
    /// Messages that were dropped unrun.
    pub dropped: usize,
    /// Messages that still ran at the deadline and were cancelled.
    pub cancelled: usize,
}

pub(crate) trait EngineCalls: Send + Sync {
    fn origin(&self, name: &str) -> OriginId;
    fn revoke(&self, scope: Scope, by: Instant) -> BoxFuture<'_, Drained>;
    fn lost(&self, scope: Scope);
    fn depth(&self, messages: Option<u64>);
    fn partitions(&self, partitions: Vec<Partition>);
    fn rebalanced(&self, how: Rebalance);
    fn commit_failed(&self);
    fn commit_gap(&self, place: &str, offset: u64, unsettled: u64);
    fn rejects_to_source(&self) -> bool;
    fn wants_ids(&self) -> bool;
    fn capacity(&self) -> usize;
    fn halted(&self, at: &[String]);
    fn degraded(&self, cause: Option<&str>);
}

/// What a detached [`EngineHandle`] was told.
#[derive(Clone, Debug, Default)]
pub struct Detached(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    origins: Vec<String>,
    lost: Vec<Scope>,
    depth: Option<u64>,
    partitions: Vec<Partition>,
    rebalances: Vec<Rebalance>,
    commits_failed: usize,
    commit_gaps: Vec<(String, u64, u64)>,
    rejects_elsewhere: bool,
    capacity: usize,
    halted: Vec<String>,
    degraded: Option<String>,
}

impl Detached {
    /// The scopes it was told are lost or revoked, in order.
    pub fn lost(&self) -> Vec<Scope> {
        self.0.lock().lost.clone()
    }

    /// The last depth it was told.
    pub fn depth(&self) -> Option<u64> {
        self.0.lock().depth
    }

    /// The last partitions it was told.
    pub fn partitions(&self) -> Vec<Partition> {
        self.0.lock().partitions.clone()
    }

    /// The rebalances it was told of, in order.
    pub fn rebalances(&self) -> Vec<Rebalance> {
        self.0.lock().rebalances.clone()
    }

    /// How many commits it was told have failed.
    pub fn commits_failed(&self) -> usize {
        self.0.lock().commits_failed
    }

    /// The commits that it was told would have passed an unsettled message: place, offset and unsettled one.
    pub fn commit_gaps(&self) -> Vec<(String, u64, u64)> {
        self.0.lock().commit_gaps.clone()
    }

    /// From now on what is given up goes elsewhere than to the source.
    pub fn rejects_elsewhere(&self) {
        self.0.lock().rejects_elsewhere = true;
    }

    /// From now on so many messages are held while workers and batches are busy; none until this is said.
    pub fn has_capacity(&self, messages: usize) {
        self.0.lock().capacity = messages;
    }

    /// The places that stand still, as it was told last.
    pub fn halted(&self) -> Vec<String> {
        self.0.lock().halted.clone()
    }

    /// Why the connector is degraded, while it is.
    pub fn degraded(&self) -> Option<String> {
        self.0.lock().degraded.clone()
    }
}

impl EngineCalls for Detached {
    fn origin(&self, name: &str) -> OriginId {
        intern(&mut self.0.lock().origins, name)
    }

    fn revoke(&self, scope: Scope, _: Instant) -> BoxFuture<'_, Drained> {
        EngineCalls::lost(self, scope);
        Box::pin(std::future::ready(Drained::default()))
    }

    fn lost(&self, scope: Scope) {
        self.0.lock().lost.push(scope);
    }

    fn depth(&self, messages: Option<u64>) {
        self.0.lock().depth = messages;
    }

    fn partitions(&self, partitions: Vec<Partition>) {
        self.0.lock().partitions = partitions;
    }

    fn rebalanced(&self, how: Rebalance) {
        self.0.lock().rebalances.push(how);
    }

    fn commit_failed(&self) {
        self.0.lock().commits_failed += 1;
    }

    fn commit_gap(&self, place: &str, offset: u64, unsettled: u64) {
        let mut told = self.0.lock();
        told.commit_gaps.push((place.to_owned(), offset, unsettled));
    }

    fn rejects_to_source(&self) -> bool {
        !self.0.lock().rejects_elsewhere
    }

    fn wants_ids(&self) -> bool {
        false
    }

    fn capacity(&self) -> usize {
        self.0.lock().capacity
    }

    fn halted(&self, at: &[String]) {
        self.0.lock().halted = at.to_vec();
    }

    fn degraded(&self, cause: Option<&str>) {
        self.0.lock().degraded = cause.map(str::to_owned);
    }
}

/// The id of `name` in the list, where it is put if it is new.
pub(crate) fn intern(names: &mut Vec<String>, name: &str) -> OriginId {
    let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    });
    OriginId(u32::try_from(index).unwrap_or(u32::MAX))
}
