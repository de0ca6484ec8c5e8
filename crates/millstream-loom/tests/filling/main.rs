//! Intake waits for a batcher as long as that holds its share, and no longer, in whatever order messages enter and leave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "the engine needs more of its files than a model does")]

extern crate millstream_loom as std;

#[path = "../../../millstream-core/src/engine/fullness.rs"]
mod fullness;

mod spec {
    pub(crate) use millstream_core::Limits;
}

mod rt {
    pub(crate) use millstream_core::rt::{Duration, Instant, now};
}

use std::num::NonZeroUsize;
use std::sync::Arc;

use loom::thread;
use millstream_core::Limits;
use millstream_loom::Mutex;

use crate::fullness::Fullness;
use crate::rt::Instant;

fn limits(share: usize) -> Limits {
    Limits {
        in_flight: NonZeroUsize::new(share).unwrap(),
        per_batcher: 1.0,
        ..Limits::default()
    }
}

/// A batcher: what holds its lock here stands for all that it collects.
struct Batcher {
    fullness: Fullness,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    full: Option<Instant>,
    /// How often the gate was shut, less how often it was opened.
    shut: usize,
    /// What has entered and not left.
    inside: usize,
}

impl Batcher {
    /// One that may hold so many and holds so many.
    fn new(share: usize, inside: usize) -> Arc<Self> {
        let batcher = Self {
            fullness: Fullness::new(limits(share)),
            state: Mutex::default(),
        };
        batcher.enter(inside);
        Arc::new(batcher)
    }

    fn enter(&self, messages: usize) {
        self.fullness.enter(messages);
        let mut state = self.state.lock();
        state.inside += messages;
        let fills = self.fullness.fills(&mut state.full);
        state.shut += usize::from(fills);
    }

    fn leave(&self, messages: usize) {
        let mut state = self.state.lock();
        state.inside -= messages;
        let opens = self.fullness.leave(&mut state.full, messages);
        state.shut -= usize::from(opens);
    }

    fn set(&self, share: usize) {
        let mut state = self.state.lock();
        self.fullness.set(limits(share));
        let opens = self.fullness.leave(&mut state.full, 0);
        state.shut -= usize::from(opens);
    }

    /// How often the gate is shut, now that nobody enters or leaves.
    fn shut(&self) -> usize {
        let state = self.state.lock();
        assert_eq!(self.fullness.held(), state.inside);
        assert_eq!(state.full.is_some(), state.shut == 1);
        state.shut
    }
}

/// How often the gate is shut once both have been done at the same time to a batcher that may hold two and holds so many.
fn shut_after(inside: usize, one: fn(&Batcher), other: fn(&Batcher)) -> usize {
    let batcher = Batcher::new(2, inside);
    let beside = thread::spawn({
        let batcher = Arc::clone(&batcher);
        move || one(&batcher)
    });
    other(&batcher);
    beside.join().unwrap();
    batcher.shut()
}

#[test]
fn one_that_is_full_after_all_is_waited_for_once() {
    loom::model(|| {
        assert_eq!(
            shut_after(1, |batcher| batcher.enter(2), |batcher| batcher.leave(1)),
            1
        );
    });
    loom::model(|| {
        assert_eq!(
            shut_after(0, |batcher| batcher.enter(1), |batcher| batcher.enter(1)),
            1
        );
    });
    loom::model(|| {
        assert_eq!(
            shut_after(2, |batcher| batcher.enter(1), |batcher| batcher.leave(1)),
            1
        );
    });
}

#[test]
fn one_that_has_room_after_all_is_not_waited_for() {
    loom::model(|| {
        assert_eq!(
            shut_after(2, |batcher| batcher.enter(1), |batcher| batcher.leave(2)),
            0
        );
    });
    loom::model(|| {
        assert_eq!(
            shut_after(2, |batcher| batcher.leave(1), |batcher| batcher.leave(1)),
            0
        );
    });
}

#[test]
fn one_that_may_hold_more_is_not_waited_for() {
    loom::model(|| {
        assert_eq!(
            shut_after(1, |batcher| batcher.enter(1), |batcher| batcher.set(3)),
            0
        );
    });
}

#[test]
fn one_that_was_stuck_is_waited_for_again_once_a_batch_has_ended() {
    loom::model(|| {
        let batcher = Batcher::new(2, 2);
        {
            let mut state = batcher.state.lock();
            let long_ago = rt::now() - rt::Duration::from_secs(60);
            assert!(batcher.fullness.give_up(&mut state.full, long_ago).is_none());
            state.shut -= 1;
        }
        let beside = thread::spawn({
            let batcher = Arc::clone(&batcher);
            move || batcher.leave(1)
        });
        batcher.enter(2);
        beside.join().unwrap();
        batcher.enter(1);
        assert_eq!((batcher.shut(), batcher.fullness.is_stuck()), (1, false));
    });
}
