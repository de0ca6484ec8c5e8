//! The rate limit that processes share, as a pipeline asks for it.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::envelope::Envelope;
use super::histogram::Histogram;
use super::hub::Hub;
use super::keyed::Paces;
use super::stores::Calls;
use crate::dedup::OnStoreFailure;
use crate::rates::{Ask, SharedRateSpec, Turns};
use crate::rt::{self, Duration, Instant};

/// How long the store may take to answer. Intake stands still meanwhile.
const STORE_PATIENCE: Duration = Duration::from_secs(1);

/// What the pipeline's condition calls the store.
const STORE: &str = "rate_limit";

/// The most bytes of a key: longer ones that begin alike share a limit.
const LONGEST_KEY: usize = 1024;

/// The store, and how it has answered.
#[derive(Debug)]
pub(crate) struct SharedRate {
    spec: SharedRateSpec,
    calls: Calls,
    /// How long it took to answer.
    pub(crate) took: Histogram,
}

impl SharedRate {
    pub(crate) fn new(spec: SharedRateSpec) -> Self {
        Self {
            spec,
            calls: Calls::new(STORE, STORE_PATIENCE),
            took: Histogram::of_times(),
        }
    }

    /// Whether messages run within a limit of this process while the store is away.
    pub(crate) fn runs_alone(&self) -> bool {
        self.spec.on_store_failure == OnStoreFailure::Run
    }

    /// When the store may be asked again.
    pub(crate) fn again_at(&self) -> Instant {
        self.calls.again_at()
    }

    /// There is no limit any more, and so nothing that the store is needed for.
    pub(crate) fn forgive(&self, hub: &Hub) {
        self.calls.forgive(hub);
    }

    /// How long each of these messages waits for its turn, which it has with that; nothing while the store is away.
    pub(crate) async fn turns(
        &self,
        hub: &Hub,
        paces: &Paces,
        envelopes: &[Envelope],
        returns: bool,
    ) -> Option<Vec<Duration>> {
        let mut asks: Vec<Ask> = Vec::new();
        let mut places: FxHashMap<&str, usize> = FxHashMap::default();
        let mut of = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            let key = cut(paces.key(&envelope.message));
            let place = *places.entry(key).or_insert(asks.len());
            if place == asks.len() {
                asks.push(Ask {
                    key: Bytes::copy_from_slice(key.as_bytes()),
                    pace: paces.pace(key),
                    number: 0,
                    returns,
                });
            }
            if let Some(ask) = asks.get_mut(place) {
                ask.number += 1;
            }
            of.push(place);
        }
        let began = rt::now();
        let call = || self.spec.store.take(&asks);
        let failures = &hub.counters.rate_store_failures;
        let mut answers = self.calls.ask(hub, failures, call).await?;
        self.took.record_time(began.elapsed(), 1);
        Some(
            of.into_iter()
                .map(|place| match (asks.get(place), answers.get_mut(place)) {
                    (Some(ask), Some(turns)) => next(turns, ask.pace.each),
                    _ => Duration::ZERO,
                })
                .collect(),
        )
    }
}

/// The first of these turns, which is taken.
fn next(turns: &mut Turns, each: Duration) -> Duration {
    if let Some(left) = turns.now.checked_sub(1) {
        turns.now = left;
        return Duration::ZERO;
    }
    let wait = turns.wait;
    turns.wait = wait.saturating_add(each);
    wait
}

/// As much of the key as a store is told.
fn cut(key: &str) -> &str {
    key.get(..key.floor_char_boundary(LONGEST_KEY)).unwrap_or(key)
}
