//! SIGTERM under load, with handlers that never come back (P6).

use std::collections::HashSet;
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_tests::ledger::{Event, Ledger, Record};
use millstream_tests::{QUEUE, Report, Scale, Work};

use crate::alone;
use crate::place::{SOON, until};
use crate::stores::{OnKafka, OnRabbitMq, OnSqlite, OnSqs, Runs, Store, publish};

/// What a process needs beside the drain: the signal, its pipeline ended, its runtime taken down.
const LEAVE_TAKING: Duration = Duration::from_secs(1);

#[test]
fn p6_a_drain_keeps_its_deadline_and_what_it_releases_is_found_again_on_sqlite() {
    a_drain_keeps_its_deadline::<OnSqlite>("drain_sqlite");
}

#[test]
fn p6_a_drain_keeps_its_deadline_and_what_it_releases_is_found_again_on_rabbitmq() {
    a_drain_keeps_its_deadline::<OnRabbitMq>("drain_rabbitmq");
}

#[test]
fn p6_a_drain_keeps_its_deadline_and_what_it_releases_is_found_again_on_kafka() {
    a_drain_keeps_its_deadline::<OnKafka>("drain_kafka");
}

#[test]
fn p6_a_drain_keeps_its_deadline_and_what_it_releases_is_found_again_on_sqs() {
    a_drain_keeps_its_deadline::<OnSqs>("drain_sqs");
}

fn a_drain_keeps_its_deadline<S: Store>(test: &'static str) {
    let _machine = alone();
    let scale = Scale::of(test);
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let percent: u32 = scale.get("hung_percent");
    let within = Duration::from_millis(scale.get("within_ms"));
    let work = Work {
        seed: scale.seed(),
        keys: 0,
        bytes: 64,
    };
    let store = S::start();
    publish(&store, QUEUE, &work, messages);
    let (ledger, records) = Ledger::new().unwrap();
    let (got, reader) = records.in_background();
    let next = || got.recv_timeout(SOON).expect("handlers run");
    let runs = Runs::of(file(&store, messages, within), &ledger);

    // As many workers as that the hung ones leave some, until half of the messages are done.
    let hung = [
        ("conduct", "hangs".to_owned()),
        ("percent", percent.to_string()),
        ("longest_us", "20000".to_owned()),
    ];
    let mut consumer = runs.start(0, &hung);
    let mut completed = HashSet::new();
    while completed.len() < messages as usize / 2 {
        let Record { event, number, .. } = next();
        if event == Event::End {
            completed.insert(number);
        }
    }
    let asked = Instant::now();
    consumer.terminate();
    let told = consumer.told(SOON);
    let status = consumer.wait();
    let took = asked.elapsed();
    let left_in_store = store.remaining(QUEUE);

    // A healthy process finds all that was not done.
    let mut successor = runs.start(1, &[("conduct", "busy".to_owned())]);
    let (mut found, mut twice, mut highest) = (0, 0, 0);
    while completed.len() < messages as usize {
        let Record {
            event,
            actor,
            number,
            deliveries,
            ..
        } = next();
        if event == Event::End {
            let first = completed.insert(number);
            if actor == 1 {
                found += 1;
                highest = highest.max(deliveries);
                twice += u32::from(!first);
            }
        }
    }
    until("all is settled", || store.remaining(QUEUE) == 0);
    successor.terminate();
    assert!(successor.wait().success());
    drop((runs, ledger));
    reader.join().unwrap();
    let more = got.try_iter().filter(|record| record.event == Event::End).count();

    report.add("store", store.name());
    report.add("messages", messages);
    report.add("handlers that hang, of a hundred", percent);
    report.add("the drain", &told);
    report.add("deadline, ms", within.as_millis());
    report.add("from the signal to the end of the process, ms", took.as_millis());
    report.add("left in the store", left_in_store);
    report.add("found by the next process", found);
    report.add("  highest count of deliveries there", highest);
    report.add("  done twice", twice);
    report.print();
    let [in_flight, done, given_up, released, lost, left] =
        ["in flight", "done", "given up", "released", "lost", "left"].map(|what| number_of(&told, what));
    assert!(status.success(), "the process ended with {status}");
    assert!(
        took <= within + LEAVE_TAKING,
        "the process took {took:?} of {within:?}"
    );
    assert!(in_flight > messages / 10, "there was a load to drain: {told}");
    assert_eq!(
        in_flight,
        done + given_up + released + lost + left,
        "the report adds up: {told}"
    );
    assert_eq!((given_up, lost, left), (0, 0, 0), "{told}");
    assert!(released > 0, "handlers hung: {told}");
    assert!(released <= found, "what was released is found again: {told}");
    assert!(found <= left_in_store, "what is found was left");
    assert_eq!((twice, more), (0, 0), "nothing that was done is left");
    if S::TAKES_BACK {
        assert_eq!(highest, 1, "what was released counts as not delivered");
    }
}

fn file(store: &impl Store, messages: u32, within: Duration) -> String {
    let (source, within) = (store.source(QUEUE), within.as_millis());
    let (in_flight, concurrency) = (messages / 2, messages / 3);
    format!(
        r#"
        [host]
        shutdown_timeout = "{within}ms"
        [pipelines.{QUEUE}]
        source = {source}
        dead_letter = "discard"
        limits = {{ in_flight = {in_flight} }}
        processor = {{ concurrency = {concurrency}, timeout = "1h" }}
        "#
    )
}

/// The number before this in what a pipeline says.
fn number_of(told: &str, what: &str) -> u32 {
    let before = told.split_once(&format!(" {what}")).map(|(before, _)| before);
    before
        .and_then(|before| before.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("`{told}` does not say how many are {what}"))
}
