//! What a process costs that holds all it may, and one that holds nothing (P4).

use std::num::NonZero;

use millstream_tests::ledger::Ledger;
use millstream_tests::{Report, Scale, Work};

use crate::alone;
use crate::place::{Place, SOON};

#[test]
fn p4_messages_in_flight_that_wait_for_their_next_attempt_fit_in_the_memory_they_may_have() {
    holds(", between two attempts", 0, &[("conduct", "postpones")]);
}

#[test]
fn p4_messages_in_flight_that_wait_in_lanes_fit_in_the_memory_they_may_have() {
    let settings = [
        ("conduct", "hangs"),
        ("percent", "100"),
        ("by_key", "true"),
        ("per_key", "10000"),
    ];
    // Nearly all of them wait behind the first of their key; no key has more than may wait there.
    holds(", in lanes of their keys", 200, &settings);
}

#[test]
fn p4_messages_in_flight_that_a_batcher_holds_fit_in_the_memory_they_may_have() {
    holds(
        ", in an open batch",
        0,
        &[("conduct", "passes"), ("batch", "1000000")],
    );
}

fn holds(case: &str, keys: u32, settings: &[(&str, &str)]) {
    let _machine = alone();
    let scale = Scale::of("memory");
    let mut report = Report::begin(&scale, case);
    let messages: u32 = scale.get("messages");
    let limit: u64 = scale.get("held_mib");
    let work = Work {
        seed: scale.seed(),
        keys,
        bytes: scale.get("payload_bytes"),
    };
    let place = Place::new();
    publish(&place, work, messages);
    let (ledger, records) = Ledger::new().unwrap();
    let reader = std::thread::spawn(move || records.count());

    let arguments: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .chain([
            ("in_flight", messages.to_string()),
            ("tell_at", messages.to_string()),
        ])
        .collect();
    let mut consumer = place.start("consume", 0, &ledger, &arguments);
    let told = consumer.told(SOON);
    let (now, peak) = (consumer.kibibytes("VmRSS"), consumer.kibibytes("VmHWM"));
    let counts = place.queue().counts().unwrap();
    consumer.kill();
    drop(ledger);
    reader.join().unwrap();

    assert_eq!(counts.leased, u64::from(messages), "{told}");
    report.add("messages in flight", messages);
    report.add("bytes of a payload", work.bytes);
    report.add("resident, MiB", mebibytes(now));
    report.add("resident at most, MiB", mebibytes(peak));
    report.add("allowed, MiB", limit);
    report.print();
    assert!(now <= limit << 10, "{} MiB are resident", mebibytes(now));
}

#[test]
fn an_idle_host_with_one_pipeline_costs_little() {
    let _machine = alone();
    let scale = Scale::of("memory");
    let mut report = Report::begin(&scale, ", idle");
    let limit: u64 = scale.get("idle_mib");
    let place = Place::new();
    let (ledger, records) = Ledger::new().unwrap();
    let reader = std::thread::spawn(move || records.count());
    let work = Work {
        seed: scale.seed(),
        keys: 0,
        bytes: 64,
    };
    let consumer = place.start("consume", 0, &ledger, &[("conduct", "passes".to_owned())]);
    // It has worked, so all that it needs to work is there.
    const MESSAGES: NonZero<u32> = NonZero::new(1000).unwrap();
    let all: Vec<_> = (0..MESSAGES.get()).map(|number| work.message(number)).collect();
    place.queue().publish(&all).unwrap();
    place.until("empty", |counts| counts.ready + counts.leased == 0);
    let now = consumer.kibibytes("VmRSS");
    drop((consumer, ledger));
    reader.join().unwrap();
    report.add("messages handled before", MESSAGES);
    report.add("resident, MiB", mebibytes(now));
    report.add("allowed, MiB", limit);
    report.print();
    assert!(now <= limit << 10, "{} MiB are resident", mebibytes(now));
}

/// The first group takes a backlog over, and a second one copies it: more of it than may be in memory.
#[test]
fn p4_a_backlog_from_before_a_group_came_is_never_in_memory() {
    let _machine = alone();
    let scale = Scale::of("memory");
    let mut report = Report::begin(&scale, ", backlog");
    let messages: u32 = scale.get("messages");
    let limit: u64 = scale.get("backlog_mib");
    let work = Work {
        seed: scale.seed(),
        keys: 0,
        bytes: scale.get("payload_bytes"),
    };
    let place = Place::new();
    publish(&place, work, messages);
    let (ledger, records) = Ledger::new().unwrap();
    let reader = std::thread::spawn(move || records.count());
    let mut peaks = Vec::new();
    for (number, group) in (0..).zip(["first", "second"]) {
        let arguments = [
            ("group", group),
            ("conduct", "postpones"),
            ("in_flight", "10"),
            ("tell_at", "10"),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        let consumer = place.start("consume", number, &ledger, &arguments);
        let told = consumer.told(SOON);
        let counts = place.queue().group_counts(group).unwrap();
        assert_eq!(counts.ready + counts.leased, u64::from(messages), "{told}");
        peaks.push(consumer.kibibytes("VmHWM"));
    }
    drop(ledger);
    reader.join().unwrap();
    report.add("messages published before the groups came", messages);
    report.add("resident at most with the first group, MiB", mebibytes(peaks[0]));
    report.add("resident at most with the second group, MiB", mebibytes(peaks[1]));
    report.add("allowed, MiB", limit);
    report.print();
    // All of it would be more than this by half.
    assert!(peaks.iter().all(|peak| *peak <= limit << 10));
}

/// Published here, so that the process measured is one that consumes and does nothing else.
fn publish(place: &Place, work: Work, messages: u32) {
    let queue = place.queue();
    let every: Vec<u32> = (0..messages).collect();
    for some in every.chunks(5_000) {
        let some: Vec<_> = some.iter().map(|number| work.message(*number)).collect();
        queue.publish(&some).unwrap();
    }
}

fn mebibytes(kibibytes: u64) -> String {
    format!("{:.1}", kibibytes as f64 / 1024.0)
}
