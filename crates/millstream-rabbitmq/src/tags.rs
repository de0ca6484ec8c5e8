//! The deliveries of one open channel, and the channel to settle them on: [`Tags`].
//!
//! A channel is a generation. lapin's own recovery is never on, so a channel that was closed stays closed, and an
//! operation on it fails instead of reaching another's deliveries. Operations go out one group at a time and in the
//! order in which [`Window`] gives them.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use millstream_core::rt::{self, Instant};
use millstream_core::{OriginId, Outcome, Settle, Settlement, Ticket};
use tokio::sync::Mutex;

use crate::settings::OnFailure;
use crate::window::{Decided, Operation, Verdict, Window};

/// The most acks that wait to be sent with one operation.
const MOST: usize = 256;
/// How long an ack waits for more that come before it or after it to share an operation.
const RUN_WAITS: Duration = Duration::from_millis(5);
/// How long an ack waits behind an undecided delivery.
const REST_WAITS: Duration = Duration::from_millis(100);

/// Marks, in a ticket's sequence, a delivery that was delivered before. Tags count from 1 and never get there.
const REDELIVERED: u64 = 1 << 63;

/// The deliveries of one channel that are to be settled.
#[derive(Debug)]
pub(crate) struct Tags {
    generation: u32,
    origin: OriginId,
    channel: Channel,
    /// What the broker may have underway here.
    prefetch: AtomicUsize,
    /// Held while operations go out, so that they do so in order.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    window: Window<Ticket>,
    /// Since when some wait.
    waiting_since: Option<Instant>,
    operations: Vec<Operation>,
    sent: Vec<Ticket>,
}

impl Tags {
    pub(crate) fn new(generation: u32, origin: OriginId, channel: Channel) -> Self {
        Self {
            generation,
            origin,
            channel,
            prefetch: AtomicUsize::new(1),
            state: Mutex::default(),
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The ticket of one delivery.
    pub(crate) fn ticket(&self, tag: u64, redelivered: bool) -> Ticket {
        let sequence = if redelivered { tag | REDELIVERED } else { tag };
        Ticket::new(self.generation, self.origin, sequence)
    }

    /// From now on the broker has at most so many underway.
    pub(crate) fn set_prefetch(&self, prefetch: u16) {
        self.prefetch.store(prefetch.into(), Ordering::Relaxed);
    }

    /// Settles those that are of this channel. Acks are kept back while a longer run may come of them.
    pub(crate) async fn settle(
        &self,
        settlements: &[Settle],
        on_failure: OnFailure,
        outcomes: &mut Vec<(Settle, Outcome)>,
    ) {
        let mut state = self.state.lock().await;
        let State {
            closed,
            window,
            waiting_since,
            operations,
            sent,
        } = &mut *state;
        let first = outcomes.len();
        for settle in settlements {
            if settle.ticket.generation != self.generation {
                continue;
            }
            let mut outcome = Outcome::Stale;
            if !*closed {
                let verdict = verdict(settle, on_failure);
                let tag = settle.ticket.sequence & !REDELIVERED;
                match window.decide(tag, verdict, settle.ticket, operations) {
                    Ok(Some(_)) => outcome = Outcome::Sent,
                    // Answered for when it is sent.
                    Ok(None) => continue,
                    Err(Decided) => {}
                }
            }
            outcomes.push((settle.clone(), outcome));
        }
        let prefetch = self.prefetch.load(Ordering::Relaxed);
        let now = rt::now();
        let waited = waiting_since.map_or(Duration::ZERO, |since| now - since);
        if window.run() >= (prefetch / 4).clamp(1, MOST) || waited >= RUN_WAITS {
            window.ack_run(operations, sent);
        }
        // Behind a slow delivery acks cannot wait for ever: the broker counts them as underway.
        if window.waiting() >= (prefetch / 2).max(1) || waited >= REST_WAITS {
            window.ack_all(operations, sent);
        }
        *waiting_since = (window.waiting() > 0).then(|| waiting_since.unwrap_or(now));
        self.send(&mut state, first, outcomes).await;
    }

    /// Sends what was kept back.
    pub(crate) async fn flush(&self, outcomes: &mut Vec<(Settle, Outcome)>) {
        let mut state = self.state.lock().await;
        let State {
            window,
            waiting_since,
            operations,
            sent,
            ..
        } = &mut *state;
        window.ack_all(operations, sent);
        *waiting_since = None;
        let first = outcomes.len();
        self.send(&mut state, first, outcomes).await;
    }

    /// Gives deliveries back that nobody has looked at.
    pub(crate) async fn give_back(&self, tickets: impl Iterator<Item = Ticket>) {
        let mut state = self.state.lock().await;
        let State {
            window, operations, ..
        } = &mut *state;
        for ticket in tickets {
            let tag = ticket.sequence & !REDELIVERED;
            // They were never handed out, so nobody else can have decided about them.
            window.decide(tag, Verdict::Requeue, ticket, operations).ok();
        }
        self.send(&mut state, 0, &mut Vec::new()).await;
    }

    /// The channel is gone. What was kept back is answered by the next [`flush`](Self::flush).
    pub(crate) async fn close(&self) {
        self.state.lock().await.closed = true;
    }

    /// Carries out the operations and answers for what they settle; those answered from `first` on were decided
    /// for them.
    async fn send(&self, state: &mut State, first: usize, outcomes: &mut Vec<(Settle, Outcome)>) {
        if !state.closed && !state.operations.is_empty() {
            state.closed = carry_out(&self.channel, &state.operations).await.is_err();
        }
        state.operations.clear();
        let outcome = if state.closed {
            // The broker hands them out again.
            state.sent.extend(state.window.abandon());
            for (_, outcome) in outcomes.iter_mut().skip(first) {
                *outcome = Outcome::Stale;
            }
            Outcome::Stale
        } else {
            Outcome::Sent
        };
        outcomes.extend(state.sent.drain(..).map(|ticket| {
            let settlement = Settlement::Ack;
            (Settle { ticket, settlement }, outcome)
        }));
    }
}

fn verdict(settle: &Settle, on_failure: OnFailure) -> Verdict {
    match &settle.settlement {
        Settlement::Ack => Verdict::Ack,
        Settlement::Reject(_) => match on_failure {
            OnFailure::Reject => Verdict::Reject,
            OnFailure::Requeue => Verdict::Requeue,
            OnFailure::RequeueOnce if settle.ticket.sequence & REDELIVERED == 0 => Verdict::Requeue,
            OnFailure::RequeueOnce => Verdict::Reject,
        },
        // Nothing here can hold it back, so what is to come later comes again at once.
        Settlement::Release | Settlement::Retry { .. } => Verdict::Requeue,
    }
}

/// Carries out operations in order; they are written to the socket when it returns. Several share a write.
async fn carry_out(channel: &Channel, operations: &[Operation]) -> lapin::Result<()> {
    let mut writing: Vec<Pin<Box<dyn Future<Output = lapin::Result<()>> + Send + '_>>> = Vec::new();
    for &operation in operations {
        let mut write = Box::pin(one(channel, operation));
        // The first poll hands it to lapin, which writes in the order of these.
        match poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await {
            Poll::Ready(result) => result?,
            Poll::Pending => writing.push(write),
        }
    }
    for write in writing {
        write.await?;
    }
    Ok(())
}

async fn one(channel: &Channel, operation: Operation) -> lapin::Result<()> {
    match operation {
        Operation::Ack(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await,
        Operation::AckThrough(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
        Operation::Reject(tag) => {
            let options = BasicRejectOptions { requeue: false };
            channel.basic_reject(tag, options).await
        }
        Operation::Requeue(tag) => {
            let options = BasicNackOptions {
                requeue: true,
                multiple: false,
            };
            channel.basic_nack(tag, options).await
        }
    }
}
