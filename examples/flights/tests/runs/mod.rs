//! Runs of the example that are killed, and the one after them that ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millstream::rt;
use millstream::sqlite::rusqlite::{Connection, OpenFlags};

pub(crate) const DEPARTURES: u64 = 336_776;

/// One of these, by the scale of the run.
pub(crate) fn scaled<T>(small: T, full: T) -> T {
    if std::env::var("MILLSTREAM_SCALE").is_ok_and(|scale| scale == "full") {
        full
    } else {
        small
    }
}

/// One run of the example after the other, in a directory of their own.
pub(crate) struct Runs {
    directory: tempfile::TempDir,
    /// The file's name without its ending.
    file: &'static str,
    environment: Vec<(&'static str, String)>,
    /// How many departures.
    all: u64,
}

impl Runs {
    pub(crate) fn new(
        file: &'static str,
        environment: impl IntoIterator<Item = (&'static str, String)>,
        all: u64,
    ) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            file,
            environment: environment.into_iter().collect(),
            all,
        }
    }

    fn start(&self) -> Child {
        let file: PathBuf = [env!("CARGO_MANIFEST_DIR"), self.file].iter().collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flights"));
        command
            .arg(file.with_extension("toml"))
            .args((self.all != DEPARTURES).then(|| self.all.to_string()))
            .current_dir(self.directory.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
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

    /// Kills it at moments of chance, and has it run on from there.
    pub(crate) fn kill_again_and_again(&self, kills: usize) {
        let seed = std::env::var("MILLSTREAM_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| fastrand::u64(..));
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut moments: Vec<u64> = (0..kills).map(|_| chance.u64(0..2 * self.all * 9 / 10)).collect();
        moments.sort_unstable();
        let mut reached = Vec::new();
        for moment in moments {
            let mut child = self.start();
            let at = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    let output = child.wait_with_output().unwrap();
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    panic!("it ended before it could be killed: {status}: {said}");
                }
                match self.progress() {
                    Some(progress) if progress >= moment => break progress,
                    _ => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            child.kill().unwrap();
            child.wait().unwrap();
            reached.push(at);
        }
        println!(
            "{}: seed {seed}, {kills} kills at {reached:?} of {} steps",
            self.file,
            2 * self.all
        );
    }

    /// Runs it to its end; the table that it prints.
    pub(crate) fn finish(&self) -> String {
        let started = rt::now();
        let output = self.start().wait_with_output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        println!("{}: {:.1} s\n{table}", self.file, started.elapsed().as_secs_f64());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        table
    }
}
