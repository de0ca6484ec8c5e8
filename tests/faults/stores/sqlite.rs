//! The embedded queue: there is no broker.

use std::sync::Arc;

use millstream_core::{SharedConnector, SharedSinkConnector};
use millstream_sqlite::{Queue, SqliteConnector, SqliteSink};

use super::{DEAD, Store};
use crate::place::Place;

pub(crate) struct OnSqlite(Place);

impl Store for OnSqlite {
    const TAKES_BACK: bool = true;

    fn start() -> Self {
        let store = Self(Place::new());
        drop((store.0.queue(), store.queue(DEAD)));
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

impl OnSqlite {
    fn queue(&self, name: &str) -> Queue {
        Queue::open(self.0.path(), name).unwrap()
    }
}
