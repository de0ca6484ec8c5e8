//! The connector in memory.

use std::sync::Arc;

use millstream_core::memory::MemoryQueue;
use millstream_core::{Connector as _, SharedConnector, SharedSinkConnector};
use millstream_testkit::conformance::{Features, Place, Rejected, Subject};

pub(crate) struct Memory;

impl Subject for Memory {
    type Place = Queue;

    fn name(&self) -> &str {
        "memory"
    }

    fn declares(&self) -> Features {
        Features {
            capabilities: MemoryQueue::new().capabilities(),
            keys: true,
            headers: true,
            ordered: true,
            backlog: true,
            settles_singly: true,
            takes_back: true,
            cuts: true,
            ..Features::default()
        }
    }

    async fn place(&self, _: &str) -> Queue {
        Queue(MemoryQueue::new())
    }
}

pub(crate) struct Queue(MemoryQueue);

impl Place for Queue {
    fn connector(&self) -> SharedConnector {
        Arc::new(self.0.clone())
    }

    fn sink(&self) -> SharedSinkConnector {
        Arc::new(self.0.clone())
    }

    async fn cut(&self) {
        self.0.break_connection();
    }

    async fn rejected(&self) -> Vec<Rejected> {
        let dead = self.0.dead().into_iter();
        dead.map(|(message, why)| Rejected {
            payload: message.payload,
            key: message.key,
            error: why.error.clone(),
        })
        .collect()
    }
}
