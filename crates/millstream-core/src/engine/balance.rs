//! Whether the counts of a pipeline agree (P1, P8): what was acknowledged was earned, and what came is accounted for.
//!
//! They are compared where nothing moves, at rest or after a drain that left nothing: whoever settles counts first, so
//! that what is behind a place that is free has been counted.

use parking_lot::Mutex;

use super::counters::Counter;
use super::hub::Hub;
use super::sentinels::Sentinel;

/// What the comparison needs beside the counts, and what it has said.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    /// Messages whose work was done with their processor's run.
    pub(crate) ended: Counter,
    told: Mutex<Gap>,
}

/// By how many messages the counts disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gap {
    /// Acknowledged, and neither done, recorded elsewhere, discarded nor settled by the user's code.
    unearned: u64,
    /// Received, and neither settled, lost nor in flight; or the other way round.
    unaccounted: u64,
}

impl Gap {
    /// What both have seen.
    pub(super) fn in_both(self, other: Self) -> Self {
        Self {
            unearned: self.unearned.min(other.unearned),
            unaccounted: self.unaccounted.min(other.unaccounted),
        }
    }
}

/// Compares the counts. While something moves, they may disagree for a moment.
pub(super) fn look(hub: &Hub) -> Gap {
    let counts = hub.counts();
    let batched = hub.batchers().iter();
    let batched: u64 = batched
        .map(|batcher| batcher.batches().stage.succeeded.get())
        .sum();
    let earned = [
        hub.balance.ended.get(),
        batched,
        counts.dead_lettered,
        counts.discarded,
        counts.put_off,
        counts.duplicates,
        counts.settled_early,
    ];
    let accounted = [
        counts.acked,
        counts.rejected,
        counts.released,
        counts.returned,
        counts.stale,
        counts.lost,
        hub.places.messages() as u64,
    ];
    Gap {
        unearned: counts.acked.saturating_sub(earned.into_iter().sum()),
        unaccounted: counts.received.abs_diff(accounted.into_iter().sum()),
    }
}

/// Has the sentinels fire for what was not told before.
pub(super) fn tell(hub: &Hub, found: Gap) {
    let told = {
        let mut told = hub.balance.told.lock();
        let before = *told;
        *told = Gap {
            unearned: before.unearned.max(found.unearned),
            unaccounted: before.unaccounted.max(found.unaccounted),
        };
        before
    };
    let pairs = [
        (Sentinel::UnearnedAck, found.unearned, told.unearned),
        (Sentinel::Unaccounted, found.unaccounted, told.unaccounted),
    ];
    for (sentinel, found, told) in pairs {
        let more = usize::try_from(found.saturating_sub(told)).unwrap_or(usize::MAX);
        if more > 0 {
            hub.sentinels
                .fire(sentinel, more, &format_args!("{:?}", hub.counts()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::drain::find_uncut;
    use crate::engine::envelope::Envelope;
    use crate::flow::Flow;
    use crate::memory::MemoryQueue;
    use crate::message::{Message, OriginId};
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

    fn fired(hub: &Hub) -> Vec<(Sentinel, u64)> {
        let counts = hub.sentinels.counts().into_iter();
        counts.filter(|(_, times)| *times > 0).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn p1_an_acknowledgement_that_nobody_earned_fires_the_sentinel_once() {
        let hub = hub();
        hub.counters.received.add(3);
        hub.counters.acked.add(3);
        hub.balance.ended.add(1);
        hub.counters.dead_lettered.add(1);
        tell(&hub, look(&hub));
        tell(&hub, look(&hub));
        assert_eq!(fired(&hub), [(Sentinel::UnearnedAck, 1)]);
        hub.counters.received.add(1);
        hub.counters.acked.add(1);
        tell(&hub, look(&hub));
        assert_eq!(fired(&hub), [(Sentinel::UnearnedAck, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn p8_a_message_that_no_count_accounts_for_fires_the_sentinel_once() {
        let hub = hub();
        let mut ticket = Ticket::new(1, OriginId::default(), 1);
        hub.places.occupy([&mut ticket].into_iter());
        hub.counters.received.add(3);
        hub.counters.released.add(1);
        tell(&hub, look(&hub));
        tell(&hub, look(&hub));
        assert_eq!(fired(&hub), [(Sentinel::Unaccounted, 1)]);
        hub.counters.lost.add(1);
        assert_eq!(look(&hub), Gap::default());
    }

    #[tokio::test(start_paused = true)]
    async fn p6_a_run_that_a_cut_has_forgotten_fires_the_sentinel() {
        let hub = hub();
        let seats = [hub.seats.get(0), hub.seats.get(1)];
        let ticket = |sequence| Ticket::new(1, OriginId::default(), sequence);
        let envelope = |sequence| Envelope::new(ticket(sequence), Message::default());
        let _first = hub.occupy(&seats[0], &envelope(1)).unwrap();
        hub.cut();
        let then = hub.seats.uncancelled();
        find_uncut(&hub, &then);
        assert_eq!((then, fired(&hub)), (Vec::new(), Vec::new()));
        // As if it had been overlooked.
        let _second = seats[1].occupy(&envelope(2));
        let then = hub.seats.uncancelled();
        assert_eq!(then, [ticket(2)]);
        // What begins between the looks has somebody to cancel it.
        find_uncut(&hub, &[ticket(1)]);
        assert_eq!(fired(&hub), []);
        find_uncut(&hub, &then);
        assert_eq!(fired(&hub), [(Sentinel::UncutRun, 1)]);
    }
}
