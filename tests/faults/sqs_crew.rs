//! The broker of a test on SQS, the processes that read its queue, and what is done to them: [`Crew`].

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use millstream_brokers::{ElasticMq, SqsProxy};
use millstream_core::rt::Instant;
use millstream_sqs::aws_sdk_sqs::Client;
use millstream_tests::Actor;
use millstream_tests::ledger::{Event, Ledger, NOT_MEASURED, Record};

/// Processes to begin with. There are no fewer than one less, and no more than one more.
const PROCESSES: usize = 3;

const RECEIVE: &str = "ReceiveMessage";
const DELETE: &str = "DeleteMessageBatch";
const HIDE: &str = "ChangeMessageVisibilityBatch";

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// A process is killed, and another one started.
    Kill,
    /// A process stands still for longer than its leases last, and goes on.
    Freeze,
    /// One more process comes.
    Join,
    /// A process drains and ends.
    Leave,
    /// The broker is stopped or killed, and started again.
    Restart { kill: bool },
    /// For longer than a lease lasts, no visibility can be changed, or the broker cannot be reached at all.
    Outage { whole: bool },
    /// Of some deletions and changes of visibility a part fails, and of some calls the answer is lost.
    Spoil { entries: usize, answers: usize },
}

/// Owns the broker and the processes, and deals blows in a thread of its own: whoever reads the ledger must not wait
/// for its writers.
pub(crate) struct Crew {
    orders: Sender<Blow>,
    thread: JoinHandle<State>,
}

/// What a crew begins with.
pub(crate) struct Hiring {
    pub(crate) broker: ElasticMq,
    pub(crate) queue: String,
    pub(crate) visibility: Duration,
    /// What the processes are told beside where the queue is.
    pub(crate) arguments: Vec<String>,
    pub(crate) ledger: Ledger,
    pub(crate) seed: u64,
}

pub(crate) struct State {
    broker: ElasticMq,
    proxy: Arc<SqsProxy>,
    client: Client,
    runtime: tokio::runtime::Runtime,
    queue: String,
    visibility: Duration,
    arguments: Vec<String>,
    ledger: Ledger,
    chance: fastrand::Rng,
    awake: Vec<Actor>,
    /// Each with when it goes on.
    frozen: Vec<(Instant, Actor)>,
    /// When the outage is over.
    outage: Option<Instant>,
    leaving: Vec<Actor>,
    next: u32,
}

impl Crew {
    pub(crate) fn hire(hiring: Hiring) -> Self {
        let proxy = SqsProxy::start(hiring.broker.port()).unwrap();
        let mut arguments = vec!["consume".to_owned(), format!("sqs={}", proxy.url())];
        arguments.push(format!("queue={}", hiring.queue));
        arguments.push(format!("visibility_s={}", hiring.visibility.as_secs()));
        arguments.extend(hiring.arguments);
        let mut state = State {
            client: millstream_tests::sqs::client(&hiring.broker.url()),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            broker: hiring.broker,
            proxy: Arc::new(proxy),
            queue: hiring.queue,
            visibility: hiring.visibility,
            arguments,
            ledger: hiring.ledger,
            chance: fastrand::Rng::with_seed(hiring.seed),
            awake: Vec::new(),
            frozen: Vec::new(),
            outage: None,
            leaving: Vec::new(),
            next: 0,
        };
        for _ in 0..PROCESSES {
            state.join();
        }
        let (orders, told) = channel();
        let thread = std::thread::spawn(move || state.deal_all(&told));
        Self { orders, thread }
    }

    pub(crate) fn deal(&self, blow: Blow) {
        self.orders.send(blow).unwrap();
    }

    /// No further blow; gives the crew once all that was broken works again.
    pub(crate) fn mended(self) -> State {
        drop(self.orders);
        self.thread.join().unwrap()
    }
}

impl State {
    /// Messages that wait, and messages that are out.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let counts = millstream_tests::sqs::counts(&self.client, &self.queue);
        self.runtime.block_on(counts)
    }

    /// How often SQS was called by the processes.
    pub(crate) fn calls(&self) -> usize {
        self.proxy.all_calls()
    }

    /// Ends all processes as they ought to end.
    pub(crate) fn dismiss(mut self) -> (usize, usize) {
        for actor in &mut self.awake {
            actor.dismiss();
        }
        for actor in self.awake.iter_mut().chain(&mut self.leaving) {
            assert!(actor.wait().success(), "a process drains and ends");
        }
        self.counts()
    }

    fn deal_all(mut self, told: &Receiver<Blow>) -> Self {
        loop {
            let due = self
                .frozen
                .iter()
                .map(|(until, _)| *until)
                .chain(self.outage)
                .min();
            let wait = due.map_or(Duration::from_secs(60), |due| due - Instant::now());
            match told.recv_timeout(wait) {
                Ok(blow) => self.deal(blow),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => match due {
                    Some(due) => std::thread::sleep(due - Instant::now()),
                    None => return self,
                },
            }
            self.mend();
        }
    }

    fn deal(&mut self, blow: Blow) {
        for actor in &mut self.awake {
            assert_eq!(actor.ended(), None, "process {} ended by itself", actor.number);
        }
        let some = self.chance.usize(..self.awake.len());
        match blow {
            Blow::Kill => {
                let mut actor = self.awake.swap_remove(some);
                self.note(Event::Killing, actor.number);
                actor.kill();
                self.note(Event::Dead, actor.number);
                self.join();
            }
            Blow::Freeze if self.frozen.is_empty() && self.awake.len() > 1 => {
                let actor = self.awake.swap_remove(some);
                actor.freeze();
                self.note(Event::Frozen, actor.number);
                self.frozen
                    .push((Instant::now() + self.visibility * 3 / 2, actor));
            }
            Blow::Join if self.awake.len() <= PROCESSES => self.join(),
            Blow::Leave if self.awake.len() >= PROCESSES => {
                let mut actor = self.awake.swap_remove(some);
                actor.dismiss();
                self.leaving.push(actor);
            }
            Blow::Restart { kill } => {
                self.for_all(Event::Breaking);
                if kill {
                    self.broker.kill();
                } else {
                    self.broker.stop().unwrap();
                }
                self.broker.start_again().unwrap();
                self.for_all(Event::Mended);
            }
            Blow::Outage { whole } if self.outage.is_none() => {
                self.for_all(Event::Breaking);
                if whole {
                    self.proxy.cut();
                }
                self.proxy.fail_entries(HIDE, usize::MAX);
                self.outage = Some(Instant::now() + self.visibility * 3 / 2);
            }
            Blow::Spoil { entries, answers } => {
                self.proxy.fail_entries(DELETE, entries);
                if self.outage.is_none() {
                    self.proxy.fail_entries(HIDE, entries);
                }
                for action in [RECEIVE, DELETE] {
                    self.proxy.lose_answers(action, answers);
                }
            }
            // There is one such already, or nobody to spare.
            Blow::Freeze | Blow::Join | Blow::Leave | Blow::Outage { .. } => {}
        }
    }

    /// Ends what lasts for a time.
    fn mend(&mut self) {
        let now = Instant::now();
        let over = self.frozen.extract_if(.., |(until, _)| *until <= now);
        for (_, actor) in over.collect::<Vec<_>>() {
            self.note(Event::Mended, actor.number);
            self.in_outage(actor.number);
            actor.thaw();
            self.awake.push(actor);
        }
        if self.outage.is_some_and(|until| until <= now) {
            self.outage = None;
            self.proxy.mend();
            self.proxy.fail_entries(HIDE, 0);
            self.for_all(Event::Mended);
        }
    }

    fn join(&mut self) {
        let number = self.next;
        self.next += 1;
        self.in_outage(number);
        let actor = Actor::start(env!("CARGO_BIN_EXE_actor"), number, &self.ledger, &self.arguments);
        self.awake.push(actor);
    }

    /// An outage that goes on is one for whoever comes.
    fn in_outage(&self, actor: u32) {
        if self.outage.is_some() {
            self.note(Event::Breaking, actor);
        }
    }

    /// It happens to all that run.
    fn for_all(&self, event: Event) {
        for actor in self.awake.iter().chain(&self.leaving) {
            self.note(event, actor.number);
        }
    }

    fn note(&self, event: Event, actor: u32) {
        self.ledger.write(Record::of(event, actor, NOT_MEASURED));
    }
}
