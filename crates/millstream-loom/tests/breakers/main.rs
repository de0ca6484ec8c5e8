//! What all breakers together say is what the last of them to turn has left.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::default_constructed_unit_structs,
    reason = "a test fails by panicking, and what stands in for the engine takes what that takes"
)]
#![expect(dead_code, reason = "the engine needs more of its files than a model does")]

extern crate millstream_loom as parking_lot;
extern crate millstream_loom as std;
extern crate millstream_loom as tokio;

mod engine;

mod measures {
    pub(crate) use millstream_core::BreakerMeasures;
}

mod rt {
    pub(crate) use millstream_core::rt::{Duration, Instant, now};
}

mod spec {
    pub(crate) use millstream_core::BreakerSpec;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use loom::thread;

use crate::engine::breaker::Runs;
use crate::engine::breakers::Breakers;
use crate::engine::gate::Gate;
use crate::spec::BreakerSpec;

const SUCCESS: Runs = Runs {
    succeeded: 1,
    failed: 0,
};
const FAILURE: Runs = Runs {
    succeeded: 0,
    failed: 1,
};

/// Breakers with these names, and the gate that they act on.
fn breakers<const NAMES: usize>(names: [&str; NAMES]) -> (Arc<Breakers>, Gate) {
    let gate = Gate::new();
    let specs: BTreeMap<_, _> = names
        .map(|name| (name.to_owned(), BreakerSpec::default()))
        .into_iter()
        .collect();
    let breakers = Breakers::new(&"test".into(), &gate, None, &specs);
    (Arc::new(breakers), gate)
}

fn record(breakers: &Breakers, name: &str, runs: Runs) {
    let named = breakers.dependency(name).expect("it is one of them");
    breakers.record_call(&named, 0, runs);
}

#[test]
fn one_that_opens_as_another_closes_holds_the_source_back() {
    loom::model(|| {
        let (breakers, gate) = breakers(["closes", "opens"]);
        record(&breakers, "closes", FAILURE);
        let closing = thread::spawn({
            let breakers = Arc::clone(&breakers);
            move || record(&breakers, "closes", SUCCESS)
        });
        record(&breakers, "opens", FAILURE);
        closing.join().unwrap();
        assert!(!breakers.is_closed() && gate.state().broken);
    });
}

#[test]
fn the_last_two_that_close_let_the_source_go_on() {
    loom::model(|| {
        let (breakers, gate) = breakers(["one", "other"]);
        record(&breakers, "one", FAILURE);
        record(&breakers, "other", FAILURE);
        let closing = thread::spawn({
            let breakers = Arc::clone(&breakers);
            move || record(&breakers, "one", SUCCESS)
        });
        record(&breakers, "other", SUCCESS);
        closing.join().unwrap();
        assert!(breakers.is_closed() && !gate.state().broken);
    });
}

#[test]
fn one_that_opens_as_another_is_added_holds_the_source_back() {
    loom::model(|| {
        let (breakers, gate) = breakers(["opens"]);
        let setting = thread::spawn({
            let breakers = Arc::clone(&breakers);
            let specs = ["added", "opens"].map(|name| (name.to_owned(), BreakerSpec::default()));
            move || breakers.set(None, &BTreeMap::from(specs))
        });
        record(&breakers, "opens", FAILURE);
        setting.join().unwrap();
        assert!(!breakers.is_closed() && gate.state().broken);
    });
}
