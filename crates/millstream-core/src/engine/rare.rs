//! Log lines for what should be rare: the first of a while is written, the rest of the while is counted.

use parking_lot::Mutex;

use crate::rt::{self, Duration, Instant};

const WHILE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Rare(Mutex<(Option<Instant>, u64)>);

impl Rare {
    /// Counts one. Where a line shall be written, gives how many went unwritten since the last one.
    pub(crate) fn tell(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let now = rt::now();
        if state.0.is_some_and(|last| now < last + WHILE) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}
