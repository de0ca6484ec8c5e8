//! P1: killed and run again, the example counts every departure exactly once.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn start(directory: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_flights"))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn killed_five_times_it_ends_with_the_same_table() {
    let seed = std::env::var("MILLSTREAM_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let mut chance = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut kills = 0;
    for _ in 0..5 {
        let mut child = start(directory.path());
        let patience = Duration::from_millis(chance.u64(50..2_500));
        let launched = Instant::now();
        // The kill is to land at a random moment: there is nothing else to wait for.
        while launched.elapsed() < patience && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        kills += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = start(directory.path()).wait_with_output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    println!(
        "flights: seed {seed}, {kills} kills, {:.1} s\n{table}",
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
