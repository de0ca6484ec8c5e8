//! The embedded queue: there is no broker.

use std::sync::Arc;

use millstream_core::{EngineHandle, SharedConnector, SharedSinkConnector};
use millstream_sqlite::{Queue, SqliteConnector, SqliteSink};
use millstream_tests::QUEUE;

use super::{DEAD, HandsOut, Store, wait_for};
use crate::place::Place;

pub(crate) struct OnSqlite(Place);

impl Store for OnSqlite {
    const TAKES_BACK: bool = true;

    fn start() -> Self {
        let store = Self(Place::new());
        // The first reader of a queue is entered in all that was published before.
        for queue in [QUEUE, DEAD] {
            let (engine, _engine) = EngineHandle::detached();
            wait_for(async { drop(store.inlet(queue).open(engine).await.unwrap()) });
        }
        store
    }

    fn name(&self) -> String {
        "SQLite".to_owned()
    }

    fn source(&self, queue: &str) -> String {
        self.sink(queue)
    }

    fn sink(&self, queue: &str) -> String {
        let path = self.0.path();
        format!("{{ type = \"sqlite\", path = {path:?}, queue = \"{queue}\" }}")
    }

    fn inlet(&self, queue: &str) -> SharedConnector {
        Arc::new(SqliteConnector::new(self.0.path(), queue))
    }

    fn outlet(&self, queue: &str) -> SharedSinkConnector {
        Arc::new(SqliteSink::new(self.0.path(), queue))
    }

    fn remaining(&self, queue: &str) -> u32 {
        let counts = self.queue(queue).counts().unwrap();
        u32::try_from(counts.ready + counts.delayed + counts.leased).unwrap()
    }

    fn restart(&mut self, _: bool) {
        panic!("there is nothing to restart");
    }
}

impl HandsOut for OnSqlite {
    fn handed_out(&self, queue: &str) -> u32 {
        u32::try_from(self.queue(queue).counts().unwrap().leased).unwrap()
    }
}

impl OnSqlite {
    fn queue(&self, name: &str) -> Queue {
        Queue::open(self.0.path(), name).unwrap()
    }
}
