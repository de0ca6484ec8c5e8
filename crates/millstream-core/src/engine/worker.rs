//! The processor pool: each worker takes a few ready messages, runs the user's code on them one after the other,
//! and hands over what came of all of them at once.
//!
//! A message never leaves the worker: user code gets the decoded input and a [`Context`]. Should the worker die,
//! [`Running`] fails the message that ran and [`Round`] hands over what had ended and returns the rest unrun (P2).

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio_util::sync::CancellationToken;

use super::breaker::Runs;
use super::entrance::Entrance;
use super::envelope::{Envelope, LaneId};
use super::fate::Fault;
use super::guard::{caught, text_of};
use super::hub::{FAIR_TAKE, Hub};
use super::probes::Permit;
use super::ready::Left;
use super::round::{Ran, Round, show};
use super::seat::Seat;
use crate::decode::Decode;
use crate::measures::Failed;
use crate::processor::{Context, Processor, Route};
use crate::rt;
use crate::settlement::Reason;
use crate::simulation::{Ended, Seen, see};

/// The ends of a flow, each with what enters it.
pub(crate) type Entrances<T> = Arc<[Box<dyn Entrance<T>>]>;

pub(crate) struct Worker<P: Processor> {
    pub(crate) hub: Arc<Hub>,
    pub(crate) processor: Arc<P>,
    pub(crate) entrances: Entrances<P::Output>,
    pub(crate) seat: usize,
}

impl<P: Processor> Worker<P> {
    pub(crate) async fn run(self) {
        let hub = Arc::clone(&self.hub);
        let stage = Arc::clone(&hub.processor.name);
        let mut round = Round::new(&hub, &self.entrances);
        let _at_work = hub.ready.begin();
        let seat = hub.seats.get(self.seat);
        let mut cancellation = seat.cancellation();
        let mut running = Running {
            settled: AtomicBool::new(false),
            hub: &hub,
            stage: &stage,
            era: 0,
            envelope: None,
        };
        while hub
            .ready
            .take(
                self.seat,
                &mut round.rest,
                || hub.fair_take(),
                || hub.spare(),
                |number, doubtful| hub.may_take(number, doubtful, &mut round.permit),
            )
            .await
        {
            if let Some(twins) = &hub.twins {
                round.sort_out(twins);
            }
            let started = rt::now();
            let busy = hub.adaptive.begin();
            running.era = round.permit.era;
            loop {
                // A breaker that opens meanwhile sends back what has not run.
                if round.permit.probe.is_none() && !hub.breakers.is_closed() {
                    break;
                }
                running.envelope = round.rest.pop_front();
                running.settled.store(false, Ordering::Relaxed);
                let Some(envelope) = &running.envelope else {
                    break;
                };
                if hub.is_lost(&envelope.ticket) {
                    round.dropped(running.envelope.take());
                    continue;
                }
                if hub.is_cut() {
                    // Nothing starts any more.
                    round.end(&mut running.envelope, Ran::Cancelled, Route::default(), &stage);
                    continue;
                }
                let decoded = running
                    .message()
                    .map(|message| catch_unwind(AssertUnwindSafe(|| P::Input::decode(message))));
                let input = match decoded {
                    Some(Ok(Ok(input))) => input,
                    Some(Ok(Err(error))) => {
                        show(&running.envelope, Ended::Rejected);
                        round.failed(Failed::Decode);
                        round.give_up(running.envelope.take(), &stage, Reason::Decode, error.to_string());
                        continue;
                    }
                    Some(Err(panic)) => {
                        show(&running.envelope, Ended::Rejected);
                        round.failed(Failed::Decode);
                        let error = format!("decoding panicked: {}", text_of(&*panic));
                        round.give_up(running.envelope.take(), &stage, Reason::Decode, error);
                        continue;
                    }
                    None => continue,
                };
                let mut route = Route::default();
                let ran = self
                    .run_one(input, &running, &mut route, &mut round, &seat, &cancellation)
                    .await;
                if matches!(ran, Ran::Ended(Err(Fault::Timeout(_)))) {
                    cancellation.cancel();
                }
                round.runs += 1;
                if cancellation.is_cancelled() {
                    cancellation = seat.cancellation();
                }
                if let Some(envelope) = &mut running.envelope {
                    envelope.settled |= running.settled.load(Ordering::Relaxed);
                }
                round.end(&mut running.envelope, ran, route, &stage);
            }
            round.ran(started.elapsed());
            drop(busy);
            round.hand_over();
            round.permit.probe = None;
            tokio::task::consume_budget().await;
        }
    }

    /// Runs the user's code on one message. Most futures are ready at once; for one that is not, the rest of the
    /// take goes back to the queue after a millisecond, so that nobody waits behind it.
    async fn run_one(
        &self,
        input: P::Input,
        running: &Running<'_>,
        route: &mut Route,
        round: &mut Round<'_, P::Output>,
        seat: &Seat,
        cancellation: &CancellationToken,
    ) -> Ran<P::Output> {
        let Some(envelope @ Envelope { ticket, message, .. }) = &running.envelope else {
            return Ran::Cancelled;
        };
        see(Seen::Began(*ticket));
        let hub = &*self.hub;
        let mut context = Context {
            message,
            ticket: *ticket,
            hub,
            cancellation,
            settled: &running.settled,
            route,
        };
        let mut future = pin!(caught(async {
            self.processor.process(input, &mut context).await
        }));
        if let Poll::Ready(result) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Ran::Ended(flatten(result));
        }

        let Some(occupied) = hub.occupy(seat, envelope) else {
            cancellation.cancel();
            return Ran::Cancelled;
        };
        let away = hub.ready.away();
        let pending_since = rt::now();
        let timeout = hub.settings.timeout();
        let give_back_at = pending_since + FAIR_TAKE;
        let deadline = rt::after(timeout);
        let mut gave_back = round.is_empty();
        let mut cancelled = pin!(cancellation.cancelled());
        let mut alarm = pin!(rt::sleep_until(if gave_back {
            deadline
        } else {
            give_back_at.min(deadline)
        }));
        let ran = loop {
            tokio::select! {
                biased;
                result = &mut future => break Ran::Ended(flatten(result)),
                () = &mut cancelled => break Ran::Cancelled,
                () = &mut alarm => {
                    if rt::now() >= deadline {
                        break Ran::Ended(Err(Fault::Timeout(timeout)));
                    }
                    if !std::mem::replace(&mut gave_back, true) {
                        hub.ran(1, FAIR_TAKE);
                        round.hand_over();
                    }
                    alarm.as_mut().reset(deadline);
                }
            }
        };
        let waited = pending_since.elapsed();
        round.slow_now = hub.breakers.is_slow(waited);
        round.waited.push(waited);
        drop((away, occupied));
        ran
    }
}

fn flatten<T>(result: Result<Result<T, crate::Failure>, String>) -> Result<T, Fault> {
    match result {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(failure)) => Err(Fault::Failure(failure)),
        Err(panic) => Err(Fault::Panic(panic)),
    }
}

/// The message that runs. Dropped with it, the worker has died: the message fails, unless it was cancelled.
struct Running<'a> {
    /// The user's code has settled what runs.
    settled: AtomicBool,
    hub: &'a Hub,
    stage: &'a Arc<str>,
    /// In which the take began.
    era: u64,
    envelope: Option<Envelope>,
}

impl Running<'_> {
    fn message(&self) -> Option<&crate::Message> {
        self.envelope.as_ref().map(|envelope| &envelope.message)
    }
}

impl Running<'_> {
    /// The worker was gone before it heard that the run is cancelled.
    fn cancelled(&self, envelope: Envelope, is_lost: bool) {
        let (hub, lane) = (self.hub, envelope.lane);
        see(Seen::Ended(envelope.ticket, Ended::Cancelled));
        if is_lost {
            hub.drop_lost(&[envelope]);
            let lane = Some(lane).filter(|lane| *lane != LaneId::NONE);
            hub.finish(1, lane.into_iter(), std::iter::empty());
        } else {
            hub.release([envelope]);
            hub.finish(0, std::iter::empty(), std::iter::once(Left::Withdrawn(lane)));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(mut envelope) = self.envelope.take() else {
            return;
        };
        envelope.settled |= self.settled.load(Ordering::Relaxed);
        let is_lost = self.hub.is_lost(&envelope.ticket);
        if is_lost || self.hub.is_cut() {
            return self.cancelled(envelope, is_lost);
        }
        see(Seen::Ended(envelope.ticket, Ended::Failed));
        self.hub.processor.failed(Failed::Died, 1);
        let permit = Permit {
            era: self.era,
            probe: None,
        };
        let failed = Runs {
            failed: 1,
            ..Runs::default()
        };
        self.hub.record(&permit, failed);
        let next = self.hub.next(&mut envelope, Fault::Died);
        let lane = envelope.lane;
        let left = self.hub.leave(self.stage, envelope, next);
        let gone = left.is_none();
        let lane = Some(lane).filter(|lane| gone && *lane != LaneId::NONE);
        self.hub
            .finish(usize::from(gone), lane.into_iter(), left.into_iter());
    }
}
