//! A message that ends every process that runs it, among innocents (P2, "innocents dead-lettered unrun: none").

use std::collections::HashMap;

use millstream_sqlite::rusqlite::Connection;
use millstream_tests::ledger::{Event, Ledger};
use millstream_tests::{Actor, Report, Scale, Work};

use crate::alone;
use crate::place::{Place, SOON};

#[test]
fn a_message_that_ends_its_process_is_dead_lettered_alone_from_among_all_that_is_in_flight() {
    rounds(", all in flight", &[("in_flight", "10000")]);
}

#[test]
fn a_message_that_ends_its_process_is_dead_lettered_alone_where_little_is_in_flight() {
    rounds(", 50 in flight", &[("in_flight", "50")]);
}

#[test]
fn a_message_that_ends_its_process_is_dead_lettered_alone_from_among_messages_of_its_key() {
    rounds(", ordered by key", &[("by_key", "true")]);
}

fn rounds(case: &str, settings: &[(&str, &str)]) {
    let _machine = alone();
    let scale = Scale::of("culprit");
    for round in 0..scale.get("rounds") {
        let mut report = Report::begin(&scale, &format!("{case}, round {}", round + 1));
        let mut chance = fastrand::Rng::with_seed(scale.seed() + round);
        let innocents: u32 = scale.get("innocents");
        let culprit = chance.u32(..=innocents);
        let found = round_of(scale.seed() + round, innocents, culprit, settings);
        report.add("innocents completed", innocents);
        report.add("number of the culprit", culprit);
        report.add("processes that died of it", found.deaths);
        report.add("deliveries of the culprit", found.deliveries);
        report.add("highest count of deliveries of an innocent", found.highest);
        report.add("innocents that ran more than once", found.repeats);
        report.print();
    }
}

struct Found {
    deaths: u32,
    deliveries: u32,
    highest: u32,
    repeats: usize,
}

fn round_of(seed: u64, innocents: u32, culprit: u32, settings: &[(&str, &str)]) -> Found {
    let work = Work {
        seed,
        keys: 20,
        bytes: 64,
    };
    let place = Place::new();
    let all: Vec<_> = (0..=innocents).map(|number| work.message(number)).collect();
    place.queue().publish(&all).unwrap();
    let (ledger, records) = Ledger::new().unwrap();
    let (got, reader) = records.in_background();

    let arguments: Vec<_> = [("conduct", "aborts"), ("culprit", &culprit.to_string())]
        .iter()
        .chain(settings)
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let raw = place.raw();
    let (mut deaths, mut highest) = (0, 0);
    loop {
        let mut consumer = place.start("consume", deaths, &ledger, &arguments);
        if !dies(&mut consumer, &place) {
            consumer.dismiss();
            assert!(consumer.wait().success());
            break;
        }
        deaths += 1;
        highest = highest.max(highest_count(&raw, culprit));
        assert!(deaths <= 100, "it ends one process after another");
    }
    drop(ledger);
    reader.join().unwrap();

    let mut runs: HashMap<u32, (u32, u32)> = HashMap::new();
    for record in got {
        let (begun, ended) = runs.entry(record.number).or_default();
        match record.event {
            Event::Begin => *begun += 1,
            Event::End => *ended += 1,
            Event::Cancelled
            | Event::Killing
            | Event::Dead
            | Event::Breaking
            | Event::Mended
            | Event::Looked
            | Event::Frozen
            | Event::GivenUp
            | Event::Down
            | Event::Letter => {}
        }
        if record.number != culprit {
            highest = highest.max(record.deliveries);
        }
    }
    let queue = place.queue();
    let dead: Vec<_> = queue.dead().map(Result::unwrap).collect();
    let [letter] = &dead[..] else {
        panic!(
            "{} messages were dead-lettered, not the culprit alone",
            dead.len()
        );
    };
    assert_eq!(Work::number(&letter.payload), Some(culprit));
    assert_eq!(letter.reason, "deliveries");
    for number in (0..=innocents).filter(|number| *number != culprit) {
        let completed = runs.get(&number).is_some_and(|(_, ended)| *ended > 0);
        assert!(completed, "the innocent {number} was not completed");
    }
    Found {
        deaths,
        deliveries: letter.deliveries,
        highest,
        repeats: runs
            .iter()
            .filter(|(number, (begun, _))| **number != culprit && *begun > 1)
            .count(),
    }
}

/// Waits until the process has died, or the queue is empty.
fn dies(consumer: &mut Actor, place: &Place) -> bool {
    let queue = place.queue();
    let until = millstream_core::rt::now() + SOON;
    loop {
        if let Some(status) = consumer.ended() {
            use std::os::unix::process::ExitStatusExt;
            assert!(
                status.signal().is_some(),
                "it ended without being aborted: {status}"
            );
            return true;
        }
        let counts = queue.counts().unwrap();
        if counts.ready + counts.delayed + counts.leased == 0 {
            return false;
        }
        assert!(millstream_core::rt::now() < until, "nothing comes of {counts:?}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// The highest count of deliveries that an innocent has in the queue.
fn highest_count(raw: &Connection, culprit: u32) -> u32 {
    raw.query_row(
        "SELECT coalesce(max(deliveries), 0) FROM millstream_messages WHERE substr(payload, 1, 4) <> ?1",
        [culprit.to_le_bytes()],
        |row| row.get(0),
    )
    .unwrap()
}
