//! The timer task: brings back what is parked, half-opens the breaker and goes on without a stuck batcher, each when
//! its time has come.

use std::sync::Arc;

use super::hub::Hub;
use crate::rt;

pub(crate) async fn run(hub: Arc<Hub>) {
    loop {
        let parked = hub.ready.unpark();
        let breaker = hub.breaker.as_ref().and_then(|breaker| {
            let (then, may_run) = breaker.tick(rt::now());
            if may_run {
                hub.wake_all();
                // Intake may fetch a probe where there is nothing else to probe with.
                hub.places.freed.notify_waiters();
            }
            then
        });
        let batchers = hub
            .batchers()
            .iter()
            .filter_map(|batcher| batcher.give_up_on(&hub))
            .min();
        let next = [parked, breaker, batchers].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = hub.ready.parked_sooner.notified() => {}
            () = hub.breaker_changed.notified() => {}
            () = hub.batcher_full.notified() => {}
            () = rt::sleep_until(next.unwrap_or_else(rt::now)), if next.is_some() => {}
        }
    }
}
