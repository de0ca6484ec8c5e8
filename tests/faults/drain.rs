//! A drain under load, with handlers that never come back (P6).

use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::channel;

use millstream_core::rt::Instant;
use millstream_tests::ledger::{Event, Ledger, Record};
use millstream_tests::{Report, Scale, Work};

use crate::alone;
use crate::place::{Place, SOON};

/// What a process needs beside the drain: its pipeline ended, its runtime taken down.
const LEAVE_TAKING: u64 = 1_000;

#[test]
fn p6_a_drain_with_hung_handlers_keeps_its_deadline_and_what_it_releases_is_found_again() {
    let _machine = alone();
    let scale = Scale::of("drain");
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let percent: u32 = scale.get("hung_percent");
    let within: u64 = scale.get("within_ms");
    let work = Work {
        seed: scale.seed(),
        keys: 0,
        bytes: 64,
    };
    let place = Place::new();
    let all: Vec<_> = (0..messages).map(|number| work.message(number)).collect();
    place.queue().publish(&all).unwrap();
    let (ledger, records) = Ledger::new().unwrap();
    let (read, got) = channel();
    let reader = std::thread::spawn(move || records.for_each(|record| drop(read.send(record))));
    let next = || got.recv_timeout(SOON).expect("handlers run");

    // As many workers as that the hung ones leave some, until half of the messages are done.
    let hung = [
        ("conduct", "hangs".to_owned()),
        ("percent", percent.to_string()),
        ("concurrency", (messages / 3).to_string()),
        ("in_flight", (messages / 2).to_string()),
        ("within_ms", within.to_string()),
        ("longest_us", "20000".to_owned()),
    ];
    let mut consumer = place.start("consume", 0, &ledger, &hung);
    let mut completed = HashSet::new();
    while completed.len() < messages as usize / 2 {
        let Record { event, number, .. } = next();
        if event == Event::End {
            completed.insert(number);
        }
    }
    let asked = Instant::now();
    consumer.dismiss();
    let told = consumer.told(SOON);
    assert!(consumer.wait().success());
    let took = asked.elapsed().as_millis() as u64;
    let drained = numbers(&told);
    let [in_flight, done, given_up, released, lost, left, took_ms] = [
        "in_flight",
        "done",
        "given_up",
        "released",
        "lost",
        "left",
        "took_ms",
    ]
    .map(|name| drained[name]);
    let counts = place.queue().counts().unwrap();

    // A healthy process finds all that was not done.
    let healthy = [("conduct", "busy".to_owned()), ("in_flight", "500".to_owned())];
    let mut successor = place.start("consume", 1, &ledger, &healthy);
    place.until("empty", |counts| {
        counts.ready + counts.leased + counts.delayed == 0
    });
    successor.dismiss();
    assert!(successor.wait().success());
    drop(ledger);
    reader.join().unwrap();
    let (mut found, mut twice, mut highest) = (0u64, 0, 0);
    for record in got {
        match record {
            Record {
                actor: 0,
                event: Event::End,
                number,
                ..
            } => drop(completed.insert(number)),
            Record {
                actor: 1,
                event: Event::End,
                number,
                deliveries,
            } => {
                found += 1;
                highest = highest.max(deliveries);
                twice += u32::from(!completed.insert(number));
            }
            _ => {}
        }
    }
    report.add("messages", messages);
    report.add("handlers that hang, of a hundred", percent);
    report.add("the drain", &told);
    report.add("deadline, ms", within);
    report.add("from the word to the end of the process, ms", took);
    report.add("left in the queue", counts.ready);
    report.add("found by the next process", found);
    report.add("  highest count of deliveries there", highest);
    report.add("  done twice", twice);
    report.print();
    assert!(took_ms <= within, "the drain took {took_ms} ms of {within}");
    assert!(
        took <= within + LEAVE_TAKING,
        "the process took {took} ms of {within}"
    );
    assert!(
        in_flight > u64::from(messages) / 10,
        "there was a load to drain: {told}"
    );
    assert!(released > 0, "handlers hung: {told}");
    assert_eq!(
        in_flight,
        done + given_up + released + lost + left,
        "the report adds up: {told}"
    );
    assert_eq!((given_up, lost, left), (0, 0, 0), "{told}");
    assert_eq!(counts.leased, 0, "nothing is left behind leased");
    assert_eq!(found, counts.ready, "every message that was left is found");
    assert_eq!(twice, 0, "nothing that was done is left");
    assert_eq!(completed.len(), messages as usize, "nothing is lost");
    assert_eq!(highest, 1, "what was released counts as not delivered");
}

/// The numbers in `word=number word=number`.
fn numbers(told: &str) -> BTreeMap<&str, u64> {
    told.split_whitespace()
        .filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((name, number.parse().ok()?))
        })
        .collect()
}
