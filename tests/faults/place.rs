//! A database in a directory of its own, and the processes that work on it: [`Place`].

use std::path::PathBuf;
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_sqlite::rusqlite::{Connection, OpenFlags};
use millstream_sqlite::{Counts, Queue};
use millstream_tests::ledger::Ledger;
use millstream_tests::{Actor, QUEUE};
use tempfile::TempDir;

/// Long enough for anything that happens at all.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Waits until it is so, or panics with what is not.
pub(crate) fn until(what: &str, so: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    while !so() {
        assert!(Instant::now() < until, "not after a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("queue.db")
    }

    pub(crate) fn queue(&self) -> Queue {
        Queue::open(self.path(), QUEUE).unwrap()
    }

    /// A connection that only reads, as another program would have it.
    pub(crate) fn raw(&self) -> Connection {
        let raw = Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        raw.busy_timeout(SOON).unwrap();
        raw
    }

    /// Starts a process in this role, with these arguments beside the path.
    pub(crate) fn start(
        &self,
        role: &str,
        number: u32,
        ledger: &Ledger,
        arguments: &[(&str, String)],
    ) -> Actor {
        let mut words = vec![role.to_owned(), format!("path={}", self.path().display())];
        words.extend(arguments.iter().map(|(name, value)| format!("{name}={value}")));
        Actor::start(env!("CARGO_BIN_EXE_actor"), number, ledger, &words)
    }

    /// Waits until the queue's counts are as asked for, or panics with what they are.
    pub(crate) fn until(&self, asked: &str, condition: impl Fn(Counts) -> bool) -> Counts {
        let queue = self.queue();
        let until = Instant::now() + SOON;
        loop {
            let counts = queue.counts().unwrap();
            if condition(counts) {
                return counts;
            }
            assert!(Instant::now() < until, "not {asked}: {counts:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
