//! Publishes numbered messages, each exactly once however often its process is killed.
//!
//! How far it has come is a row beside the queue, and moves in the transaction that publishes.

use std::process::ExitCode;
use std::time::Duration;

use millstream_sqlite::Queue;
use millstream_sqlite::rusqlite::{self, Connection, TransactionBehavior};
use millstream_tests::{QUEUE, Work};

use crate::{Arguments, ends_with_the_test};

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    ends_with_the_test();
    let work = Work {
        seed: arguments.get("seed"),
        keys: arguments.get_or("keys", 0),
        bytes: arguments.get_or("bytes", 4),
    };
    let path: String = arguments.get("path");
    let messages = arguments.get("messages");
    // So far ahead of the consumers and no further, so that it is at work for as long as they are.
    let lead = arguments.get_or("lead", u64::MAX);
    let queue = Queue::open(&path, QUEUE).expect("the queue opens");
    let mut connection = Connection::open(&path).expect("the database opens");
    connection
        .busy_timeout(Duration::from_secs(60))
        .expect("SQLite can wait");
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS progress (published INTEGER NOT NULL);
             INSERT INTO progress SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM progress);",
        )
        .expect("progress can be noted");
    while publish(&mut connection, &work, messages).expect("messages can be published") < messages {
        while outstanding(&queue) > lead {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    ExitCode::SUCCESS
}

/// Publishes some more, in one transaction; returns how many there are now.
fn publish(connection: &mut Connection, work: &Work, messages: u32) -> rusqlite::Result<u32> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from: u32 = transaction.query_row("SELECT published FROM progress", [], |row| row.get(0))?;
    let to = messages.min(from + fastrand::u32(1..=500));
    let some: Vec<_> = (from..to).map(|number| work.message(number)).collect();
    Queue::publish_in(&transaction, QUEUE, &some)?;
    transaction.execute("UPDATE progress SET published = ?1", [to])?;
    transaction.commit()?;
    Ok(to)
}

/// What is published and not done.
fn outstanding(queue: &Queue) -> u64 {
    let counts = queue.counts().expect("the queue can be counted");
    counts.ready + counts.delayed + counts.leased
}
