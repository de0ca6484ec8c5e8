//! Blows that fall when their time has come: [`Blows`].

use std::iter::Peekable;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::vec::IntoIter;

/// What is done to a target after how many messages. The target belongs to a thread of its own until all is over:
/// whoever reads the ledger must not wait for its writers.
pub(crate) struct Blows<T, B> {
    plan: Peekable<IntoIter<(u32, B)>>,
    orders: Sender<B>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static, B: Send + 'static> Blows<T, B> {
    /// Each after so many messages, sorted by that, and in this way.
    pub(crate) fn planned(plan: Vec<(u32, B)>, mut target: T, deal: fn(&mut T, B)) -> Self {
        let (orders, ordered) = channel();
        let thread = std::thread::spawn(move || {
            for blow in ordered {
                deal(&mut target, blow);
            }
            target
        });
        Self {
            plan: plan.into_iter().peekable(),
            orders,
            thread,
        }
    }

    /// Now that it is so many messages: what is due falls, one after the other.
    pub(crate) fn fall(&mut self, messages: u32) {
        while let Some((_, blow)) = self.plan.next_if(|(after, _)| messages >= *after) {
            self.orders.send(blow).unwrap();
        }
    }

    /// The target, once all that was due has fallen.
    pub(crate) fn over(self) -> T {
        drop(self.orders);
        self.thread.join().unwrap()
    }
}
