//! What must hold at any time: P4, what may be fetched, and P5, that what may run does.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream_core::BreakerState;

use super::model::Stage;
use super::plan::{Rate, ms};
use super::world::State;

/// How long the engine may take over what it does at once, while time stands still but for it.
const AT_ONCE: Duration = ms(100);

impl State {
    /// P4: what a source may fetch keeps the limits.
    pub(super) fn asked(&mut self, messages: usize, bytes: usize) {
        let (out, held) = self.model.outstanding();
        let (most, limit) = (self.plan.in_flight, self.plan.bytes);
        if out.saturating_add(messages) > most {
            self.violate(
                "P4",
                format!("{out} messages are in flight, {messages} more are asked for, and {most} may be"),
            );
        }
        if held.saturating_add(bytes) > limit && (held < limit || bytes > 0) {
            self.violate(
                "P4",
                format!("{held} bytes are in flight, {bytes} more are asked for, and {limit} may be"),
            );
        }
        if self.breaker() == Some(BreakerState::Open) {
            self.violate("P5", "the source is read though the breaker is open");
        }
    }

    /// P5: what may run does, while a worker is free. Called every now and then; so many workers may be `gone`, if the
    /// pipeline serves at all.
    pub(super) fn check_progress(&mut self, gone: Option<usize>) {
        let (now, model, plan) = (self.now(), &self.model, &self.plan);
        // Fewer may run where their number adapts, and what is over the limit of its key waits in the engine.
        let freely = plan.adapts_from.is_none() && plan.rate != Rate::Keys && !plan.breaker;
        let seated = gone.map_or(0, |gone| plan.concurrency.saturating_sub(gone));
        // What goes back because its lane is full is on its way for as long as settlements are slow.
        let trouble = &self.broker.trouble;
        let slow = trouble.slow_acks.max(trouble.failing_acks);
        let settles = slow.is_zero() || now > slow + ms(500);
        // What was read waits for the store of ids.
        let looked_up = plan.features.deduplicates.is_none_or(|policy| !policy.fails);
        let free = model.running < seated && !model.suspects && freely && settles && looked_up;
        let long = model.lanes.values().any(|lane| lane.len() >= plan.per_key);
        let may_run = |delivery: &&usize| {
            let Some(found) = model.deliveries.get(**delivery) else {
                return false;
            };
            let since = match found.stage {
                Stage::Waits(since) => since,
                // One that is to be redelivered waits at the source.
                Stage::Parked(due) if plan.strategy == millstream_core::RetryStrategy::InPlace => due,
                _ => return false,
            };
            if model.withdrawn.contains(&found.ticket.generation) {
                return false;
            }
            // What waits for another message, or may.
            let holds = |key| model.sequences.holds(key, **delivery) || model.sequences.is_loose(key);
            if found.key.is_some_and(holds) || self.has_twin(**delivery) {
                return false;
            }
            let first = found.key.and_then(|key| model.lanes.get(&key)?.first());
            since.saturating_add(AT_ONCE) < now && first.is_none_or(|first| *first == **delivery)
        };
        let ready: BTreeSet<usize> = if free && !long {
            model.out.iter().filter(may_run).copied().collect()
        } else {
            BTreeSet::new()
        };
        let (begun, batches) = (model.begun, model.batches_begun);
        // What waits in a batcher may wait for a batch that runs, or ran until now.
        let waits = |delivery: &&usize| {
            let found = model.deliveries.get(**delivery);
            let same = model
                .watched
                .as_ref()
                .is_some_and(|(_, before, _)| *before == batches);
            found.is_some_and(|found| found.batched) && (model.batches_running > 0 || !same)
        };
        if let Some((before, _, waited)) = &model.watched
            && *before == begun
            && let Some(stuck) = waited.intersection(&ready).find(|delivery| !waits(delivery))
        {
            let what = format!("delivery {stuck} could run, workers are free, and it does not");
            self.violate("P5", what);
        }
        self.model.watched = Some((begun, batches, ready));
    }
}
