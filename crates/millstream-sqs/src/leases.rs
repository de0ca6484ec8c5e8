//! What the queue has handed out and has no settlement for: [`Leases`].
//!
//! Each delivery is hidden from others until its time is up, which is put off again and again while it is here. The
//! clock is our own: a delivery whose time is up is taken for lost, whatever SQS might still let us do with it. It runs
//! ahead of SQS' own, so that a run has been cancelled by the time that somebody else may have its message.

use std::sync::Arc;
use std::time::Duration;

use millstream_core::Message;
use millstream_core::rt::{self, Instant};
use rustc_hash::{FxHashMap, FxHashSet};

/// For how long after it was received SQS keeps a delivery hidden at most, whatever it is asked.
pub(crate) const LONGEST: Duration = Duration::from_secs(12 * 3_600);

/// The part of its time that a delivery is given up early, for it takes a moment to look at the clock and to cancel.
const EARLY: u32 = 10;
/// The part of its time that a delivery may have spent on its way here, if it was asked for that long ago. What waited
/// longer for an answer waited for a message, as a rule.
const UNDER_WAY: u32 = 4;

/// One delivery.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) receipt: Arc<str>,
    /// The message's.
    pub(crate) id: Arc<str>,
    /// The group that it holds up, where the queue keeps groups in order.
    pub(crate) group: Option<Arc<str>>,
    /// How often SQS has handed it out.
    pub(crate) receives: u32,
    /// How often of late without an outcome.
    pub(crate) deliveries: u32,
    /// For the dead-letter queue.
    pub(crate) message: Option<Message>,
    pub(crate) received: Instant,
    expires: Instant,
    /// When to put that off.
    beat: Instant,
    /// It is to be put off, or is being put off.
    beating: bool,
    /// The call that does is under way.
    called: bool,
    /// A settlement is on its way: it is not to be put off.
    settling: bool,
    /// The engine has it.
    out: bool,
}

/// What is to be put off, by its receipt, and by how much.
pub(crate) type Beat = (u64, Arc<str>, Duration);

/// What a look at the clock says.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// To be put off now.
    pub(crate) beats: Vec<Beat>,
    /// Lost.
    pub(crate) expired: Vec<u64>,
}

/// All deliveries, by the sequence of their tickets.
#[derive(Debug)]
pub(crate) struct Leases {
    visibility: Duration,
    heartbeat: Duration,
    leases: FxHashMap<u64, Lease>,
    /// How many of a group the engine has.
    out: FxHashMap<Arc<str>, usize>,
}

/// What a delivery is received with.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) receipt: Arc<str>,
    pub(crate) id: Arc<str>,
    pub(crate) group: Option<Arc<str>>,
    pub(crate) receives: u32,
    pub(crate) deliveries: u32,
    pub(crate) message: Option<Message>,
}

impl Leases {
    /// Deliveries are hidden for so long, which is put off so often.
    pub(crate) fn new(visibility: Duration, heartbeat: Duration) -> Self {
        Self {
            visibility,
            heartbeat,
            leases: FxHashMap::default(),
            out: FxHashMap::default(),
        }
    }

    /// A delivery that was asked for then has arrived.
    pub(crate) fn add(&mut self, sequence: u64, received: Received, asked: Instant) {
        let now = rt::now();
        let hidden = now - (now - asked).min(self.visibility / UNDER_WAY);
        let lease = Lease {
            receipt: received.receipt,
            id: received.id,
            group: received.group,
            receives: received.receives,
            deliveries: received.deliveries,
            message: received.message,
            received: now,
            expires: hidden + early(self.visibility),
            beat: now + self.jittered(),
            beating: false,
            called: false,
            settling: false,
            out: false,
        };
        self.leases.insert(sequence, lease);
    }

    /// A little less than the interval, so that what was received together is not put off together for ever.
    fn jittered(&self) -> Duration {
        self.heartbeat.mul_f64(0.9 + rt::chance() / 10.0)
    }

    /// The engine has it from now on, unless it has expired: says whether.
    pub(crate) fn hand_out(&mut self, sequence: u64) -> bool {
        let Some(lease) = self.leases.get_mut(&sequence) else {
            return false;
        };
        if lease.expires <= rt::now() {
            return false;
        }
        if !std::mem::replace(&mut lease.out, true)
            && let Some(group) = &lease.group
        {
            *self.out.entry(Arc::clone(group)).or_default() += 1;
        }
        true
    }

    /// Whether the engine has any of this group.
    pub(crate) fn is_out(&self, group: &Arc<str>) -> bool {
        self.out.contains_key(group)
    }

    /// A settlement is on its way; nothing for what is not held, or is being settled already.
    pub(crate) fn begin(&mut self, sequence: u64) -> Option<&Lease> {
        let lease = self.leases.get_mut(&sequence)?;
        if std::mem::replace(&mut lease.settling, true) {
            return None;
        }
        // Nothing waits for a call that has not begun.
        lease.beating &= lease.called;
        Some(lease)
    }

    /// The settlement did not arrive, and is held on.
    pub(crate) fn relent(&mut self, sequence: u64) {
        if let Some(lease) = self.leases.get_mut(&sequence) {
            lease.settling = false;
        }
    }

    pub(crate) fn remove(&mut self, sequence: u64) -> Option<Lease> {
        let lease = self.leases.remove(&sequence)?;
        if let Some(group) = lease.group.as_ref().filter(|_| lease.out)
            && let Some(held) = self.out.get_mut(group)
        {
            *held -= 1;
            if *held == 0 {
                self.out.remove(group);
            }
        }
        Some(lease)
    }

    /// Takes out all that no settlement is on its way for.
    pub(crate) fn idle(&self) -> Vec<u64> {
        let idle = self.leases.iter().filter(|(_, lease)| !lease.settling);
        let mut idle: Vec<_> = idle.map(|(sequence, _)| *sequence).collect();
        idle.sort_unstable();
        idle
    }

    /// All of this group that no settlement is on its way for.
    pub(crate) fn of_group(&self, group: &Arc<str>) -> Vec<u64> {
        let mut idle = self.idle();
        idle.retain(|sequence| {
            let lease = self.leases.get(sequence);
            lease.is_some_and(|lease| lease.group.as_ref() == Some(group))
        });
        idle
    }

    /// Whether any of these is to be put off, or is being put off.
    pub(crate) fn is_beating(&self, sequences: &[u64]) -> bool {
        sequences
            .iter()
            .any(|sequence| self.leases.get(sequence).is_some_and(|lease| lease.beating))
    }

    /// What is due, which then waits for its call. What will be due soon goes along, so that calls are full.
    pub(crate) fn due(&mut self) -> Due {
        let now = rt::now();
        let mut due = Due::default();
        let mut waiting = self
            .leases
            .values()
            .filter(|lease| !lease.settling && !lease.beating);
        let is_due = waiting.any(|lease| lease.beat <= now);
        let until = if is_due { now + self.heartbeat / 4 } else { now };
        // A group's together: none of it is to be seen again before what it follows.
        let groups: FxHashSet<_> = self
            .leases
            .values()
            .filter(|lease| !lease.settling && !lease.beating && lease.beat <= until)
            .filter_map(|lease| lease.group.clone())
            .collect();
        for (sequence, lease) in &mut self.leases {
            if lease.settling {
                continue;
            }
            let along = lease.group.as_ref().is_some_and(|group| groups.contains(group));
            if lease.expires <= now {
                due.expired.push(*sequence);
            } else if (lease.beat <= until || along) && !lease.beating {
                let time = self.visibility.min(lease.left(now));
                if time > Duration::ZERO {
                    lease.beating = true;
                    due.beats.push((*sequence, Arc::clone(&lease.receipt), time));
                }
            }
        }
        // In order, as no map is iterated in random order where it shows.
        due.expired.sort_unstable();
        due.beats.sort_unstable();
        due
    }

    /// Their call begins. Leaves out those that are being settled by now, or are gone: a call for them would hold up their
    /// settlement, or come after it.
    pub(crate) fn beat(&mut self, beats: &mut Vec<Beat>) {
        let now = rt::now();
        beats.retain_mut(|(sequence, _, time)| {
            let Some(lease) = self.leases.get_mut(sequence) else {
                return false;
            };
            *time = (*time).min(lease.left(now));
            lease.beating &= *time > Duration::ZERO;
            lease.beating && !std::mem::replace(&mut lease.called, true)
        });
    }

    /// When to look again, at the latest after half the time between two beats.
    pub(crate) fn next(&self) -> Instant {
        let latest = rt::now() + self.heartbeat / 2;
        self.leases
            .values()
            .filter(|lease| !lease.settling)
            .map(|lease| {
                if lease.beating {
                    lease.expires
                } else {
                    lease.beat.min(lease.expires)
                }
            })
            .fold(latest, Instant::min)
    }

    /// It was put off by so much from then on.
    pub(crate) fn extended(&mut self, sequence: u64, from: Instant, time: Duration) {
        let beat = from + self.jittered();
        if let Some(lease) = self.leases.get_mut(&sequence) {
            (lease.beating, lease.called) = (false, false);
            lease.expires = from + early(time);
            lease.beat = beat;
        }
    }

    /// It was not put off, and may yet be.
    pub(crate) fn not_extended(&mut self, sequence: u64) {
        let beat = rt::now() + self.jittered() / 4;
        if let Some(lease) = self.leases.get_mut(&sequence) {
            (lease.beating, lease.called) = (false, false);
            lease.beat = beat;
        }
    }
}

impl Lease {
    /// For how long SQS may keep it hidden yet, in whole seconds.
    fn left(&self, now: Instant) -> Duration {
        Duration::from_secs(LONGEST.saturating_sub(now - self.received).as_secs())
    }
}

/// For how much of this time a delivery is taken to be hidden.
fn early(time: Duration) -> Duration {
    time - time / EARLY
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISIBILITY: Duration = Duration::from_secs(30);
    const HEARTBEAT: Duration = Duration::from_secs(10);

    fn leases(sequences: std::ops::Range<u64>, group: Option<&str>) -> Leases {
        let mut leases = Leases::new(VISIBILITY, HEARTBEAT);
        for sequence in sequences {
            leases.add(sequence, received(sequence, group), rt::now());
        }
        leases
    }

    fn received(sequence: u64, group: Option<&str>) -> Received {
        Received {
            receipt: format!("r{sequence}").into(),
            id: format!("m{sequence}").into(),
            group: group.map(Arc::from),
            receives: 1,
            deliveries: 1,
            message: None,
        }
    }

    fn beats(due: &Due) -> Vec<(u64, Duration)> {
        due.beats
            .iter()
            .map(|(sequence, _, time)| (*sequence, *time))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_put_off_until_its_settlement_begins() {
        let mut leases = leases(0..2, None);
        rt::sleep(HEARTBEAT).await;
        assert!(leases.begin(1).is_some());
        assert!(leases.begin(1).is_none());
        let due = leases.due();
        assert_eq!((beats(&due), &due.expired), (vec![(0, VISIBILITY)], &vec![]));
        assert!(leases.is_beating(&[1, 0]) && !leases.is_beating(&[1]));
        assert!(leases.due().beats.is_empty());
        leases.extended(0, rt::now(), VISIBILITY);
        assert!(!leases.is_beating(&[0]));
        // The settlement came to nothing.
        leases.relent(1);
        assert_eq!(beats(&leases.due()), [(1, VISIBILITY)]);
    }

    /// P6: a drain has two seconds to give back what is held, and all of that may have become due just before.
    #[tokio::test(start_paused = true)]
    async fn a_settlement_waits_for_no_call_that_has_not_begun() {
        let mut leases = leases(0..4, None);
        rt::sleep(HEARTBEAT).await;
        let mut first = leases.due().beats;
        let mut second = first.split_off(2);
        leases.beat(&mut first);
        assert_eq!(
            (first.len(), leases.is_beating(&[1]), leases.is_beating(&[3])),
            (2, true, true)
        );
        for settled in [1, 3] {
            assert!(leases.begin(settled).is_some());
        }
        assert!(leases.is_beating(&[1]) && !leases.is_beating(&[3]));
        // The second call begins: one of its two is being settled, and no other is made for it meanwhile.
        assert!(leases.due().beats.is_empty());
        leases.beat(&mut second);
        assert_eq!(
            second.iter().map(|(sequence, ..)| *sequence).collect::<Vec<_>>(),
            [2]
        );
        // That settlement came to nothing: it is put off after all, and once, however many calls were to do it.
        leases.relent(3);
        let mut third = leases.due().beats;
        let mut fourth = third.clone();
        leases.beat(&mut third);
        leases.beat(&mut fourth);
        assert_eq!((third.len(), fourth.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_put_off_in_time_has_expired() {
        let mut leases = leases(0..1, None);
        rt::sleep(HEARTBEAT).await;
        assert_eq!(leases.due().beats.len(), 1);
        leases.not_extended(0);
        rt::sleep(HEARTBEAT).await;
        assert_eq!(leases.due().beats.len(), 1);
        rt::sleep(HEARTBEAT).await;
        assert_eq!(leases.due().expired, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_put_off_beyond_twelve_hours() {
        let mut leases = leases(0..1, None);
        while rt::now() < leases.leases[&0].received + LONGEST - VISIBILITY / 2 {
            rt::sleep_until(leases.next()).await;
            for (sequence, _, time) in leases.due().beats {
                leases.extended(sequence, rt::now(), time);
            }
        }
        rt::sleep(VISIBILITY).await;
        assert_eq!(leases.due().expired, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_long_under_way_is_lost_before_sqs_hands_it_out_again() {
        for (asked, left) in [(1, 26), (3, 24), (20, 27 - 30 / 4)] {
            let mut leases = leases(0..0, None);
            let before = rt::now();
            rt::sleep(Duration::from_secs(asked)).await;
            leases.add(0, received(0, None), before);
            rt::sleep(Duration::from_secs(left - 1)).await;
            assert!(leases.due().expired.is_empty(), "asked for {asked} s ago");
            rt::sleep(Duration::from_secs(1)).await;
            assert_eq!(leases.due().expired, [0], "asked for {asked} s ago");
            assert!(!leases.hand_out(0));
        }
    }

    /// P3: should the process end, an earlier message of a group must be seen again no later than a later one.
    #[tokio::test(start_paused = true)]
    async fn what_is_of_one_group_is_put_off_together() {
        let mut leases = leases(0..2, Some("g"));
        leases.extended(1, rt::now() + HEARTBEAT / 2, VISIBILITY);
        rt::sleep(HEARTBEAT).await;
        assert_eq!(beats(&leases.due()), [(0, VISIBILITY), (1, VISIBILITY)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_is_out_while_any_of_it_is() {
        let mut leases = leases(0..2, Some("g"));
        let group = Arc::from("g");
        assert!(!leases.is_out(&group));
        for sequence in [0, 1, 1] {
            assert!(leases.hand_out(sequence));
        }
        leases.remove(0);
        assert!(leases.is_out(&group));
        leases.remove(1);
        assert!(!leases.is_out(&group));
    }
}
