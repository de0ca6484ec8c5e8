//! Messages whose handlers fail, panic, hang and reject them, each as its fate says, through retries, breaker, batcher
//! and dead letters of every store, while the consumer is killed and the broker restarted (P1, P2).

use millstream_core::rt::Instant;
use millstream_tests::ledger::{EVERY, Event, Ledger, Record};
use millstream_tests::{ATTEMPTS, Account, Actor, QUEUE, Report, Scale, Work, moments};

use crate::alone;
use crate::blows::Blows;
use crate::place::{SOON, until};
use crate::stores::{DEAD, OnKafka, OnRabbitMq, OnSqlite, OnSqs, Runs, Store, publish};

/// Longer than all attempts together: whoever burns them meanwhile gives messages up that ought to succeed.
const OUTAGE_MS: u32 = 1_500;

#[test]
fn p1_p2_each_message_ends_where_its_fate_says_on_sqlite() {
    each_ends_where_its_fate_says::<OnSqlite>("fates_sqlite");
}

#[test]
fn p1_p2_each_message_ends_where_its_fate_says_on_rabbitmq() {
    each_ends_where_its_fate_says::<OnRabbitMq>("fates_rabbitmq");
}

#[test]
fn p1_p2_each_message_ends_where_its_fate_says_on_kafka() {
    each_ends_where_its_fate_says::<OnKafka>("fates_kafka");
}

#[test]
fn p1_p2_each_message_ends_where_its_fate_says_on_sqs() {
    each_ends_where_its_fate_says::<OnSqs>("fates_sqs");
}

fn each_ends_where_its_fate_says<S: Store>(test: &'static str) {
    let _machine = alone();
    let scale = Scale::of(test);
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let in_flight: u32 = scale.get("in_flight");
    let work = Work {
        seed: scale.seed(),
        keys: 0,
        bytes: 64,
    };
    let store = S::start();
    report.add("store", store.name());
    let began = Instant::now();
    publish(&store, QUEUE, &work, messages);
    report.add(
        "seconds to publish",
        format_args!("{:.1}", began.elapsed().as_secs_f64()),
    );

    let plan = plan(&scale, messages);
    let planned = plan.len();
    let (ledger, records) = Ledger::new().unwrap();
    let (got, reader) = records.in_background();
    let began = Instant::now();
    let target = Target::new(store, ledger.another().unwrap(), &scale);
    let mut blows = Blows::planned(plan, target, Target::deal);
    let mut account = Account::new(scale.seed(), messages, in_flight);
    let mut dealt = 0;
    while account.ended() < messages || dealt < planned {
        let record = got.recv_timeout(SOON).unwrap_or_else(|error| {
            panic!(
                "{error}: {} of {messages} have ended, {dealt} of {planned} blows; not, among others, {:#?}",
                account.ended(),
                account.laggards()
            )
        });
        dealt += usize::from(matches!(record.event, Event::Dead | Event::Mended));
        account.add(record);
        blows.fall(account.ended());
    }
    report.add(
        "seconds until all had ended",
        format_args!("{:.1}", began.elapsed().as_secs_f64()),
    );
    let store = blows.over().dismiss();

    let left = store.remaining(DEAD);
    let runs = Runs::of(letters(&store), &ledger);
    let number = u32::MAX - 1;
    let mut letters = runs.start(number, &told("letters", &scale, number));
    while account.letters() < left {
        let record = got.recv_timeout(SOON).unwrap_or_else(|error| {
            panic!("{error}: {} of {left} letters were found", account.letters());
        });
        account.add(record);
    }
    until("the letters are settled", || store.remaining(DEAD) == 0);
    letters.terminate();
    assert!(letters.wait().success(), "the reader drains and ends");
    drop((runs, ledger));
    reader.join().unwrap();
    got.try_iter().for_each(|record| account.add(record));
    assert_eq!(account.letters(), left, "each letter is found once");
    account.close(&mut report);
    report.print();
}

/// Everything is used at once, and each but the last attempt comes soon.
fn work(store: &impl Store, scale: &Scale) -> String {
    let (source, dead, in_flight) = (
        store.source(QUEUE),
        store.sink(DEAD),
        scale.get::<u32>("in_flight"),
    );
    format!(
        r#"
        [host]
        log = "warn"
        [pipelines.{QUEUE}]
        source = {source}
        dead_letter = {dead}
        limits = {{ in_flight = {in_flight} }}
        processor = {{ timeout = "500ms" }}
        batchers.keep = {{ max_age = "20ms", concurrency = 4 }}
        retry = {{ attempts = {ATTEMPTS}, backoff = "20ms", max_backoff = "200ms" }}
        breaker = {{ failure_rate = 0.5, window = "200ms", minimum = 100, open_for = "100ms" }}
        "#
    )
}

fn letters(store: &impl Store) -> String {
    let source = store.source(DEAD);
    format!(
        r#"
        [host]
        log = "warn"
        [pipelines.{QUEUE}]
        source = {source}
        dead_letter = "discard"
        "#
    )
}

/// What a handler is told in this process. What it needs is away for a while in each but the last, whose messages come to
/// an end: while the breaker is open and nothing is left that succeeds, it stays so. What is left at the end comes to far
/// fewer runs than the breaker's `minimum` within its `window`, so it does not open it by itself.
fn told(conduct: &str, scale: &Scale, number: u32) -> [(&'static str, String); 5] {
    let kills: u32 = scale.get("kills");
    let outage_after = match number < kills {
        true => scale.get::<u32>("messages") / (kills + 1) / 4,
        false => u32::MAX,
    };
    [
        ("conduct", conduct.to_owned()),
        ("seed", scale.seed().to_string()),
        ("longest_us", scale.get::<u32>("longest_us").to_string()),
        ("outage_after", outage_after.to_string()),
        ("outage_ms", OUTAGE_MS.to_string()),
    ]
}

/// What is done.
#[derive(Clone, Copy, Debug)]
enum Blow {
    KillConsumer,
    RestartBroker { kill: bool },
}

/// What is done after how many messages that have ended, sorted, all of it from the seed. `apart` messages are settled
/// between two blows, so that what was unsettled at the first is: a message that is delivered again and again without an
/// outcome is a suspect, and how those are treated is another test's matter.
fn plan(scale: &Scale, messages: u32) -> Vec<(u32, Blow)> {
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    let mut blows = vec![Blow::KillConsumer; scale.get("kills")];
    for _ in 0..scale.get("restarts") {
        blows.push(Blow::RestartBroker { kill: chance.bool() });
    }
    chance.shuffle(&mut blows);
    moments(&mut chance, blows.len(), messages, scale.get("apart"))
        .into_iter()
        .zip(blows)
        .collect()
}

/// The store and its consumer.
struct Target<S> {
    store: S,
    runs: Runs,
    consumer: Actor,
    ledger: Ledger,
    scale: Scale,
    /// How many messages at most are left when the next blow falls.
    enough: u32,
}

impl<S: Store> Target<S> {
    fn new(store: S, ledger: Ledger, scale: &Scale) -> Self {
        let runs = Runs::of(work(&store, scale), &ledger);
        Self {
            consumer: runs.start(0, &told("fates", scale, 0)),
            store,
            runs,
            ledger,
            scale: *scale,
            enough: u32::MAX,
        }
    }

    fn deal(&mut self, blow: Blow) {
        assert_eq!(self.consumer.ended(), None, "the consumer ended by itself");
        until("what the last blow left unsettled is settled", || {
            self.store.remaining(QUEUE) <= self.enough
        });
        let actor = self.consumer.number;
        self.consumer.freeze();
        let remaining = self.store.remaining(QUEUE);
        self.enough = remaining.saturating_sub(self.scale.get("apart"));
        match blow {
            Blow::KillConsumer => {
                self.ledger.write(Record::of(Event::Killing, actor, remaining));
                self.consumer.kill();
                self.ledger.write(Record::of(Event::Dead, actor, 0));
                let next = actor + 1;
                self.consumer = self.runs.start(next, &told("fates", &self.scale, next));
            }
            Blow::RestartBroker { kill } => {
                self.ledger.write(Record::of(Event::Breaking, EVERY, remaining));
                self.consumer.thaw();
                self.store.restart(kill);
                self.ledger.write(Record::of(Event::Mended, EVERY, 0));
            }
        }
    }

    /// Ends the consumer as it ought to end, and gives the store back.
    fn dismiss(mut self) -> S {
        // Repeats of what had ended may still run.
        until("all is settled", || self.store.remaining(QUEUE) == 0);
        self.consumer.terminate();
        assert!(self.consumer.wait().success(), "the consumer drains and ends");
        self.store
    }
}
