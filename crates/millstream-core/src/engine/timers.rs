//! The timer task: brings back what is parked, half-opens breakers and goes on without a stuck batcher, each when
//! its time has come.

use std::sync::Arc;

use super::hub::Hub;
use crate::rt;

pub(crate) async fn run(hub: Arc<Hub>) {
    // Whether a breaker or a suspect held something back at the last look.
    let mut held = false;
    loop {
        let (parked, over_budget) = hub.ready.unpark(&hub.budget, hub.breakers.is_closed());
        hub.counters.over_budget.add(over_budget);
        let breakers = hub.breakers.tick(rt::now());
        let holds = breakers.is_some() || hub.suspects.any();
        if holds || std::mem::take(&mut held) {
            held = holds;
            hub.wake_all();
        }
        let batchers = hub
            .batchers()
            .iter()
            .filter_map(|batcher| batcher.give_up_on(&hub))
            .min();
        let next = [parked, breakers, batchers].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = hub.ready.parked_sooner.notified() => {}
            () = hub.breakers.changed.notified() => {}
            () = hub.batcher_full.notified() => {}
            () = rt::sleep_until(next.unwrap_or_else(rt::now)), if next.is_some() => {}
        }
    }
}
