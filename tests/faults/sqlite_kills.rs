//! Two consumers and a publisher on one queue, killed again and again (P1, P3).

use millstream_sqlite::Counts;
use millstream_sqlite::rusqlite::Connection;
use millstream_tests::ledger::{Event, Ledger, NOT_MEASURED, Record};
use millstream_tests::{Actor, History, Report, Scale, Work};

use crate::alone;
use crate::blows::Blows;
use crate::place::{Place, SOON};

/// What `number` of an [`Event::Dead`] is where the process had ended by itself.
const ALREADY: u32 = 1;

/// Numbers of publishers begin here.
const PUBLISHERS: u32 = 1_000_000;

#[test]
fn p1_p3_two_consumers_and_a_publisher_that_are_killed_lose_nothing_and_keep_the_order_of_keys() {
    kill_again_and_again("sqlite_kills");
}

/// Busy keys have more in flight than may wait, and the store gets their tails back all the time.
#[test]
fn p1_p3_so_they_do_where_the_tails_of_busy_keys_go_back_to_the_store() {
    kill_again_and_again("sqlite_kills_long_lanes");
}

fn kill_again_and_again(test: &'static str) {
    let _machine = alone();
    let scale = Scale::of(test);
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
        // It is ahead of the others, and at work for their first half.
        plan.push((chance.u32(1..messages / 2), Victim::Publisher));
    }
    plan.sort_by_key(|(after, _)| *after);
    let mut planned = plan.len();

    let crew = Crew::hire(&place, ledger.another().unwrap(), work, &scale);
    let mut blows = Blows::planned(plan, crew, Crew::kill);
    let (got, reader) = records.in_background();
    let mut history = History::new(work, messages);
    let mut publishers = 0;
    while history.completed() < messages || planned > 0 {
        let record = got.recv_timeout(SOON).unwrap_or_else(|error| {
            panic!(
                "{error}: {} of {messages} completed, queue {:?}",
                history.completed(),
                place.queue().counts()
            )
        });
        if record.event == Event::Dead {
            planned -= 1;
            publishers += u32::from(record.actor >= PUBLISHERS && record.number != ALREADY);
        }
        history.add(record);
        blows.fall(history.completed());
    }
    // Repeats of what the last to be killed had completed may still run.
    let counts = place.until("empty", |counts| {
        counts.ready + counts.delayed + counts.leased == 0
    });
    blows.over().dismiss();
    drop(ledger);
    reader.join().unwrap();
    got.try_iter().for_each(|record| history.add(record));

    assert_eq!(counts, Counts::default(), "nothing is left, and nothing is dead");
    assert_eq!(history.completed(), messages, "nothing is lost");
    let killed = history.faults(in_flight);
    assert!(publishers > 0, "a publisher was killed");
    assert_eq!(killed.len(), kills, "each consumer that was to be killed was");
    let repeats: Vec<u32> = killed.iter().map(|killed| killed.repeats).collect();
    report.add("messages completed", history.completed());
    report.add("keys", work.keys);
    report.add("messages of the hottest key", history.hottest());
    report.add("consumers killed", kills);
    report.add("publishers killed", publishers);
    report.add("handler runs", history.begun());
    report.add(
        "  of which cut short by a kill",
        history.begun() - history.ended(),
    );
    report.add("messages run again after a kill", repeats.iter().sum::<u32>());
    report.add("  at most, after one kill", repeats.iter().max().unwrap());
    let leased: Vec<_> = killed.iter().filter_map(|killed| killed.unsettled).collect();
    report.add(
        "messages leased at a kill, where measured",
        format_args!("{leased:?}"),
    );
    let measured: Vec<_> = killed
        .iter()
        .filter(|killed| killed.unsettled.is_some())
        .map(|killed| killed.repeats)
        .collect();
    report.add("  of which run again", format_args!("{measured:?}"));
    report.add(
        "keys whose runs passed from one process to another",
        history.passed_on(),
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

/// Starts a process in this role, with this number.
type Start = Box<dyn Fn(&str, u32, &Ledger) -> Actor + Send>;

struct Crew {
    start: Start,
    ledger: Ledger,
    raw: Connection,
    consumers: Vec<Actor>,
    publisher: Actor,
    next: u32,
}

impl Crew {
    fn hire(place: &Place, ledger: Ledger, work: Work, scale: &Scale) -> Self {
        let (path, raw) = (place.path(), place.raw());
        let [messages, lead, in_flight, per_key] =
            ["messages", "lead", "in_flight", "per_key"].map(|what| scale.get::<u32>(what));
        let arguments = [
            format!("path={}", path.display()),
            format!("seed={}", work.seed),
            format!("keys={}", work.keys),
            format!("bytes={}", work.bytes),
            format!("messages={messages}"),
            format!("lead={lead}"),
            format!("in_flight={in_flight}"),
            "by_key=true".to_owned(),
            format!("per_key={per_key}"),
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

    fn kill(&mut self, victim: Victim) {
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
                self.ledger.write(Record::of(Event::Killing, dying, leased));
                consumer.kill();
                self.ledger.write(Record::of(Event::Dead, dying, 0));
                *consumer = (self.start)("consume", number, &self.ledger);
            }
            Victim::Publisher => {
                let dying = self.publisher.number;
                if self.publisher.ended().is_some() {
                    // The ledger is read late, and it was faster.
                    self.ledger.write(Record::of(Event::Dead, dying, ALREADY));
                    return;
                }
                self.publisher.kill();
                self.ledger.write(Record::of(Event::Dead, dying, 0));
                self.publisher = (self.start)("publish", PUBLISHERS + number, &self.ledger);
            }
        }
    }

    /// Ends all processes as they ought to end.
    fn dismiss(mut self) {
        assert!(self.publisher.wait().success(), "the publisher has published all");
        for consumer in &mut self.consumers {
            consumer.dismiss();
        }
        for consumer in &mut self.consumers {
            assert!(consumer.wait().success(), "a consumer drains and ends");
        }
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
