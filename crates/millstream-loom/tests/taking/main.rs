//! Whoever waits at the ready queue is woken when there is something for it, in whatever order threads come by.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking, and what stands in for the engine takes what that takes"
)]
#![expect(dead_code, reason = "the engine needs more of its files than a model does")]

extern crate millstream_loom as parking_lot;
extern crate millstream_loom as std;
extern crate millstream_loom as tokio;

mod engine;

mod mutants {
    #[derive(Clone, Copy)]
    pub(crate) enum Mutant {
        LostWakeUp,
        RetryOvertaken,
    }

    pub(crate) fn mutant(_: Mutant) -> bool {
        false
    }
}

mod rt {
    pub(crate) use millstream_core::rt::{Duration, Instant, now};
}

mod ordering {
    #[derive(Debug)]
    pub(crate) struct Ordering;
}

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use loom::thread::{self, JoinHandle};
use millstream_loom::block_on;

use crate::engine::envelope::Envelope;
use crate::engine::ready::Ready;
use crate::engine::sentinels::Sentinels;

/// Every order in which a thread is broken off three times at most.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(run);
}

fn queue(workers: usize) -> Arc<Ready> {
    Arc::new(Ready::new(workers, Arc::new(Sentinels)))
}

fn admit(ready: &Ready, messages: usize) {
    let mut envelopes = (0..messages).map(|_| Envelope::new()).collect();
    ready.admit(&mut envelopes, 1, 0);
}

/// A worker that takes one message, once it may. Says how many it has got.
fn worker(
    ready: &Arc<Ready>,
    seat: usize,
    may: impl Fn() -> bool + Send + 'static,
) -> JoinHandle<(bool, usize)> {
    let ready = Arc::clone(ready);
    thread::spawn(move || {
        let _at_work = ready.begin();
        let mut taken = VecDeque::new();
        let allowed = |most, _: &mut dyn FnMut(u32) -> bool| if may() { most } else { 0 };
        let may_go_on = block_on(ready.take(seat, &mut taken, || 1, || 0, allowed));
        (may_go_on, taken.len())
    })
}

#[test]
fn two_workers_get_what_comes_in_two_chunks() {
    model(|| {
        let ready = queue(2);
        let workers = [0, 1].map(|seat| worker(&ready, seat, || true));
        admit(&ready, 1);
        admit(&ready, 1);
        assert_eq!(workers.map(|worker| worker.join().unwrap()), [(true, 1); 2]);
    });
}

#[test]
fn two_workers_get_what_comes_in_one_chunk() {
    model(|| {
        let ready = queue(2);
        let workers = [0, 1].map(|seat| worker(&ready, seat, || true));
        admit(&ready, 2);
        assert_eq!(workers.map(|worker| worker.join().unwrap()), [(true, 1); 2]);
    });
}

#[test]
fn a_worker_that_waits_for_a_breaker_takes_when_it_closes() {
    model(|| {
        let ready = queue(1);
        admit(&ready, 1);
        let closed = Arc::new(AtomicBool::new(false));
        let worker = worker(&ready, 0, {
            let closed = Arc::clone(&closed);
            move || closed.load(Ordering::Acquire)
        });
        closed.store(true, Ordering::Release);
        ready.wake_takers();
        assert_eq!(worker.join().unwrap(), (true, 1));
    });
}

#[test]
fn a_worker_that_waits_ends_when_the_queue_is_closed() {
    model(|| {
        let ready = queue(1);
        let worker = worker(&ready, 0, || true);
        ready.close();
        assert_eq!(worker.join().unwrap(), (false, 0));
    });
}

#[test]
fn a_worker_that_dies_as_it_is_woken_leaves_the_message_to_another() {
    model(|| {
        let ready = queue(2);
        let other = worker(&ready, 1, || true);
        let dying = thread::spawn({
            let ready = Arc::clone(&ready);
            move || {
                let _at_work = ready.begin();
                let mut taken = VecDeque::new();
                let mut take = pin!(ready.take(0, &mut taken, || 1, || 0, |most, _| most));
                block_on(poll_fn(|context| {
                    let _ = take.as_mut().poll(context);
                    Poll::Ready(())
                }));
            }
        });
        admit(&ready, 2);
        assert_eq!(other.join().unwrap(), (true, 1));
        dying.join().unwrap();
    });
}

#[test]
fn intake_that_waits_reads_on_when_a_worker_has_taken() {
    model(|| {
        let ready = queue(1);
        admit(&ready, 1);
        let worker = worker(&ready, 0, || true);
        assert_eq!(block_on(ready.hungry(|_| Some(1))), 1);
        assert_eq!(worker.join().unwrap(), (true, 1));
    });
}
