//! `tokio`'s [`Notify`] as its documentation has it, in a form that loom can look into.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::lock::Mutex;

/// Tells one or all of those who wait.
#[derive(Debug, Default)]
pub struct Notify(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// One was told when nobody waited.
    permit: bool,
    /// How often all were told.
    calls: usize,
    next: usize,
    /// In the order in which they came.
    waiters: VecDeque<Waiter>,
    /// Told, and not yet looked.
    told: Vec<(usize, By)>,
}

#[derive(Debug)]
struct Waiter {
    number: usize,
    waker: Option<Waker>,
}

/// Who has told a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    One,
    All,
}

impl State {
    /// Tells the first, or leaves word for the next. Whom to wake.
    fn tell_one(&mut self) -> Option<Waker> {
        let Some(waiter) = self.waiters.pop_front() else {
            self.permit = true;
            return None;
        };
        self.told.push((waiter.number, By::One));
        waiter.waker
    }
}

impl Notify {
    /// Nobody was told.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells the one that has waited longest, or else the next that will.
    pub fn notify_one(&self) {
        let waker = self.0.lock().tell_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells all that wait, and those that have asked to.
    pub fn notify_waiters(&self) {
        let waiters = {
            let mut state = self.0.lock();
            state.calls += 1;
            let waiters = std::mem::take(&mut state.waiters);
            let told = waiters.iter().map(|waiter| (waiter.number, By::All));
            state.told.extend(told.collect::<Vec<_>>());
            waiters
        };
        for waker in waiters.into_iter().filter_map(|waiter| waiter.waker) {
            waker.wake();
        }
    }

    /// Waits to be told.
    pub fn notified(&self) -> Notified<'_> {
        Notified {
            notify: self,
            stage: Stage::New(self.0.lock().calls),
        }
    }
}

/// Waits to be told.
#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// When all had been told so often.
    New(usize),
    Waits(usize),
    Told,
}

impl Notified<'_> {
    /// From now on it is among those who wait. Whether it was told already.
    pub fn enable(mut self: Pin<&mut Self>) -> bool {
        self.look(None)
    }

    fn look(&mut self, waker: Option<&Waker>) -> bool {
        let mut state = self.notify.0.lock();
        match self.stage {
            Stage::Told => return true,
            Stage::New(calls) => {
                if state.calls != calls || std::mem::take(&mut state.permit) {
                    self.stage = Stage::Told;
                    return true;
                }
                let number = state.next;
                state.next += 1;
                let waker = waker.cloned();
                state.waiters.push_back(Waiter { number, waker });
                self.stage = Stage::Waits(number);
            }
            Stage::Waits(number) => {
                if let Some(index) = state.told.iter().position(|(told, _)| *told == number) {
                    state.told.remove(index);
                    self.stage = Stage::Told;
                    return true;
                }
                let waiter = state.waiters.iter_mut().find(|waiter| waiter.number == number);
                if let (Some(waiter), Some(waker)) = (waiter, waker) {
                    waiter.waker = Some(waker.clone());
                }
            }
        }
        false
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.look(Some(context.waker())) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Notified<'_> {
    /// One that was told alone and has not looked passes it on.
    fn drop(&mut self) {
        let Stage::Waits(number) = self.stage else { return };
        let waker = {
            let mut state = self.notify.0.lock();
            state.waiters.retain(|waiter| waiter.number != number);
            let index = state.told.iter().position(|(told, _)| *told == number);
            match index.map(|index| state.told.remove(index)) {
                Some((_, By::One)) => state.tell_one(),
                _ => None,
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
