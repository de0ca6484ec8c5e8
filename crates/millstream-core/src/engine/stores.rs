//! Calls of a store that the pipeline needs and that may be away: one that fails is asked again less and less often, and
//! the pipeline says meanwhile that it is degraded.

use std::fmt;

use parking_lot::Mutex;

use super::counters::Counter;
use super::hub::Hub;
use super::retry::patience;
use crate::future::BoxFuture;
use crate::rt::{self, Duration, Instant};

/// How long a store may take to answer while the pipeline drains.
const DRAINING_PATIENCE: Duration = Duration::from_millis(500);

/// What is known of one store.
#[derive(Debug)]
pub(crate) struct Calls {
    /// What the pipeline's condition calls it.
    part: &'static str,
    /// How long it may take to answer.
    patience: Duration,
    /// It has failed so often in a row, and is asked again then.
    away: Mutex<Option<(u32, Instant)>>,
}

impl Calls {
    pub(crate) fn new(part: &'static str, patience: Duration) -> Self {
        Self {
            part,
            patience,
            away: Mutex::new(None),
        }
    }

    /// One call of the store; none while it is away.
    pub(crate) async fn ask<'a, T, E: fmt::Display>(
        &self,
        hub: &Hub,
        failures: &Counter,
        call: impl FnOnce() -> BoxFuture<'a, Result<T, E>>,
    ) -> Option<T> {
        let now = rt::now();
        if self.away.lock().is_some_and(|(_, then)| now < then) {
            return None;
        }
        let answer = tokio::select! {
            biased;
            answer = call() => answer.map_err(|error| error.to_string()),
            patience = self.lose_patience(hub) => {
                Err(format!("its store did not answer within {patience:?}"))
            }
        };
        match answer {
            Ok(answer) => {
                self.forgive(hub);
                Some(answer)
            }
            Err(error) => {
                failures.add(1);
                hub.degraded(self.part, Some(&error));
                let mut away = self.away.lock();
                let failures = away.map_or(0, |(failures, _)| failures).saturating_add(1);
                *away = Some((failures, rt::now() + patience(failures)));
                None
            }
        }
    }

    /// Ends once a call takes too long, and says how long that was. A drain has less time than anybody else.
    async fn lose_patience(&self, hub: &Hub) -> Duration {
        let mut gate = hub.gate.watch();
        let drains = tokio::select! {
            biased;
            drains = gate.wait_for(|gate| gate.draining) => drains.is_ok(),
            () = rt::sleep(self.patience) => false,
        };
        if !drains {
            return self.patience;
        }
        let patience = self.patience.min(DRAINING_PATIENCE);
        rt::sleep(patience).await;
        patience
    }

    /// It works, or is needed no more.
    pub(crate) fn forgive(&self, hub: &Hub) {
        let away = self.away.lock().take();
        if away.is_some() {
            hub.degraded(self.part, None);
        }
    }

    /// When the store may be asked again: it is not asked for every chunk while it is away.
    pub(crate) fn again_at(&self) -> Instant {
        self.away.lock().map_or_else(rt::now, |(_, then)| then)
    }
}
