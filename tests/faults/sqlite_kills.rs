//! Two consumers and a publisher on one queue, killed again and again (P1, P3).

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use millstream_sqlite::Counts;
use millstream_sqlite::rusqlite::Connection;
use millstream_tests::ledger::{Event, Ledger, NOT_MEASURED, Record};
use millstream_tests::{Actor, Report, Scale, Work};

use crate::alone;
use crate::place::{Place, SOON};

/// Publishes ahead of the consumers by at most this many, and so is at work as long as they are.
const LEAD: u32 = 5_000;

/// Numbers of publishers begin here.
const PUBLISHERS: u32 = 1_000_000;

#[test]
fn p1_p3_two_consumers_and_a_publisher_that_are_killed_lose_nothing_and_keep_the_order_of_keys() {
    let _machine = alone();
    let scale = Scale::of("sqlite_kills");
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let (kills, publisher_kills): (usize, usize) = (scale.get("kills"), scale.get("publisher_kills"));
    let in_flight: u32 = scale.get("in_flight");
    let work = Work {
        seed: scale.seed(),
        keys: scale.get("keys"),
        bytes: 64,
    };
    let place = Place::new();
    drop(place.queue());
    let (ledger, records) = Ledger::new().unwrap();

    // When, in messages completed, and whom: all of it from the seed. None comes so late that nothing is left.
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    let latest = messages - messages / 20;
    let mut plan: Vec<(u32, Victim)> = Vec::new();
    for _ in 0..kills {
        let victim = Victim::Consumer {
            index: chance.usize(..2),
            measured: chance.bool(),
        };
        plan.push((chance.u32(1..latest), victim));
    }
    for _ in 0..publisher_kills {
        // It is ahead, and ends before the others do.
        plan.push((chance.u32(1..latest - LEAD), Victim::Publisher));
    }
    plan.sort_by_key(|(after, _)| std::cmp::Reverse(*after));

    let killer = Killer::start(&place, ledger.another().unwrap(), work, messages, in_flight);
    let (read, got) = channel();
    let reader = std::thread::spawn(move || records.for_each(|record| drop(read.send(record))));
    let mut history = History::new(work, messages);
    let mut planned = plan.len();
    while history.completed < messages || planned > 0 {
        let record = got.recv_timeout(SOON).unwrap_or_else(|error| {
            panic!(
                "{error}: {} of {messages} completed, queue {:?}",
                history.completed,
                place.queue().counts()
            )
        });
        planned -= usize::from(record.event == Event::Dead);
        history.add(record);
        while plan.last().is_some_and(|(after, _)| history.completed >= *after) {
            killer.kill(plan.pop().unwrap().1);
        }
    }
    // Repeats of what the last to be killed had completed may still run.
    let counts = place.until("empty", |counts| {
        counts.ready + counts.delayed + counts.leased == 0
    });
    killer.dismiss();
    drop(ledger);
    reader.join().unwrap();
    got.try_iter().for_each(|record| history.add(record));

    assert_eq!(counts, Counts::default(), "nothing is left, and nothing is dead");
    assert_eq!(history.completed, messages, "nothing is lost");
    let killed = history.killed(in_flight);
    assert_eq!(killed.len(), kills, "each kill met a consumer at work");
    let repeats: Vec<u32> = killed.iter().map(|killed| killed.repeats).collect();
    report.add("messages completed", history.completed);
    report.add("keys", work.keys);
    report.add("messages of the hottest key", history.hottest());
    report.add("consumers killed", kills);
    report.add("publishers killed", publisher_kills);
    report.add("handler runs", history.begun);
    report.add("  of which cut short by a kill", history.begun - history.ended);
    report.add("messages run again after a kill", repeats.iter().sum::<u32>());
    report.add("  at most, after one kill", repeats.iter().max().unwrap());
    let leased: Vec<_> = killed.iter().filter_map(|killed| killed.leased).collect();
    report.add(
        "messages leased at a kill, where measured",
        format_args!("{leased:?}"),
    );
    let measured: Vec<_> = killed
        .iter()
        .filter(|killed| killed.leased.is_some())
        .map(|killed| killed.repeats)
        .collect();
    report.add("  of which run again", format_args!("{measured:?}"));
    report.add(
        "keys whose runs passed from one process to another",
        history.passed_on,
    );
    report.add("runs out of order, overlapping, lost", 0);
    report.print();
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    /// `measured`: it is stopped first, and what it has leased is counted while it stands still.
    Consumer {
        index: usize,
        measured: bool,
    },
    Publisher,
}

/// Owns the processes, and kills and restarts them in a thread of its own: whoever reads the ledger must not wait
/// for its writers.
struct Killer {
    orders: Sender<Victim>,
    thread: JoinHandle<()>,
}

impl Killer {
    fn start(place: &Place, ledger: Ledger, work: Work, messages: u32, in_flight: u32) -> Self {
        let mut crew = Crew::hire(place, ledger, work, messages, in_flight);
        let (orders, told) = channel();
        let thread = std::thread::spawn(move || crew.obey(&told));
        Self { orders, thread }
    }

    fn kill(&self, victim: Victim) {
        self.orders.send(victim).unwrap();
    }

    /// Ends all processes as they ought to end.
    fn dismiss(self) {
        drop(self.orders);
        self.thread.join().unwrap();
    }
}

struct Crew {
    start: Box<dyn Fn(&str, u32, &Ledger) -> Actor + Send>,
    ledger: Ledger,
    raw: Connection,
    consumers: Vec<Actor>,
    publisher: Actor,
    next: u32,
}

impl Crew {
    fn hire(place: &Place, ledger: Ledger, work: Work, messages: u32, in_flight: u32) -> Self {
        let (path, raw) = (place.path(), place.raw());
        let arguments = [
            format!("path={}", path.display()),
            format!("seed={}", work.seed),
            format!("keys={}", work.keys),
            format!("bytes={}", work.bytes),
            format!("messages={messages}"),
            format!("lead={LEAD}"),
            format!("in_flight={in_flight}"),
            "by_key=true".to_owned(),
            "conduct=busy".to_owned(),
        ];
        let start = move |role: &str, number, ledger: &Ledger| {
            let words: Vec<String> = std::iter::once(role.to_owned())
                .chain(arguments.iter().cloned())
                .collect();
            Actor::start(env!("CARGO_BIN_EXE_actor"), number, ledger, &words)
        };
        Self {
            consumers: (0..2).map(|number| start("consume", number, &ledger)).collect(),
            publisher: start("publish", PUBLISHERS, &ledger),
            start: Box::new(start),
            ledger,
            raw,
            next: 2,
        }
    }

    fn obey(&mut self, orders: &Receiver<Victim>) {
        for victim in orders {
            let number = self.next;
            self.next += 1;
            match victim {
                Victim::Consumer { index, measured } => {
                    let consumer = &mut self.consumers[index];
                    assert_eq!(consumer.ended(), None, "a consumer ended by itself");
                    let dying = consumer.number;
                    let mut leased = NOT_MEASURED;
                    if measured {
                        consumer.freeze();
                        leased = leased_by(&self.raw, consumer.id());
                    }
                    self.ledger.write(note(Event::Killing, dying, leased));
                    consumer.kill();
                    self.ledger.write(note(Event::Dead, dying, 0));
                    *consumer = (self.start)("consume", number, &self.ledger);
                }
                Victim::Publisher => {
                    assert_eq!(self.publisher.ended(), None, "the publisher ended too early");
                    let dying = self.publisher.number;
                    self.publisher.kill();
                    self.ledger.write(note(Event::Dead, dying, 0));
                    self.publisher = (self.start)("publish", PUBLISHERS + number, &self.ledger);
                }
            }
        }
        assert!(self.publisher.wait().success(), "the publisher has published all");
        for consumer in &mut self.consumers {
            consumer.dismiss();
        }
        for consumer in &mut self.consumers {
            assert!(consumer.wait().success(), "a consumer drains and ends");
        }
    }
}

fn note(event: Event, actor: u32, number: u32) -> Record {
    Record {
        event,
        actor,
        number,
        deliveries: 0,
    }
}

/// How many messages this process has leased.
fn leased_by(raw: &Connection, process: u32) -> u32 {
    raw.query_row(
        "SELECT count(*) FROM millstream_messages JOIN millstream_sessions ON lease = token WHERE holder = ?1",
        [format!("process {process}")],
        |row| row.get(0),
    )
    .unwrap()
}

/// What has happened, held against what may.
struct History {
    work: Work,
    completed: u32,
    begun: u32,
    ended: u32,
    passed_on: u32,
    messages: Vec<Past>,
    keys: BTreeMap<u32, Key>,
    /// Processes that were killed, or are about to be, with what they had leased then.
    killed: HashMap<u32, Killed>,
}

/// One message's past.
#[derive(Clone, Copy, Default)]
struct Past {
    completed: bool,
    /// The process that began with it last.
    last: Option<u32>,
}

/// One key's messages in source order, and how many from the first on are completed.
#[derive(Default)]
struct Key {
    messages: Vec<u32>,
    completed: usize,
    running: Option<Run>,
    last: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    actor: u32,
    number: u32,
}

#[derive(Clone, Copy, Debug)]
struct Killed {
    /// Messages that it had leased, if that was measured.
    leased: Option<u32>,
    /// Messages that it had begun with and that ran again elsewhere.
    repeats: u32,
}

impl History {
    fn new(work: Work, messages: u32) -> Self {
        let mut keys: BTreeMap<u32, Key> = BTreeMap::new();
        for number in 0..messages {
            keys.entry(work.key(number)).or_default().messages.push(number);
        }
        Self {
            work,
            completed: 0,
            begun: 0,
            ended: 0,
            passed_on: 0,
            messages: vec![Past::default(); messages as usize],
            keys,
            killed: HashMap::new(),
        }
    }

    fn add(&mut self, record: Record) {
        let Record {
            event, actor, number, ..
        } = record;
        match event {
            Event::Begin => self.begin(Run { actor, number }),
            Event::End => self.end(Run { actor, number }),
            Event::Killing => {
                let leased = (number != NOT_MEASURED).then_some(number);
                self.killed.insert(actor, Killed { leased, repeats: 0 });
            }
            Event::Dead => {}
        }
    }

    fn begin(&mut self, run: Run) {
        self.begun += 1;
        let name = self.work.key(run.number);
        let key = self.keys.get_mut(&name).unwrap();
        if let Some(other) = key.running.replace(run) {
            assert!(
                other.actor != run.actor && self.killed.contains_key(&other.actor),
                "P3: {run:?} began while {other:?} of the same key {name} ran"
            );
        }
        let place = key.messages.binary_search(&run.number).unwrap();
        assert!(
            place <= key.completed,
            "P3: {run:?} began before {} of the same key {name}",
            key.messages[key.completed]
        );
        self.passed_on += u32::from(key.last.replace(run.actor).is_some_and(|last| last != run.actor));
        if let Some(last) = self.messages[run.number as usize].last.replace(run.actor) {
            let killed = self.killed.get_mut(&last).unwrap_or_else(|| {
                panic!("{run:?} repeats what process {last} has, and that was not killed")
            });
            killed.repeats += 1;
        }
    }

    fn end(&mut self, run: Run) {
        self.ended += 1;
        let name = self.work.key(run.number);
        let key = self.keys.get_mut(&name).unwrap();
        let running = key.running.take();
        assert_eq!(
            running,
            Some(run),
            "P3: a run of key {name} ended while another of it ran"
        );
        let past = &mut self.messages[run.number as usize];
        if !std::mem::replace(&mut past.completed, true) {
            // That it was the next of its key was seen when it began.
            key.completed += 1;
            self.completed += 1;
        }
    }

    /// The consumers that were killed, each with no more repeats than it had messages.
    fn killed(&self, in_flight: u32) -> Vec<Killed> {
        for (actor, killed) in &self.killed {
            let most = killed.leased.unwrap_or(in_flight);
            assert!(
                most <= in_flight,
                "P4: process {actor} had leased {most} messages of at most {in_flight}"
            );
            assert!(
                killed.repeats <= most,
                "{} messages ran again after process {actor} was killed with {most}",
                killed.repeats
            );
        }
        self.killed.values().copied().collect()
    }

    fn hottest(&self) -> usize {
        self.keys.values().map(|key| key.messages.len()).max().unwrap()
    }
}
