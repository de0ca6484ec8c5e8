//! P1: killed and run again, the example counts every departure exactly once.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millstream::rt;
use millstream::sqlite::rusqlite::{Connection, OpenFlags};
use millstream_brokers::{RabbitMq, Series};

const DEPARTURES: u64 = 336_776;
const KILLS: usize = 5;

/// One run of the example after the other, in a directory of their own.
struct Runs {
    directory: tempfile::TempDir,
    /// The file's name without its ending.
    file: &'static str,
    broker: Option<RabbitMq>,
}

impl Runs {
    fn start(&self) -> Child {
        let file: PathBuf = [env!("CARGO_MANIFEST_DIR"), self.file].iter().collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flights"));
        command
            .arg(file.with_extension("toml"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(broker) = &self.broker {
            command.env("RABBITMQ_URL", broker.url());
        }
        command.spawn().unwrap()
    }

    /// Departures published and departures processed, summed up; nothing while the tables are being made.
    fn progress(&self) -> Option<u64> {
        let path = self
            .directory
            .path()
            .join(Path::new(self.file).with_extension("figures.db"));
        let progress: u32 = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .ok()?
            .query_row(
                "SELECT (SELECT coalesce(max(number), 0) FROM published)
                      + (SELECT count(*) FROM departures) + (SELECT count(*) FROM cancelled)",
                [],
                |row| row.get(0),
            )
            .ok()?;
        Some(progress.into())
    }
}

#[test]
fn killed_five_times_it_ends_with_the_same_table() {
    kill_again_and_again("flights", None);
}

#[test]
fn so_it_does_on_rabbitmq() {
    let broker = RabbitMq::builder(Series::V3)
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    kill_again_and_again("rabbitmq", Some(broker));
}

fn kill_again_and_again(file: &'static str, broker: Option<RabbitMq>) {
    let seed = std::env::var("MILLSTREAM_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut moments: Vec<u64> = (0..KILLS)
        .map(|_| chance.u64(0..2 * DEPARTURES * 9 / 10))
        .collect();
    moments.sort_unstable();
    let runs = Runs {
        directory: tempfile::tempdir().unwrap(),
        file,
        broker,
    };
    let started = rt::now();
    let mut reached = Vec::new();
    for moment in moments {
        let mut child = runs.start();
        let at = loop {
            if let Some(status) = child.try_wait().unwrap() {
                let output = child.wait_with_output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                panic!("it ended before it could be killed: {status}: {said}");
            }
            match runs.progress() {
                Some(progress) if progress >= moment => break progress,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        reached.push(at);
    }
    let output = runs.start().wait_with_output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    println!(
        "{file}: seed {seed}, {KILLS} kills at {reached:?} of {} steps, {:.1} s\n{table}",
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
