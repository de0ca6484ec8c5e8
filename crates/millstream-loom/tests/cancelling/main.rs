//! What runs while its pipeline is cut or its lease goes is cancelled, whichever of them comes first; and nothing else is.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and what stands in for the engine takes what that takes"
)]
#![expect(dead_code, reason = "the engine needs more of its files than a model does")]

extern crate millstream_loom as parking_lot;
extern crate millstream_loom as std;
extern crate millstream_loom as tokio;
extern crate millstream_loom as tokio_util;

mod engine;

mod ticket {
    pub(crate) use millstream_core::{Scope, Ticket};
}

mod mutants {
    #[derive(Clone, Copy)]
    pub(crate) enum Mutant {
        CutForgetsRunning,
        LossUncounted,
        StaleHonoured,
    }

    pub(crate) fn mutant(_: Mutant) -> bool {
        false
    }
}

use std::sync::Arc;

use loom::thread;
use millstream_core::{OriginId, Scope, Ticket};

use crate::engine::envelope::Envelope;
use crate::engine::hub::Hub;

/// A message of this generation.
fn message(generation: u32) -> Envelope {
    Envelope::new(Ticket::new(generation, OriginId::default(), 0))
}

/// A hub with these in flight.
fn hub(in_flight: &mut [Envelope]) -> Arc<Hub> {
    let hub = Hub::new();
    hub.places
        .occupy(in_flight.iter_mut().map(|envelope| &mut envelope.ticket));
    Arc::new(hub)
}

/// Whether a message that begins to run for a while as this happens is cancelled, or does not begin.
fn is_cancelled_by(end: impl FnOnce(&Hub) + Send + 'static) -> bool {
    let hub = hub(&mut [message(1)]);
    let ending = thread::spawn({
        let hub = Arc::clone(&hub);
        move || end(&hub)
    });
    let seat = hub.seats.get(0);
    let cancellation = seat.cancellation();
    let occupied = hub.occupy(&seat, &message(1));
    ending.join().expect("loom ends it");
    occupied.is_none() || cancellation.is_cancelled()
}

#[test]
fn what_runs_as_the_pipeline_is_cut_is_cancelled() {
    loom::model(|| assert!(is_cancelled_by(Hub::cut)));
}

#[test]
fn what_runs_as_its_lease_goes_is_cancelled() {
    loom::model(|| {
        assert!(is_cancelled_by(|hub| {
            hub.lose(Scope::Generation(1));
        }));
    });
}

#[test]
fn what_runs_after_a_message_whose_lease_went_is_not_cancelled() {
    loom::model(|| {
        let hub = hub(&mut [message(1), message(2)]);
        let losing = thread::spawn({
            let hub = Arc::clone(&hub);
            move || hub.lose(Scope::Generation(1))
        });
        let seat = hub.seats.get(0);
        let first = seat.cancellation();
        drop(hub.occupy(&seat, &message(1)));
        let second = match first.is_cancelled() {
            true => seat.cancellation(),
            false => first,
        };
        let occupied = hub.occupy(&seat, &message(2));
        losing.join().unwrap();
        assert!(occupied.is_some() && !second.is_cancelled());
    });
}

#[test]
fn a_loss_is_not_forgotten_together_with_another() {
    loom::model(|| {
        let hub = hub(&mut [message(1), message(2)]);
        hub.withdraw(Scope::Generation(1));
        let losing = thread::spawn({
            let hub = Arc::clone(&hub);
            move || hub.withdraw(Scope::Generation(2))
        });
        hub.drop_lost(&[message(1)]);
        losing.join().unwrap();
        assert!(hub.is_lost(&message(2).ticket));
    });
}

#[test]
fn what_arrives_as_its_lease_goes_never_starts() {
    loom::model(|| {
        let hub = hub(&mut []);
        let losing = thread::spawn({
            let hub = Arc::clone(&hub);
            move || hub.withdraw(Scope::Generation(1))
        });
        let mut arrived = vec![message(1)];
        hub.take_in(&mut arrived);
        hub.ready.admit(arrived);
        losing.join().unwrap();
        let taken = hub.ready.remove(|_| true);
        assert!(taken.iter().all(|envelope| hub.is_lost(&envelope.ticket)));
    });
}
