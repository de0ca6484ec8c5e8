//! What goes between the calls of a transactional sink and the thread that makes its transactions: no call waits for
//! ever, and none that was dropped is committed later.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and what stands in for the engine takes what that takes"
)]
#![expect(dead_code, reason = "the connector needs more of its file than a model does")]

extern crate millstream_loom as parking_lot;
extern crate millstream_loom as std;
extern crate millstream_loom as tokio;

#[path = "../../../millstream-kafka/src/transactions/work.rs"]
mod work;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use loom::thread;
use millstream_core::{Delivered, Outgoing};

use crate::work::{Call, Letter, Round, Work, Write};

fn write(work: &Work) -> Call {
    work.write(vec![Letter {
        topic: "topic".into(),
        partition: None,
        message: Outgoing::new("hello"),
    }])
}

/// What a call was told. Nobody else will tell it anything.
fn answer(call: Call) -> Vec<Delivered> {
    match pin!(call.answer()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(answer)) => answer,
        other => panic!("a call was not answered: {other:?}"),
    }
}

/// Runs the first in a thread and the second here.
fn both<T: 'static>(
    work: &Arc<Work>,
    thread: impl FnOnce(&Work) + Send + 'static,
    here: impl FnOnce(&Work) -> T,
) -> T {
    let spawned = thread::spawn({
        let work = Arc::clone(work);
        move || thread(&work)
    });
    let value = here(work);
    spawned.join().expect("loom ends it");
    value
}

#[test]
fn the_thread_hears_of_what_it_waits_for() {
    loom::model(|| {
        let serve = |work: &Work| {
            let mut round = Round::default();
            assert!(work.collect(&mut round));
            round.writes.into_iter().for_each(Write::end);
        };
        let call = both(&Arc::default(), serve, write);
        assert_eq!(answer(call), [Delivered::Confirmed]);
    });
}

#[test]
fn the_thread_hears_that_it_shall_end() {
    loom::model(|| {
        let serve = |work: &Work| assert!(!work.collect(&mut Round::default()));
        both(&Arc::default(), serve, Work::close);
    });
}

#[test]
fn a_call_that_comes_as_the_thread_ends_is_answered() {
    loom::model(|| {
        let call = both(&Arc::default(), |work| work.end(Round::default()), write);
        assert!(matches!(&answer(call)[..], [Delivered::Failed(_)]));
    });
}

#[test]
fn a_call_that_is_dropped_during_a_transaction_is_not_in_the_next() {
    loom::model(|| {
        let work = Arc::<Work>::default();
        let call = write(&work);
        let mut round = Round::default();
        work.collect(&mut round);
        let claim = Arc::clone(&round.writes[0].claim);
        let dropping = thread::spawn(move || drop(call));
        if claim.claim() {
            // The transaction has failed.
            claim.unclaim();
        }
        dropping.join().unwrap();
        assert!(claim.is_dropped() && !claim.claim());
    });
}
