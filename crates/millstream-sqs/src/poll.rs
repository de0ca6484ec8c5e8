//! One poll: [`poll`].

use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt::{self, Instant};

use crate::condition::Part;
use crate::desk::{Reservation, Stage, jittered};
use crate::service::Receive;
use crate::wire::Arrived;

/// How long to wait after a first failure, and at most; twice as long after each further one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// For which part of its time what an attempt brings can be asked for again: after all of it, it may be somebody else's.
/// A call that fails takes some of it too.
const REPEATED: u32 = 4;

/// What makes the answer to a receive come again that was lost.
struct Attempt {
    id: String,
    began: Instant,
}

impl Attempt {
    fn new() -> Self {
        Self {
            id: format!("{:032x}", fastrand::u128(..)),
            began: rt::now(),
        }
    }
}

/// Waits for messages once, and tries until SQS has said what there is.
///
/// It runs as a task that nobody cancels: what SQS has sent and nobody reads is hidden from everyone until its time is
/// up. A drain waits for it.
pub(crate) async fn poll(reservation: Reservation) {
    let desk = Arc::clone(reservation.desk());
    let mut attempt = Attempt::new();
    let mut pause = BACKOFF.0;
    loop {
        if attempt.began.elapsed() > desk.pace.visibility / REPEATED {
            attempt = Attempt::new();
        }
        let how = Receive {
            most: reservation.most(),
            wait: desk.pace.wait,
            visibility: desk.pace.visibility,
            attempt: desk.fifo.then_some(&attempt.id),
        };
        let asked = rt::now();
        match desk.service.receive(how).await {
            Ok(received) => {
                desk.condition.note(Part::Receiving, None);
                let arrived = received.into_iter().filter_map(Arrived::of).collect();
                return reservation.redeem(arrived, asked);
            }
            Err(trouble) => {
                desk.condition.note(Part::Receiving, Some(&trouble.text));
                desk.narrow();
                tokio::select! {
                    biased;
                    () = desk.past(Stage::Open) => return,
                    () = rt::sleep_until(jittered(pause)) => {}
                }
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}
