//! P1: killed and run again, the example counts every departure exactly once.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millstream::rt;
use millstream::sqlite::Queue;
use millstream::sqlite::rusqlite::Connection;

const DEPARTURES: u64 = 336_776;
const KILLS: usize = 5;

fn start(directory: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_flights"))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Departures published and departures processed, summed up; nothing while the tables are being made.
fn progress(directory: &Path) -> Option<u64> {
    let path = directory.join("flights.db");
    let published: u32 = Connection::open(&path)
        .ok()?
        .query_row(
            "SELECT coalesce(max(number), 0) FROM flights_published",
            [],
            |row| row.get(0),
        )
        .ok()?;
    let counts = Queue::open(&path, "flights").ok()?.counts().ok()?;
    let left = counts.ready + counts.delayed + counts.leased;
    Some(u64::from(published) + u64::from(published).saturating_sub(left))
}

#[test]
fn killed_five_times_it_ends_with_the_same_table() {
    let seed = std::env::var("MILLSTREAM_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut moments: Vec<u64> = (0..KILLS)
        .map(|_| chance.u64(0..2 * DEPARTURES * 9 / 10))
        .collect();
    moments.sort_unstable();
    let directory = tempfile::tempdir().unwrap();
    let started = rt::now();
    let mut reached = Vec::new();
    for moment in moments {
        let mut child = start(directory.path());
        let at = loop {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before it could be killed"
            );
            match progress(directory.path()) {
                Some(progress) if progress >= moment => break progress,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        reached.push(at);
    }
    let output = start(directory.path()).wait_with_output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    println!(
        "flights: seed {seed}, {KILLS} kills at {reached:?} of {} steps, {:.1} s\n{table}",
        2 * DEPARTURES,
        started.elapsed().as_secs_f64()
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        table.contains("\n328521 done, 8255 dead-lettered, of 336776 departures"),
        "{table}"
    );
    assert!(table.contains("JetBlue Airways"), "{table}");
}
