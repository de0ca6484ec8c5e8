//! The embedded queue, with and without the order of keys.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{Capabilities, Ids, SharedConnector, SharedSinkConnector};
use millstream_sqlite::rusqlite::Connection;
use millstream_sqlite::{Queue, SqliteConnector, SqliteSink};
use millstream_testkit::conformance::{Features, Place, Rejected, Subject};
use tempfile::TempDir;

/// All places are queues of one database.
pub(crate) struct Sqlite {
    directory: TempDir,
    ordered: bool,
}

impl Sqlite {
    pub(crate) fn new(ordered: bool) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            ordered,
        }
    }
}

impl Subject for Sqlite {
    type Place = InDatabase;

    fn name(&self) -> &str {
        if self.ordered { "sqlite, ordered" } else { "sqlite" }
    }

    fn declares(&self) -> Features {
        Features {
            capabilities: Capabilities {
                delay: true,
                keeps_rejected: true,
                counts_deliveries: true,
                orders_keys: self.ordered,
                ids: Ids::Position,
                ..Capabilities::default()
            },
            retry_sink: false,
            keys: true,
            headers: true,
            ordered: true,
            consumers: true,
            groups: true,
            backlog: true,
            settles_singly: true,
            takes_back: true,
            // There is no broker to restart; that processes may be killed is what the fault tests show.
            restarts: false,
            cuts: true,
        }
    }

    async fn place(&self, name: &str) -> InDatabase {
        InDatabase {
            path: self.directory.path().join("queue.db"),
            queue: name.to_owned(),
            ordered: self.ordered,
        }
    }
}

pub(crate) struct InDatabase {
    path: PathBuf,
    queue: String,
    ordered: bool,
}

impl InDatabase {
    fn queue(&self) -> Queue {
        Queue::open(&self.path, &self.queue).unwrap()
    }

    fn reads(&self) -> SqliteConnector {
        SqliteConnector::new(&self.path, &self.queue).ordered(self.ordered)
    }
}

impl Place for InDatabase {
    fn connector(&self) -> SharedConnector {
        Arc::new(self.reads())
    }

    fn sink(&self) -> SharedSinkConnector {
        Arc::new(SqliteSink::new(&self.path, &self.queue))
    }

    async fn group(&self, name: &str) -> SharedConnector {
        self.queue().add_group(name).unwrap();
        Arc::new(self.reads().group(name))
    }

    /// What happens to a process that was suspended for longer than its lease: another ends its session.
    async fn cut(&self) {
        let other = Connection::open(&self.path).unwrap();
        other.busy_timeout(Duration::from_secs(20)).unwrap();
        other
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 UPDATE millstream_messages SET lease = NULL WHERE queue = '{0}';
                 DELETE FROM millstream_sessions WHERE queue = '{0}';
                 COMMIT",
                self.queue
            ))
            .unwrap();
    }

    async fn rejected(&self) -> Vec<Rejected> {
        let queue = self.queue();
        let dead = queue.dead().map(Result::unwrap);
        dead.map(|letter| Rejected {
            payload: letter.payload,
            key: letter.key,
            error: letter.error,
        })
        .collect()
    }
}
