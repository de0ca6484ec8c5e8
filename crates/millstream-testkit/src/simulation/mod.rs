//! A deterministic simulation: the whole engine on simulated time, against a broker that fails in every way it may,
//! with tasks that run in an order that a seed chooses. What happens is compared with the promises P1 to P8.
//!
//! Your own handlers run in it, in five lines of a test:
//!
//! ```
//! use millstream_core::{Context, Failure, Flow, Processor};
//! use millstream_testkit::simulation::Simulation;
//!
//! struct Count;
//!
//! impl Processor for Count {
//!     type Input = String;
//!     type Output = ();
//!
//!     async fn process(&self, text: String, _: &mut Context<'_>) -> Result<(), Failure> {
//!         let _: u64 = text.parse()?;
//!         Ok(())
//!     }
//! }
//!
//! let report = Simulation::new(|| Flow::process(Count)).seeds(0..50).run();
//! assert!(report.interleavings > 40);
//! ```
//!
//! [`Simulation::run`] panics when a promise is broken, and names the seed. The same seed goes the same way again, and
//! with `MILLSTREAM_SEED=<seed>` in the environment it alone is run and all that happens is printed.
//!
//! A handler should take its time and its chance from `tokio::time` and from `fastrand`, start no threads and do no
//! input or output: then it is as deterministic as the rest.

mod batches;
mod bounds;
mod broker;
mod commits;
mod connector;
mod drain;
mod features;
mod halts;
mod letters;
mod model;
mod numbers;
mod plan;
mod report;
mod run;
mod runs;
mod script;
mod settings;
mod steps;
mod twins;
mod verdict;
mod world;

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use millstream_core::{Message, PipelineSpec, SharedFlow};
use parking_lot::Mutex;

use features::Features;
use plan::{Letters, Plan};
pub use report::{Broken, Report};
use script::Deed;
pub use world::Violation;
use world::Written;

thread_local! {
    static FAULTY_COMMITS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the simulated broker's client commits past what is not settled: a bug on purpose.
pub(crate) fn faulty_commits() -> bool {
    FAULTY_COMMITS.get()
}

type MakeFlow = Arc<dyn Fn() -> SharedFlow + Send + Sync>;
type MakeMessage = Arc<dyn Fn(usize) -> Message + Send + Sync>;
type Change = Arc<dyn Fn(&mut PipelineSpec) + Send + Sync>;
type Prepare = Arc<dyn Fn() + Send + Sync>;

/// Runs of a flow under many seeds.
#[derive(Clone)]
pub struct Simulation {
    /// The user's; without one, handlers do what the seed says.
    flow: Option<MakeFlow>,
    message: MakeMessage,
    change: Change,
    prepare: Prepare,
    seeds: Range<u64>,
    keeps_going: bool,
}

impl Simulation {
    /// Simulates this flow, which is made anew for every process that a run starts.
    pub fn new<F: Into<SharedFlow>>(flow: impl Fn() -> F + Send + Sync + 'static) -> Self {
        Self {
            flow: Some(Arc::new(move || flow().into())),
            ..Self::scripted()
        }
    }

    /// Simulates the engine itself: its handlers succeed, fail, reject, hang, panic and end their process as the
    /// seed says.
    pub fn scripted() -> Self {
        Self {
            flow: None,
            message: Arc::new(script::numbered),
            change: Arc::new(|_| {}),
            prepare: Arc::new(|| {}),
            seeds: 0..1_000,
            keeps_going: false,
        }
    }

    /// The seeds to run, a thousand if you do not say.
    #[must_use]
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Goes on past seeds that break a promise, so that [`Report::violations`] has all of them.
    #[must_use]
    pub fn keep_going(mut self) -> Self {
        self.keeps_going = true;
        self
    }

    /// Makes the message with this number, which by default is its number in decimal, with one of twenty keys.
    #[must_use]
    pub fn messages(mut self, message: impl Fn(usize) -> Message + Send + Sync + 'static) -> Self {
        self.message = Arc::new(message);
        self
    }

    /// Changes the settings that a seed has chosen: limits, concurrency, timeouts and attempts are the test's to fix. What
    /// is ordered, where dead letters go and the source are the seed's.
    #[must_use]
    pub fn settings(mut self, change: impl Fn(&mut PipelineSpec) + Send + Sync + 'static) -> Self {
        self.change = Arc::new(change);
        self
    }

    /// Runs this first in each thread that runs seeds.
    #[must_use]
    pub fn prepare(mut self, prepare: impl Fn() + Send + Sync + 'static) -> Self {
        self.prepare = Arc::new(prepare);
        self
    }

    /// Lets the broker's client of this thread commit past what is not settled: a bug on purpose, for a test of the
    /// simulation itself. To be said in [`prepare`](Self::prepare).
    pub fn commit_past_gaps(really: bool) {
        FAULTY_COMMITS.set(really);
    }

    /// Runs all seeds, as many at a time as there are processors.
    ///
    /// # Panics
    /// When a promise is broken: it says which, how, by which seed, and what happened before.
    pub fn run(&self) -> Report {
        if let Ok(seed) = std::env::var("MILLSTREAM_SEED") {
            let seed = seed
                .parse()
                .unwrap_or_else(|_| panic!("MILLSTREAM_SEED is `{seed}`, not a number"));
            let (log, broken) = self.replay(seed);
            println!("{}", log.join("\n"));
            if let Some(broken) = broken {
                panic!("{broken}");
            }
            return self.clone().seeds(seed..seed + 1).explore();
        }
        let mut simulation = self.clone();
        simulation.keeps_going |= std::env::var_os("MILLSTREAM_KEEP_GOING").is_some();
        let report = simulation.explore();
        match &report.broken {
            Some(_) if simulation.keeps_going => panic!("{report}"),
            Some(broken) => panic!("{broken}"),
            None => report,
        }
    }

    /// The same, but a broken promise is in the report, and ends the search unless it is to [keep
    /// going](Self::keep_going).
    pub fn explore(&self) -> Report {
        let began = millstream_core::rt::now();
        let next = AtomicU64::new(self.seeds.start);
        let report = Mutex::new(Report::default());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    (self.prepare)();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let over = !self.keeps_going && report.lock().broken.is_some();
                        if seed >= self.seeds.end || over {
                            return;
                        }
                        let outcome = self.one(seed, false);
                        report.lock().add(seed, outcome);
                    }
                });
            }
        });
        let mut report = report.into_inner();
        report.took = began.elapsed();
        report
    }

    /// Runs one seed on this thread. Gives what happened, a line each, and the promise that was broken, if one was.
    pub fn replay(&self, seed: u64) -> (Vec<String>, Option<Violation>) {
        (self.prepare)();
        let outcome = self.one(seed, true);
        (outcome.log, outcome.violation)
    }

    /// A number that is the same for two runs of a seed only if they went the same way.
    pub fn fingerprint(&self, seed: u64) -> u64 {
        (self.prepare)();
        self.one(seed, false).fingerprint
    }

    fn one(&self, seed: u64, log: bool) -> run::Outcome {
        let mut plan = Plan::of(seed);
        match &self.flow {
            None => {
                let messages = script::messages(&plan, &mut Rng::with_seed(seed));
                run::run(seed, &plan, messages, &script::flow, &*self.change, log)
            }
            Some(flow) => {
                // The user's handlers take what time they take, and their messages have what headers they have.
                plan.timeout = Duration::from_secs(30);
                plan.features = Features::default();
                if plan.letters == Letters::Halt {
                    plan.letters = Letters::Sink;
                }
                let own = |number| Written {
                    message: (self.message)(number),
                    deed: Deed::Own,
                    runs: 0,
                    done: false,
                    dead: false,
                    failed_in_batch: false,
                };
                let messages = (0..plan.messages).map(own).collect();
                run::run(seed, &plan, messages, &|_, _, _| flow(), &*self.change, log)
            }
        }
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}
