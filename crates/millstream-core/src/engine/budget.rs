//! The retry budget: retries are at most a share of recent runs, so that an outage does not turn into a storm.
//!
//! It is Finagle's, with its window and its floor, but what is beyond it waits for its turn instead of failing. Turns
//! are handed out by a token bucket (as a theoretical arrival time) that a window's worth of retries fits into.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::window::Window;
use crate::rt::{Duration, Instant};

/// How soon what had no room is looked at again.
pub(super) const AGAIN: Duration = Duration::from_millis(100);
/// How long a run counts as recent.
const WINDOW: Duration = Duration::from_secs(10);
/// Retries in a second that a quiet pipeline may always have.
const FLOOR: f64 = 10.0;

#[derive(Debug)]
pub(crate) struct Budget {
    /// The bits of the share of runs that may be retries; not a number where there is no budget.
    share: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    runs: Window<1>,
    /// When all retries that have their turn would have come, evenly spread.
    spread_until: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(share: Option<f64>) -> Self {
        Self {
            share: AtomicU64::new(share.unwrap_or(f64::NAN).to_bits()),
            state: Mutex::default(),
        }
    }

    /// From now on this share, or no budget.
    pub(crate) fn set(&self, share: Option<f64>) {
        self.share
            .store(share.unwrap_or(f64::NAN).to_bits(), Ordering::Relaxed);
    }

    fn share(&self) -> Option<f64> {
        Some(f64::from_bits(self.share.load(Ordering::Relaxed))).filter(|share| !share.is_nan())
    }

    /// Whether there is one.
    pub(crate) fn is_set(&self) -> bool {
        self.share().is_some()
    }

    /// So many messages have run.
    pub(crate) fn ran(&self, runs: usize, now: Instant) {
        let runs = u32::try_from(runs).unwrap_or(u32::MAX);
        self.state.lock().runs.count([runs], now, WINDOW);
    }

    /// How many of so many retries that are due may run now, which they have with that.
    pub(crate) fn take(&self, due: usize, now: Instant) -> usize {
        let Some(share) = self.share() else {
            return due;
        };
        let mut state = self.state.lock();
        let (rate, room) = state.room(share, now);
        let taken = due.min(room);
        state.spread_until = Some(now + state.ahead(now) + Duration::from_secs_f64(taken as f64 / rate));
        taken
    }

    /// Whether a retry that is due may run now.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        let share = self.share();
        share.is_none_or(|share| self.state.lock().room(share, now).1 > 0)
    }

    /// How long one more retry waits for its turn, which it has with that: for what cannot be asked for again when it
    /// is due.
    pub(crate) fn turn(&self, now: Instant) -> Duration {
        let Some(share) = self.share() else {
            return Duration::ZERO;
        };
        let mut state = self.state.lock();
        let ahead = state.ahead(now);
        // What ran of late says nothing of what will have run later than a window from now.
        let rate = match ahead > 2 * WINDOW {
            true => FLOOR,
            false => state.rate(share, now),
        };
        let ahead = ahead + Duration::from_secs_f64(1.0 / rate);
        state.spread_until = Some(now + ahead);
        ahead.saturating_sub(WINDOW)
    }
}

impl State {
    /// Retries that there may be in a second.
    fn rate(&mut self, share: f64, now: Instant) -> f64 {
        let [runs] = self.runs.sum(now, WINDOW);
        FLOOR + share * f64::from(runs) / WINDOW.as_secs_f64()
    }

    /// That rate, and how many there may be now.
    fn room(&mut self, share: f64, now: Instant) -> (f64, usize) {
        let rate = self.rate(share, now);
        let room = WINDOW.saturating_sub(self.ahead(now)).as_secs_f64() * rate;
        // Half of one, so that a sum of fractions that falls short of a whole by a rounding error is one.
        (rate, (room + 0.5) as usize)
    }

    fn ahead(&self, now: Instant) -> Duration {
        self.spread_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn without_one_nothing_waits() {
        let budget = Budget::new(None);
        assert!(!budget.is_set());
        assert!((0..100_000).all(|_| budget.turn(rt::now()).is_zero()));
        assert_eq!(budget.take(100_000, rt::now()), 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_pipeline_may_retry_ten_times_a_second_and_a_windows_worth_at_once() {
        let budget = Budget::new(Some(0.2));
        let waits: Vec<_> = (0..200).map(|_| budget.turn(rt::now())).collect();
        assert!(waits[..100].iter().all(Duration::is_zero));
        assert_eq!(waits[199].as_millis(), 10_000);
        tokio::time::advance(20 * SECOND).await;
        assert!(budget.turn(rt::now()).is_zero(), "turns that are over are over");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_has_what_there_is_room_for() {
        let budget = Budget::new(Some(0.2));
        assert_eq!(budget.take(1_000, rt::now()), 100);
        assert_eq!(budget.take(1_000, rt::now()), 0);
        let mut taken = 0;
        for _ in 0..100 {
            tokio::time::advance(AGAIN).await;
            taken += budget.take(1_000, rt::now());
        }
        assert!((99..=101).contains(&taken), "{taken} in ten seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn recent_runs_allow_a_share_of_themselves() {
        let budget = Budget::new(Some(0.2));
        budget.ran(10_000, rt::now());
        let at_once = (0..10_000)
            .take_while(|_| budget.turn(rt::now()).is_zero())
            .count();
        assert!((2_099..=2_101).contains(&at_once), "{at_once}");
        tokio::time::advance(10 * SECOND).await;
        // Those runs are no longer recent.
        let later = (0..10_000)
            .take_while(|_| budget.turn(rt::now()).is_zero())
            .count();
        assert!((99..=101).contains(&later), "{later}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_can_be_set_and_taken_away_while_it_runs() {
        let budget = Budget::new(None);
        budget.set(Some(1.0));
        assert!((0..101).any(|_| !budget.turn(rt::now()).is_zero()));
        budget.set(None);
        assert!(budget.turn(rt::now()).is_zero());
    }
}
