//! Leases against a model that is plainly right, beside a queue that hides what it is told to hide: what is put off and
//! when, what a settlement stops, and what is given up before somebody else may have it (P2).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt::{self, Instant};
use proptest::prelude::*;

use crate::leases::{Leases, Received};
use crate::service::BATCH;

const VISIBILITY: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(10);
/// No two looks at the clock come sooner one after the other.
const SHORTEST: Duration = Duration::from_millis(20);
/// What is put off may be so much sooner than it has to be, so that it is not all put off at once.
const JITTER: f64 = 0.1;

#[derive(Clone, Debug)]
enum Step {
    /// Of this group, asked for so long ago.
    Receive(Option<u8>, u64),
    HandOut(usize),
    Settle(usize),
    /// The settlement of one comes to this.
    Settled(usize, bool),
    Pass(u64),
    /// The clock is looked at: a call for every ten that are due.
    Look,
    /// The answer to a call, for each of its entries.
    Answer(usize, Vec<Answer>),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Hidden,
    /// It was not, and may be next time.
    Failed,
    /// Somebody else has it.
    Gone,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let answer = prop_oneof![4 => Just(Answer::Hidden), 2 => Just(Answer::Failed), 1 => Just(Answer::Gone)];
    let answers = prop::collection::vec(answer, BATCH);
    let step = prop_oneof![
        5 => (prop::option::of(0..3_u8), 0..20_000_u64).prop_map(|(group, ago)| Step::Receive(group, ago)),
        3 => any::<usize>().prop_map(Step::HandOut),
        3 => any::<usize>().prop_map(Step::Settle),
        2 => (any::<usize>(), prop::bool::weighted(0.7)).prop_map(|(which, sent)| Step::Settled(which, sent)),
        5 => (0..6_000_u64).prop_map(Step::Pass),
        5 => Just(Step::Look),
        4 => (any::<usize>(), answers).prop_map(|(which, answers)| Step::Answer(which, answers)),
    ];
    prop::collection::vec(step, 1..120)
}

#[derive(Debug)]
struct Modelled {
    group: Option<u8>,
    /// Until when we take it for ours.
    ours: Instant,
    /// Until when the queue hides it, at least.
    hidden: Instant,
    /// It is put off in this time, from then on.
    beat: (Instant, Duration),
    beating: bool,
    settling: bool,
    out: bool,
}

impl Modelled {
    fn must_beat(&self) -> Instant {
        self.beat.0 + self.beat.1
    }

    fn may_beat(&self) -> Instant {
        self.beat.0 + self.beat.1.mul_f64(1.0 - JITTER)
    }

    fn is_idle(&self) -> bool {
        !self.settling && !self.beating
    }
}

/// A call that puts these off.
struct Call {
    from: Instant,
    entries: Vec<(u64, Duration)>,
}

#[derive(Default)]
struct Model {
    leases: BTreeMap<u64, Modelled>,
    calls: Vec<Call>,
    received: u64,
}

impl Model {
    /// The lease that a number stands for, if there is any.
    fn pick(&self, which: usize) -> Option<u64> {
        let number = which % self.leases.len().max(1);
        self.leases.keys().nth(number).copied()
    }

    /// What a look at the clock brings is what has to come, and nothing that may not.
    fn look(&mut self, leases: &mut Leases) {
        let now = rt::now();
        let mut due = leases.due();
        let ours = |lease: &Modelled| lease.ours > now;
        let over = self
            .leases
            .iter()
            .filter(|(_, lease)| !lease.settling && !ours(lease));
        let over: Vec<_> = over.map(|(sequence, _)| *sequence).collect();
        assert_eq!(due.expired, over);
        let beats: Vec<_> = due
            .beats
            .iter()
            .map(|(sequence, _, time)| (*sequence, *time))
            .collect();
        let has = |sequence: u64| beats.iter().filter(|(other, _)| *other == sequence).count();
        let soon = now + HEARTBEAT / 4;
        let goes_soon = |lease: &Modelled| lease.is_idle() && lease.may_beat() <= soon;
        for (sequence, lease) in &self.leases {
            let group = |other: &&Modelled| lease.group.is_some() && other.group == lease.group;
            // A group is put off together.
            let along = self.leases.values().filter(group).any(goes_soon);
            let may = lease.is_idle() && ours(lease) && (goes_soon(lease) || along);
            let must = lease.is_idle() && ours(lease) && lease.must_beat() <= now;
            let times = has(*sequence);
            assert!(
                times <= usize::from(may),
                "{sequence} is put off {times} times: {lease:?}"
            );
            assert!(
                !must || times == 1,
                "{sequence} is due and not put off: {lease:?}"
            );
            let together = self
                .leases
                .iter()
                .filter(|(_, other)| group(other) && other.is_idle() && ours(other));
            assert!(
                times == 0 || together.into_iter().all(|(other, _)| has(*other) == 1),
                "of a group, a part"
            );
        }
        let began = |lease: &Modelled| lease.is_idle() && lease.may_beat() <= now;
        assert!(
            beats.is_empty() || self.leases.values().any(began),
            "nothing was due"
        );
        for (sequence, time) in &beats {
            assert_eq!(*time, VISIBILITY);
            self.leases.get_mut(sequence).unwrap().beating = true;
        }
        for sequence in due.expired {
            assert!(self.leases.remove(&sequence).is_some());
            assert!(leases.remove(sequence).is_some());
        }
        // Each call begins at once, and needs all that it was made for.
        leases.beat(&mut due.beats);
        assert_eq!(due.beats.len(), beats.len());
        let calls = beats.chunks(BATCH).map(|entries| Call {
            from: now,
            entries: entries.to_vec(),
        });
        self.calls.extend(calls);
    }

    /// As the desk does what a call has come to.
    fn answer(&mut self, leases: &mut Leases, call: Call, answers: &[Answer]) {
        for ((sequence, time), answer) in call.entries.into_iter().zip(answers) {
            let lease = self.leases.get_mut(&sequence);
            match answer {
                Answer::Hidden => {
                    leases.extended(sequence, call.from, time);
                    if let Some(lease) = lease {
                        lease.beating = false;
                        lease.ours = call.from + time * 9 / 10;
                        lease.hidden = call.from + time;
                        lease.beat = (call.from, HEARTBEAT);
                    }
                }
                Answer::Failed => {
                    leases.not_extended(sequence);
                    if let Some(lease) = lease {
                        lease.beating = false;
                        lease.beat = (rt::now(), HEARTBEAT / 4);
                    }
                }
                Answer::Gone => {
                    leases.not_extended(sequence);
                    assert_eq!(
                        leases.remove(sequence).is_some(),
                        self.leases.remove(&sequence).is_some()
                    );
                }
            }
        }
    }

    fn compare(&self, leases: &Leases) {
        let now = rt::now();
        let idle = |lease: &Modelled| !lease.settling;
        let idle: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| idle(lease))
            .map(|(sequence, _)| *sequence)
            .collect();
        assert_eq!(leases.idle(), idle);
        for group in 0..3 {
            let of = |sequence: &u64| self.leases[sequence].group == Some(group);
            let is_out = self
                .leases
                .values()
                .any(|lease| lease.group == Some(group) && lease.out);
            let name = Arc::from(group.to_string());
            assert_eq!(leases.is_out(&name), is_out);
            assert_eq!(
                leases.of_group(&name),
                idle.iter().copied().filter(of).collect::<Vec<_>>()
            );
        }
        for (sequence, lease) in &self.leases {
            assert_eq!(leases.is_beating(&[*sequence]), lease.beating);
        }
        let next = leases.next();
        assert!(next <= now + HEARTBEAT / 2);
        for lease in self.leases.values().filter(|lease| !lease.settling) {
            assert!(lease.hidden > now, "somebody else may have it: {lease:?}");
            assert!(next <= lease.ours, "it would be given up late: {lease:?}");
            assert!(
                lease.beating || next <= lease.must_beat(),
                "it would be put off late: {lease:?}"
            );
        }
    }
}

async fn run(steps: Vec<Step>) {
    let mut leases = Leases::new(VISIBILITY, HEARTBEAT);
    let mut model = Model::default();
    rt::sleep(VISIBILITY).await;
    for step in steps {
        match step {
            Step::Receive(group, ago) => {
                let (sequence, now) = (model.received, rt::now());
                model.received += 1;
                let received = Received {
                    receipt: format!("r{sequence}").into(),
                    id: format!("m{sequence}").into(),
                    group: group.map(|group| group.to_string().into()),
                    receives: 1,
                    deliveries: 1,
                    message: None,
                };
                let asked = now - Duration::from_millis(ago);
                leases.add(sequence, received, asked);
                // The queue may have handed it out as soon as it was asked, but for what waited for a message.
                let handed_out = asked.max(now - VISIBILITY / 4);
                let lease = Modelled {
                    group,
                    ours: handed_out + VISIBILITY * 9 / 10,
                    hidden: handed_out + VISIBILITY,
                    beat: (now, HEARTBEAT),
                    beating: false,
                    settling: false,
                    out: false,
                };
                model.leases.insert(sequence, lease);
            }
            Step::HandOut(which) => {
                let Some(sequence) = model.pick(which) else {
                    continue;
                };
                let lease = model.leases.get_mut(&sequence).unwrap();
                let ours = lease.ours > rt::now();
                assert_eq!(leases.hand_out(sequence), ours);
                lease.out |= ours;
            }
            Step::Settle(which) => {
                let Some(sequence) = model.pick(which) else {
                    continue;
                };
                let lease = model.leases.get_mut(&sequence).unwrap();
                assert_eq!(leases.begin(sequence).is_some(), !lease.settling, "P2");
                lease.settling = true;
                assert!(leases.begin(sequence).is_none(), "P2");
            }
            Step::Settled(which, sent) => {
                let settling: Vec<_> = model.leases.iter().filter(|(_, lease)| lease.settling).collect();
                let Some((sequence, _)) = settling.get(which % settling.len().max(1)) else {
                    continue;
                };
                let sequence = **sequence;
                if sent {
                    model.leases.remove(&sequence);
                    assert!(leases.remove(sequence).is_some());
                    assert!(leases.begin(sequence).is_none(), "P2");
                } else {
                    model.leases.get_mut(&sequence).unwrap().settling = false;
                    leases.relent(sequence);
                    model.look(&mut leases);
                }
            }
            Step::Pass(time) => {
                let end = rt::now() + Duration::from_millis(time);
                // As the heartbeat does.
                while leases.next() < end {
                    let next = leases.next().max(rt::now() + SHORTEST);
                    tokio::time::advance(next - rt::now()).await;
                    model.look(&mut leases);
                }
                tokio::time::advance(end.saturating_duration_since(rt::now())).await;
            }
            Step::Look => model.look(&mut leases),
            Step::Answer(which, answers) => {
                if !model.calls.is_empty() {
                    let call = model.calls.remove(which % model.calls.len());
                    model.answer(&mut leases, call, &answers);
                }
            }
        }
        model.compare(&leases);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p2_leases_and_a_model_that_is_plainly_right_agree(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps));
    }
}
