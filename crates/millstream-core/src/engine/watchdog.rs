//! The watchdog: says when nothing moves although it should, and when places are held that nothing holds (P2, P8).
//!
//! It costs what moves nothing: a few times within `stall_after` it reads the counters, and only if none has changed
//! does it look at the stages. What waits by design is no stall: what is parked until later, a batch that is not old
//! enough, retries that are due and beyond the budget, runs while the breaker is not closed, settlements while the source is
//! away, what a sink does not take while that is reported as such. A handler is given its timeout.

use std::sync::Arc;

use tracing::{error, info};

use super::balance::{self, Gap};
use super::counters::Counts;
use super::hub::{Hub, SOURCE};
use super::sentinels::Sentinel;
use super::stage::PROCESSOR;
use super::stall::{Busy, Named};
use super::twins::STORE;
use crate::rt::{self, Duration, Instant};

/// How often it looks within `stall_after`.
const LOOKS: u32 = 4;

pub(crate) async fn run(hub: Arc<Hub>) {
    let mut watchdog = Watchdog::new(&hub);
    loop {
        let every = hub.settings.supervisor().stall_after / LOOKS;
        rt::sleep(every.max(Duration::from_millis(1))).await;
        watchdog.look(&hub, every);
    }
}

struct Watchdog {
    moved: u64,
    /// The stages that have been busy at every look since something moved, and since when.
    busy: Vec<(Arc<str>, Instant)>,
    /// Places that nothing has held at the last look, and those that were reported.
    leaked: (usize, usize),
    /// By how much the counts disagreed at the last look.
    gap: Gap,
}

impl Watchdog {
    fn new(hub: &Hub) -> Self {
        Self {
            moved: moves(&hub.counts()),
            busy: Vec::new(),
            leaked: (0, 0),
            gap: Gap::default(),
        }
    }

    fn look(&mut self, hub: &Hub, every: Duration) {
        let moved = moves(&hub.counts());
        if std::mem::replace(&mut self.moved, moved) != moved {
            self.busy.clear();
            self.leaked = (0, 0);
            self.gap = Gap::default();
            return over(hub);
        }
        self.look_for_leaks(hub);
        let gap = balance::look(hub);
        balance::tell(hub, gap.in_both(std::mem::replace(&mut self.gap, gap)));
        let now = rt::now();
        let stages = busy(hub, now);
        self.busy
            .retain(|(stage, _)| stages.iter().any(|busy| busy.stage == *stage));
        if stages.is_empty() {
            return over(hub);
        }
        for busy in stages {
            let known = self.busy.iter().find(|(stage, _)| *stage == busy.stage);
            let Some((_, since)) = known else {
                self.busy.push((Arc::clone(&busy.stage), now));
                continue;
            };
            let after = now.duration_since(*since);
            // A run may have begun just before the look after the one that found the stage busy.
            if after >= hub.settings.supervisor().stall_after.max(busy.allowed + every) {
                tell(hub, busy, after);
                return;
            }
        }
    }

    /// Places that nothing in the engine holds, at two looks with nothing moving between them.
    fn look_for_leaks(&mut self, hub: &Hub) {
        let leaked = if holds(hub) { 0 } else { hub.places.messages() };
        let (before, reported) = self.leaked;
        self.leaked.0 = leaked;
        let sure = leaked.min(before);
        if sure > reported {
            self.leaked.1 = sure;
            leak(hub, sure - reported);
        }
    }
}

/// Says that these places leaked.
pub(super) fn leak(hub: &Hub, places: usize) {
    let known = format_args!(
        "{:?} in {:?}",
        hub.places.oldest().map(|at| at.elapsed()),
        hub.places.scopes()
    );
    hub.sentinels.fire(Sentinel::LeakedPlace, places, &known);
}

/// Whether anything in the engine holds a message or a settlement.
pub(super) fn holds(hub: &Hub) -> bool {
    !hub.ready.load().is_empty()
        || hub.batchers().iter().any(|batcher| batcher.held() > 0)
        || hub.dead_letters.len() + hub.retries.len() > 0
        || hub.settling.len() + hub.settling.waiting() > 0
        || hub.sequence.as_ref().is_some_and(|sequence| sequence.held() > 0)
        || hub.admitting.load(std::sync::atomic::Ordering::Relaxed)
}

/// A number that changes whenever a message has come, a run has ended, or a settlement was answered.
fn moves(counts: &Counts) -> u64 {
    [
        counts.received,
        counts.processed,
        counts.failed,
        counts.given_up,
        counts.batches,
        counts.acked,
        counts.rejected,
        counts.released,
        counts.returned,
        counts.stale,
        counts.lost,
        counts.dead_lettered,
        counts.put_off,
    ]
    .into_iter()
    .fold(0, u64::wrapping_add)
}

/// The stages in which something should move now.
fn busy(hub: &Hub, now: Instant) -> Vec<Busy> {
    let mut stages = Vec::new();
    let mut add = |stage: &str, allowed, firsts| {
        stages.push(Busy {
            stage: stage.into(),
            allowed,
            firsts,
        });
    };
    let may_run = hub.breakers.is_closed();
    let load = hub.ready.load();
    // Where one runs at a time because of a suspect, all others wait for it.
    let one = hub.suspects.any() && (load.running > 0 || hub.batchers().iter().any(|batcher| batcher.runs()));
    let overdue = hub.ready.next_due().is_some_and(|due| due < now) && hub.budget.has_room(now);
    let blocked = load.waiting > 0 && load.parked + load.aside == 0;
    let waits = load.ready > 0 || overdue || blocked;
    if may_run && (load.running > 0 || waits && !one) {
        let mut firsts: Vec<_> = running(hub).collect();
        firsts.extend(hub.ready.firsts());
        add(PROCESSOR, hub.settings.timeout(), firsts);
    }
    for batcher in hub.batchers().iter().filter(|_| may_run) {
        let look = batcher.look();
        if look.busy && (batcher.runs() || !one) {
            add(batcher.name(), look.timeout, look.firsts);
        }
    }
    for outbox in [&hub.dead_letters, &hub.retries] {
        if outbox.len() > 0 && !hub.is_degraded(outbox.part()) {
            add(
                outbox.part(),
                Duration::ZERO,
                outbox.first().into_iter().collect(),
            );
        }
    }
    if hub.settling.len() > 0 && !hub.is_degraded(SOURCE) && !hub.is_degraded(STORE) {
        add("settlement", Duration::ZERO, Vec::new());
    }
    stages
}

/// What workers have been running for a while.
fn running(hub: &Hub) -> impl Iterator<Item = Named> {
    hub.seats.running().into_iter().map(|running| Named {
        ticket: running.ticket,
        position: running.position,
        key: hub.ready.key(running.lane),
    })
}

/// Says so once, until something moves again.
fn tell(hub: &Hub, busy: Busy, after: Duration) {
    if hub.stalled.lock().is_some() {
        return;
    }
    let stall = busy.stall(hub, after);
    hub.counters.stalls.add(1);
    error!(
        pipeline = hub.name(), stage = %stall.stage, ?after, age = ?stall.age, at = stall.at,
        in_flight = hub.places.messages(), "stalled: nothing has moved although there is work"
    );
    *hub.stalled.lock() = Some(stall);
}

fn over(hub: &Hub) {
    if hub.stalled.lock().take().is_some() {
        info!(pipeline = hub.name(), "it moves again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flow;
    use crate::memory::MemoryQueue;
    use crate::message::OriginId;
    use crate::processor::{Context, Processor};
    use crate::spec::PipelineSpec;
    use crate::ticket::Ticket;

    struct NoOp;

    impl Processor for NoOp {
        type Input = ();
        type Output = ();

        async fn process(&self, (): (), _: &mut Context<'_>) -> Result<(), crate::Failure> {
            Ok(())
        }
    }

    fn hub() -> Hub {
        Hub::new(PipelineSpec::new(
            "test",
            Arc::new(MemoryQueue::new()),
            Flow::process(NoOp),
        ))
    }

    fn leaked(hub: &Hub) -> u64 {
        let counts = hub.sentinels.counts().into_iter();
        let counts = counts.filter(|(sentinel, _)| *sentinel == Sentinel::LeakedPlace);
        counts.map(|(_, times)| times).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn p2_a_place_that_nothing_holds_fires_the_sentinel_once() {
        let hub = hub();
        let mut watchdog = Watchdog::new(&hub);
        let mut ticket = Ticket::new(1, OriginId::default(), 1);
        hub.places.occupy([&mut ticket].into_iter());
        let mut look = || {
            watchdog.look(&hub, Duration::from_secs(1));
            leaked(&hub)
        };
        assert_eq!([look(), look(), look()], [0, 1, 1]);
        let mut other = Ticket::new(1, OriginId::default(), 2);
        hub.places.occupy([&mut other].into_iter());
        assert_eq!([look(), look(), look()], [1, 2, 2]);
    }
}
