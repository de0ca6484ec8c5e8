//! What the tests share: a database in a directory of its own, and a reader without an engine.

#![allow(dead_code, reason = "each test file uses its share")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millstream_core::{
    Acknowledger as _, Chunk, Connector as _, Credit, Delivered, Detached, EngineHandle, Message, Outcome,
    Outgoing, Read, Reason, Rejection, Settle, Settlement, Sink as _, SinkConnector as _, Source as _,
    Ticket,
};
use millstream_sqlite::rusqlite::Connection;
use millstream_sqlite::{Leasing, Queue, Settling, SqliteConnector, SqliteSink};
use tempfile::TempDir;

/// Long enough for anything that happens at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Long enough to believe that nothing happens.
pub(crate) const A_WHILE: Duration = Duration::from_millis(150);

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
        Queue::open(self.path(), "orders").unwrap()
    }

    pub(crate) fn connector(&self) -> SqliteConnector {
        SqliteConnector::new(self.path(), "orders")
    }

    pub(crate) async fn reader(&self) -> Reader {
        Reader::open(&self.connector()).await
    }

    pub(crate) async fn publish(&self, messages: &[Outgoing]) {
        let mut sink = SqliteSink::new(self.path(), "orders").open().await.unwrap();
        let mut results = Vec::new();
        sink.send(messages, &mut results).await.unwrap();
        assert_eq!(results, vec![Delivered::Confirmed; messages.len()]);
    }

    /// A connection as another program would have it.
    pub(crate) fn raw(&self) -> Connection {
        let raw = Connection::open(self.path()).unwrap();
        raw.busy_timeout(SOON).unwrap();
        raw
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = names
            .map(|name| name.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// An opened connector.
pub(crate) struct Reader {
    pub(crate) source: Leasing,
    pub(crate) acknowledger: Settling,
    pub(crate) told: Detached,
}

pub(crate) type Delivery = (Ticket, Message);

impl Reader {
    pub(crate) async fn open(connector: &SqliteConnector) -> Self {
        let (engine, told) = EngineHandle::detached();
        let (source, acknowledger) = connector.open(engine).await.unwrap();
        Self {
            source,
            acknowledger,
            told,
        }
    }

    /// One read.
    pub(crate) async fn read(&mut self, messages: usize) -> Vec<Delivery> {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages,
            bytes: usize::MAX,
        };
        let read = tokio::time::timeout(SOON, self.source.read(credit, &mut chunk)).await;
        assert_eq!(read.expect("a message comes soon").unwrap(), Read::Messages);
        assert!(chunk.len() <= messages, "P4: no more than there is credit for");
        chunk.drain().collect()
    }

    /// Reads until there are so many.
    pub(crate) async fn collect(&mut self, messages: usize) -> Vec<Delivery> {
        let mut all = Vec::new();
        while all.len() < messages {
            all.extend(self.read(messages - all.len()).await);
        }
        all
    }

    pub(crate) async fn one(&mut self) -> Delivery {
        self.read(1).await.remove(0)
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn finds_nothing(&mut self) -> bool {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages: 100,
            bytes: usize::MAX,
        };
        let nothing = tokio::time::timeout(A_WHILE, self.source.read(credit, &mut chunk))
            .await
            .is_err();
        assert_eq!(nothing, chunk.is_empty());
        nothing
    }

    pub(crate) async fn settle(&mut self, ticket: Ticket, settlement: Settlement) -> Outcome {
        self.settle_all(&[Settle { ticket, settlement }]).await.remove(0)
    }

    pub(crate) async fn settle_all(&mut self, settlements: &[Settle]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        self.acknowledger.settle(settlements, &mut outcomes).await;
        self.acknowledger.flush(&mut outcomes).await;
        let settled: Vec<_> = outcomes.iter().map(|(settle, _)| settle.clone()).collect();
        assert_eq!(settled, settlements, "P2: one answer for each, in order");
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    pub(crate) async fn ack(&mut self, deliveries: &[Delivery]) {
        let settlements: Vec<_> = deliveries
            .iter()
            .map(|(ticket, _)| Settle {
                ticket: *ticket,
                settlement: Settlement::Ack,
            })
            .collect();
        assert_eq!(
            self.settle_all(&settlements).await,
            vec![Outcome::Sent; deliveries.len()]
        );
    }
}

pub(crate) fn message(payload: &str) -> Outgoing {
    Outgoing::new(payload.to_owned())
}

pub(crate) fn keyed(key: &str, payload: &str) -> Outgoing {
    message(payload).with_key(key.to_owned())
}

pub(crate) fn payloads(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|(_, message)| String::from_utf8(message.payload.to_vec()).unwrap())
        .collect()
}

pub(crate) fn rejection(error: &str) -> Settlement {
    Settlement::Reject(Arc::new(Rejection {
        pipeline: "orders".into(),
        stage: "processor".into(),
        reason: Reason::Rejected,
        error: error.to_owned(),
        attempts: 2,
        deliveries: 1,
        origin: "orders@1".to_owned(),
        first_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000),
        at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
    }))
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(SOON, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("waited for {what} in vain"));
}

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}
