//! How the limit was chosen: candidates against a simulated downstream whose capacity and time change.
//!
//! The downstream has so many servers and a queue; a run takes its time at a server and what it waits before. Workers
//! always have the next message, as with a backlog, so by Little's law the best limit is the number of servers: fewer
//! leave some idle, more only wait. `cargo test -p millstream-core candidates -- --nocapture` prints the table.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::gradient::{Gradient, Window, median};

/// What follows latency and errors.
trait Limit {
    fn limit(&self) -> usize;
    fn update(&mut self, window: &Window);
}

impl Limit for Gradient {
    fn limit(&self) -> usize {
        self.limit()
    }

    fn update(&mut self, window: &Window) {
        self.update(window);
    }
}

/// One more while runs take what they took at best of late; a quarter less when they take half as long again or fail.
struct Aimd {
    min: f64,
    max: f64,
    limit: f64,
    best: VecDeque<f64>,
}

impl Aimd {
    fn new(min: usize, max: usize) -> Self {
        Self {
            min: min as f64,
            max: max as f64,
            limit: min as f64,
            best: VecDeque::new(),
        }
    }
}

impl Limit for Aimd {
    fn limit(&self) -> usize {
        self.limit as usize
    }

    fn update(&mut self, window: &Window) {
        if window.failures * 10 > window.runs {
            self.limit = (self.limit * 0.75).max(self.min);
            return;
        }
        self.best.push_back(window.took);
        if self.best.len() > 100 {
            self.best.pop_front();
        }
        let best = self.best.iter().copied().fold(f64::INFINITY, f64::min);
        if window.took > 1.5 * best {
            self.limit = (self.limit * 0.75).max(self.min);
        } else if window.busy * 2 >= self.limit() {
            self.limit = (self.limit + 1.0).min(self.max);
        }
    }
}

/// As in Netflix' `Gradient2Limit`: the long-term mean of what runs take stands for the downstream's own time.
struct Gradient2 {
    min: f64,
    max: f64,
    limit: f64,
    long: f64,
}

impl Gradient2 {
    fn new(min: usize, max: usize) -> Self {
        Self {
            min: min as f64,
            max: max as f64,
            limit: min as f64,
            long: 0.0,
        }
    }
}

impl Limit for Gradient2 {
    fn limit(&self) -> usize {
        self.limit as usize
    }

    fn update(&mut self, window: &Window) {
        if window.failures * 10 > window.runs {
            self.limit = (self.limit * 0.9).max(self.min);
            return;
        }
        self.long = match self.long {
            0.0 => window.took,
            long => long + (window.took - long) * 2.0 / 601.0,
        };
        if self.long > 2.0 * window.took {
            self.long *= 0.9;
        }
        if window.busy * 2 < self.limit() {
            return;
        }
        let gradient = (self.long / window.took).clamp(0.5, 1.0);
        let next = self.limit * gradient + 4.0;
        self.limit = (self.limit * 0.8 + next * 0.2).clamp(self.min, self.max);
    }
}

/// As many as there may be at most.
struct Fixed(usize);

impl Limit for Fixed {
    fn limit(&self) -> usize {
        self.0
    }

    fn update(&mut self, _: &Window) {}
}

/// A downstream over time: its servers, the seconds that each takes, and how many may wait before it refuses.
#[derive(Clone, Copy)]
struct Downstream {
    name: &'static str,
    servers: fn(f64) -> f64,
    takes: fn(f64) -> f64,
    /// What a run takes of that, by chance.
    spread: fn(f64) -> f64,
    queue: usize,
}

/// Most runs take about as long.
fn alike(chance: f64) -> f64 {
    0.6 - 0.4 * (1.0 - chance).ln()
}

/// One run in ten takes forty times as long as the others.
fn unlike(chance: f64) -> f64 {
    if chance < 0.1 { 8.2 } else { 0.2 }
}

const STEPS: Downstream = Downstream {
    name: "steps: 20, 80, 10 servers",
    servers: |at| match at {
        ..40.0 => 20.0,
        ..80.0 => 80.0,
        _ => 10.0,
    },
    takes: |_| 0.05,
    spread: alike,
    queue: usize::MAX,
};

const RAMP: Downstream = Downstream {
    name: "ramp: 10 to 100 servers and back",
    servers: |at| 10.0 + 90.0 * (1.0 - (at / 60.0 - 1.0).abs()),
    takes: |_| 0.05,
    spread: alike,
    queue: usize::MAX,
};

const SAWTOOTH: Downstream = Downstream {
    name: "sawtooth: 10 to 60 servers, each 30 s",
    servers: |at| 10.0 + 50.0 * (at % 30.0) / 30.0,
    takes: |_| 0.05,
    spread: alike,
    queue: usize::MAX,
};

const STEADY: Downstream = Downstream {
    name: "steady: 30 servers",
    servers: |_| 30.0,
    takes: |_| 0.05,
    spread: alike,
    queue: usize::MAX,
};

const SLOWER: Downstream = Downstream {
    name: "slower: 30 servers, 50 ms then 150 ms",
    servers: |_| 30.0,
    takes: |at| if at < 50.0 { 0.05 } else { 0.15 },
    spread: alike,
    queue: usize::MAX,
};

const UNLIKE: Downstream = Downstream {
    name: "unlike: steps, one run in ten takes long",
    spread: unlike,
    ..STEPS
};

const REFUSING: Downstream = Downstream {
    name: "refusing: steps, and no queue",
    queue: 0,
    ..STEPS
};

/// What came of a run of the simulation.
#[derive(Debug)]
struct Outcome {
    /// Of what the servers could have done.
    share: f64,
    /// Seconds that the slowest hundredth took, over what a server takes.
    slowest: f64,
    /// By how much the limit was beyond the servers, on average.
    overshoot: f64,
    /// Runs that were refused, of all.
    refused: f64,
}

/// An end of a run, at a time in nanoseconds, that began then.
type End = Reverse<(u64, u64)>;

const NANOS: f64 = 1e9;
const MIN: usize = 1;
const MAX: usize = 256;

fn simulate(limit: &mut dyn Limit, downstream: Downstream, seconds: f64) -> Outcome {
    // Numbers that look random and are the same each time.
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut chance = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as f64 / (1_u64 << 53) as f64
    };
    let until = (seconds * NANOS) as u64;
    let (mut ends, mut waiting) = (BinaryHeap::<End>::new(), VecDeque::<u64>::new());
    let mut refusals = BinaryHeap::<Reverse<u64>>::new();
    let (mut window, mut began, mut times) = (Window::default(), 0_u64, Vec::new());
    let (mut done, mut refused, mut ideal, mut over, mut last) = (0.0, 0.0, 0.0, 0.0, 0_u64);
    let mut ratios = Vec::new();
    let mut now = 0_u64;
    while now < until {
        let at = now as f64 / NANOS;
        let servers = (downstream.servers)(at).round();
        let passed = (now - last) as f64 / NANOS;
        ideal += passed * servers / (downstream.takes)(at);
        over += passed * (limit.limit() as f64 / servers - 1.0).max(0.0);
        last = now;
        // Workers take the next message, and servers the next that waits.
        while ends.len() + waiting.len() + refusals.len() < limit.limit() {
            if ends.len() + waiting.len() >= servers as usize + downstream.queue.min(1 << 30) {
                refusals.push(Reverse(now + 20_000_000));
            } else {
                waiting.push_back(now);
            }
        }
        while ends.len() < servers as usize
            && let Some(began) = waiting.pop_front()
        {
            let takes = (downstream.takes)(at) * (downstream.spread)(chance());
            ends.push(Reverse((now + (takes * NANOS) as u64, began)));
        }
        window.busy = window.busy.max(ends.len() + waiting.len() + refusals.len());
        let next_end = ends.peek().map_or(u64::MAX, |Reverse((end, _))| *end);
        let next_refusal = refusals.peek().map_or(u64::MAX, |Reverse(end)| *end);
        now = next_end.min(next_refusal);
        if next_refusal <= next_end {
            refusals.pop();
            refused += 1.0;
            window.failures += 1;
        } else if let Some(Reverse((end, began))) = ends.pop() {
            let took = (end - began) as f64 / NANOS;
            done += 1.0;
            times.push(took);
            ratios.push(took / (downstream.takes)(at));
        }
        window.runs += 1;
        if now - began >= 50_000_000 && window.runs >= limit.limit().max(4) {
            window.took = median(&mut times);
            limit.update(&window);
            (window, began) = (Window::default(), now);
            times.clear();
        }
    }
    ratios.sort_by(f64::total_cmp);
    Outcome {
        share: done / ideal,
        slowest: ratios[ratios.len() * 99 / 100],
        overshoot: over / seconds,
        refused: refused / (done + refused),
    }
}

/// A name, and what makes one.
type Candidate = (&'static str, fn() -> Box<dyn Limit>);

fn candidates() -> [Candidate; 4] {
    [
        ("gradient", || Box::new(Gradient::new(MIN, MAX))),
        ("aimd", || Box::new(Aimd::new(MIN, MAX))),
        ("gradient2", || Box::new(Gradient2::new(MIN, MAX))),
        ("fixed 256", || Box::new(Fixed(256))),
    ]
}

const SCENES: [(Downstream, f64); 7] = [
    (STEPS, 120.0),
    (RAMP, 120.0),
    (SAWTOOTH, 90.0),
    (STEADY, 300.0),
    (SLOWER, 100.0),
    (UNLIKE, 120.0),
    (REFUSING, 120.0),
];

/// What each candidate comes to in each scene, in their order; printed as a table.
fn table() -> Vec<Vec<Outcome>> {
    println!(
        "| downstream | limit | throughput of the ideal | p99 over its own time | mean overshoot | refused |"
    );
    println!("|---|---|---|---|---|---|");
    let outcome = |downstream: Downstream, seconds, (name, candidate): Candidate| {
        let outcome = simulate(&mut *candidate(), downstream, seconds);
        println!(
            "| {} | {name} | {:.3} | {:.1} | {:.2} | {:.3} |",
            downstream.name, outcome.share, outcome.slowest, outcome.overshoot, outcome.refused
        );
        outcome
    };
    SCENES
        .into_iter()
        .map(|(downstream, seconds)| {
            candidates()
                .into_iter()
                .map(|candidate| outcome(downstream, seconds, candidate))
                .collect()
        })
        .collect()
}

#[test]
fn of_the_candidates_the_one_that_ships_uses_what_is_there_and_queues_least() {
    for outcomes in table() {
        let [gradient, aimd, gradient2, unbounded] = outcomes.try_into().unwrap();
        let queues = unbounded.overshoot.max(1.0);
        assert!(gradient.share > 0.93, "{gradient:?}");
        assert!(
            gradient.slowest < 9.0 && gradient.overshoot < queues / 10.0,
            "{gradient:?}"
        );
        assert!(gradient.share > aimd.share, "{gradient:?} {aimd:?}");
        // It may leave a little unused for what it does not queue.
        assert!(
            gradient.share > gradient2.share - 0.03 && gradient.overshoot < gradient2.overshoot + 0.2,
            "{gradient:?} {gradient2:?}"
        );
    }
}

#[test]
fn a_queue_that_lasts_does_not_become_the_downstreams_own_time() {
    let overshoot = |limit: &mut dyn Limit| simulate(limit, STEADY, 900.0).overshoot;
    assert!(overshoot(&mut Gradient::new(MIN, MAX)) < 0.5);
    assert!(
        overshoot(&mut Gradient2::new(MIN, MAX)) > 1.0,
        "the reason is gone"
    );
}

#[test]
fn the_limit_stays_within_its_bounds_whatever_is_measured() {
    let mut gradient = Gradient::new(3, 9);
    let windows = [0.0, f64::MIN_POSITIVE, 1e-9, 1.0, 1e9].into_iter().cycle();
    for (number, took) in windows.enumerate().take(10_000) {
        let failures = if number % 7 == 0 { 10 } else { 0 };
        gradient.update(&Window {
            runs: 10,
            failures,
            took,
            busy: 9,
        });
        assert!((3..=9).contains(&gradient.limit()), "{gradient:?}");
    }
    gradient.set(20, 10);
    assert_eq!(gradient.limit(), 20, "the least counts where both cannot be");
}
