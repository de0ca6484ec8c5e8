//! Waiting for what other processes do.

use std::time::Duration;

// What is awaited happens outside of this process, on the real clock.
#[allow(
    clippy::disallowed_types,
    reason = "tokio's clock may be paused, a broker is not"
)]
use std::time::Instant;

/// Long enough for a broker to start on a machine that compiles something meanwhile.
pub(crate) const START: Duration = Duration::from_secs(120);

/// Long enough for anything else.
pub(crate) const SOON: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer; none if there was none in time.
#[allow(clippy::disallowed_types, reason = "as above")]
pub(crate) fn until<T>(within: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if began.elapsed() >= within {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}
