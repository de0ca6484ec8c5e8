//! The real stores, as tests see them that do the same to each: [`Store`].

mod kafka;
mod rabbitmq;
mod sqlite;
mod sqs;

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;

pub(crate) use kafka::OnKafka;
use millstream_core::{SharedConnector, SharedSinkConnector};
use millstream_tests::ledger::Ledger;
use millstream_tests::{Actor, Work};
pub(crate) use rabbitmq::OnRabbitMq;
pub(crate) use sqlite::OnSqlite;
pub(crate) use sqs::OnSqs;
use tempfile::TempDir;

/// Where dead letters go that lie beside [`QUEUE`](millstream_tests::QUEUE).
pub(crate) const DEAD: &str = "dead";

/// A store with two queues, [`QUEUE`](millstream_tests::QUEUE) and [`DEAD`]. Dropped, it is gone.
pub(crate) trait Store: Send + Sized + 'static {
    /// What is released counts as not delivered.
    const TAKES_BACK: bool;

    /// Starts what it needs, and makes the queues.
    fn start() -> Self;

    /// What it is, and in which version.
    fn name(&self) -> String;

    /// The queue as a pipeline's source, in TOML.
    fn source(&self, queue: &str) -> String;

    /// The queue as a sink, in TOML.
    fn sink(&self, queue: &str) -> String;

    /// The queue, for a pipeline of the test's to read.
    fn inlet(&self, queue: &str) -> SharedConnector;

    /// The queue, for the test to write to.
    fn outlet(&self, queue: &str) -> SharedSinkConnector;

    /// How many messages of the queue are not settled, handed out or not.
    fn remaining(&self, queue: &str) -> u32;

    /// Stops or kills the broker, and starts it again.
    fn restart(&mut self, kill: bool);
}

/// A store that says what it has handed out.
pub(crate) trait HandsOut: Store {
    /// How large messages are, so that not all of a few hundred are handed out before anybody takes one.
    const BYTES: usize = 64;

    /// How much of the queue is handed out, as the store itself counts it: each message that it hands out raises it.
    fn handed_out(&self, queue: &str) -> u32;
}

/// Writes messages to the store's queue.
pub(crate) fn publish(store: &impl Store, queue: &str, work: &Work, messages: u32) {
    let connector = store.outlet(queue);
    wait_for(async {
        let mut sink = connector.open().await.unwrap();
        work.publish(&mut *sink, 0..messages).await;
    });
}

/// Runs it in a runtime of its own.
fn wait_for<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(task)
}

/// Starts processes of the command line's `run`, all with one file.
pub(crate) struct Runs {
    directory: TempDir,
    ledger: Ledger,
}

impl Runs {
    pub(crate) fn of(toml: impl Display, ledger: &Ledger) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runs = Self {
            directory,
            ledger: ledger.another().unwrap(),
        };
        std::fs::write(runs.file(), toml.to_string()).unwrap();
        runs
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("test.toml")
    }

    /// One more, whose handler is told this.
    pub(crate) fn start(&self, number: u32, told: &[(&str, String)]) -> Actor {
        let mut words = vec!["run".to_owned(), self.file().display().to_string()];
        words.extend(told.iter().map(|(name, value)| format!("{name}={value}")));
        Actor::start(env!("CARGO_BIN_EXE_actor"), number, &self.ledger, &words)
    }
}
