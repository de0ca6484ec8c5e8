//! The link to the broker: opens the connector, and runs intake and the settlement stage on what it gave until one
//! of them ends. They live and die together: a settlement means nothing to another connection.

use std::pin::pin;
use std::sync::Arc;

use tracing::info;

use super::hub::{Hub, SOURCE};
use super::intake::Intake;
use super::retry::patience;
use super::sentinels::Sentinel;
use super::settling;
use crate::connector::Opened;
use crate::errors::{OpenError, SourceError};
use crate::future::BoxFuture;
use crate::handle::{Drained, EngineCalls, EngineHandle};
use crate::message::OriginId;
use crate::partition::{Partition, Rebalance};
use crate::rt::{self, Duration, Instant};
use crate::spec::DeadLetter;
use crate::ticket::Scope;

/// How long cancelled runs have to let go of their messages.
const GRACE: Duration = Duration::from_millis(100);

/// How a link ended.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The connector says that trying again cannot help.
    Refused(String),
    /// The source failed and is to be opened again.
    Failed(SourceError),
}

/// Runs the link until the task is dropped; after a drain the settlement stage goes on alone.
pub(crate) async fn run(hub: Arc<Hub>, opened: Option<Opened>) -> LinkEnd {
    let opened = match opened {
        Some(opened) => opened,
        None => {
            let mut gate = hub.gate.watch();
            tokio::select! {
                biased;
                opened = open(&hub) => match opened {
                    Ok(opened) => opened,
                    Err(refused) => return LinkEnd::Refused(refused),
                },
                _ = gate.wait_for(|gate| gate.draining) => {
                    return LinkEnd::Failed(SourceError("drained while it was down".to_owned()));
                }
            }
        }
    };
    let (mut source, mut acknowledger) = opened;
    let mut settling = pin!(settling::run(Arc::clone(&hub), &mut *acknowledger));
    let intake = Intake::new(Arc::clone(&hub)).run(&mut *source);
    tokio::select! {
        biased;
        () = &mut settling => LinkEnd::Failed(SourceError("the settlement stage ended".to_owned())),
        ended = intake => match ended {
            Ok(()) => {
                hub.gate.change(|gate| gate.ended = true);
                settling.await;
                LinkEnd::Failed(SourceError("the settlement stage ended".to_owned()))
            }
            Err(error) => LinkEnd::Failed(error),
        },
    }
}

/// Opens the connector, trying for as long as the broker may come back.
pub(crate) async fn open(hub: &Arc<Hub>) -> Result<Opened, String> {
    let mut failures = 0;
    loop {
        match hub.spec.source.open(handle(hub)).await {
            Ok(opened) => {
                hub.degraded(SOURCE, None);
                return Ok(opened);
            }
            Err(OpenError::Refused(why)) => return Err(why),
            Err(OpenError::Unavailable(why)) => {
                hub.degraded(SOURCE, Some(&why));
                failures += 1;
                let wait = patience(failures);
                info!(pipeline = hub.name(), ?wait, "opening the source again");
                rt::sleep(wait).await;
            }
        }
    }
}

pub(crate) fn handle(hub: &Arc<Hub>) -> EngineHandle {
    EngineHandle::new(Arc::new(Calls(Arc::downgrade(hub))))
}

/// The engine as a connector speaks to it. It does not keep the engine alive.
struct Calls(std::sync::Weak<Hub>);

impl EngineCalls for Calls {
    fn origin(&self, name: &str) -> OriginId {
        self.0
            .upgrade()
            .map_or_else(OriginId::default, |hub| hub.origin(name))
    }

    fn revoke(&self, scope: Scope, by: Instant) -> BoxFuture<'_, Drained> {
        Box::pin(async move {
            match self.0.upgrade() {
                Some(hub) => revoke(&hub, scope, by).await,
                None => Drained::default(),
            }
        })
    }

    fn lost(&self, scope: Scope) {
        if let Some(hub) = self.0.upgrade() {
            hub.lose(scope);
            for batcher in hub.batchers() {
                hub.drop_lost(&batcher.discard(scope));
            }
        }
    }

    fn depth(&self, messages: Option<u64>) {
        if let Some(hub) = self.0.upgrade() {
            hub.deepen(messages);
        }
    }

    fn partitions(&self, partitions: Vec<Partition>) {
        if let Some(hub) = self.0.upgrade() {
            *hub.partitions.lock() = Some(partitions);
        }
    }

    fn rebalanced(&self, how: Rebalance) {
        if let Some(hub) = self.0.upgrade() {
            hub.counters.rebalances.add(how as usize, 1);
        }
    }

    fn commit_failed(&self) {
        if let Some(hub) = self.0.upgrade() {
            hub.counters.commit_failures.add(1);
        }
    }

    fn commit_gap(&self, place: &str, offset: u64, unsettled: u64) {
        if let Some(hub) = self.0.upgrade() {
            let known =
                format_args!("{place}: {offset} was about to be committed and {unsettled} is not settled");
            hub.sentinels.fire(Sentinel::CommitGap, 1, &known);
        }
    }

    fn rejects_to_source(&self) -> bool {
        self.0
            .upgrade()
            .is_some_and(|hub| matches!(hub.spec.dead_letter, DeadLetter::Source | DeadLetter::Halt))
    }

    fn wants_ids(&self) -> bool {
        self.0.upgrade().is_some_and(|hub| hub.twins.is_some())
    }

    fn capacity(&self) -> usize {
        self.0.upgrade().map_or(0, |hub| {
            let batches = hub.spec.batchers.values();
            let batched: usize = batches
                .map(|batcher| batcher.size.get().saturating_mul(batcher.concurrency.get()))
                .fold(0, usize::saturating_add);
            hub.ready.seats().saturating_add(batched)
        })
    }

    fn halted(&self, at: &[String]) {
        if let Some(hub) = self.0.upgrade() {
            hub.halted(at);
        }
    }

    fn degraded(&self, cause: Option<&str>) {
        if let Some(hub) = self.0.upgrade() {
            hub.degraded(SOURCE, cause);
        }
    }
}

async fn revoke(hub: &Hub, scope: Scope, by: Instant) -> Drained {
    let held = hub.places.messages_of(scope);
    let revoking = hub.begin_revoke(scope);
    hub.withdraw(scope);
    for batcher in hub.batchers() {
        hub.drop_lost(&batcher.flush(scope));
    }
    let ended = |places: &super::places::Places| places.messages_of(scope) == 0;
    tokio::select! {
        biased;
        () = hub.places.until(ended) => {}
        () = rt::sleep_until(by) => {}
    }
    if hub.places.messages_of(scope) > 0 {
        hub.drop_lost_ready();
    }
    let dropped = revoking.dropped();
    let cancelled = hub.places.messages_of(scope);
    if cancelled > 0 {
        hub.cancel(|ticket| scope.holds(ticket));
        for batcher in hub.batchers() {
            hub.drop_lost(&batcher.discard(scope));
        }
        tokio::select! {
            biased;
            () = hub.places.until(ended) => {}
            () = rt::sleep_until(by + GRACE) => {}
        }
    }
    Drained {
        ended: held.saturating_sub(dropped + cancelled),
        dropped,
        cancelled,
    }
}
