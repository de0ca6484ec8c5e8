//! [`RedisStore`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{BoxFuture, DedupError, DedupStore};
use redis::Pipeline;

use crate::server::{InvalidUrl, Server};

/// What an entry holds: that it is there is all that it says.
const ENTRY: u8 = b'1';

/// Remembers ids in Redis, or in what speaks its protocol: one server, and no cluster.
///
/// It connects when it is asked first, and again after each failure.
///
/// ```
/// use millstream_redis::RedisStore;
///
/// let store = RedisStore::new("redis://127.0.0.1:6379", "orders")?;
/// assert!(RedisStore::new("http://127.0.0.1", "orders").is_err());
/// # Ok::<(), millstream_redis::InvalidUrl>(())
/// ```
pub struct RedisStore {
    server: Server,
    prefix: Vec<u8>,
}

impl RedisStore {
    /// The store of this pipeline at this URL, as in `redis://user:password@host:6379/0` or `unix:///run/redis.sock`.
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// If it is no URL of Redis, or one with TLS, which this build does not speak.
    pub fn new(url: &str, pipeline: &str) -> Result<Self, InvalidUrl> {
        Ok(Self {
            server: Server::new(url)?,
            // With the length of the name, no two pipelines and ids come to one key.
            prefix: format!("millstream:{}:{pipeline}:", pipeline.len()).into_bytes(),
        })
    }

    fn key(&self, id: &Bytes) -> Vec<u8> {
        [&self.prefix[..], &id[..]].concat()
    }
}

fn failed(error: &redis::RedisError) -> DedupError {
    DedupError(format!("Redis: {error}"))
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

impl DedupStore for RedisStore {
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        Box::pin(async move {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let mut pipeline = Pipeline::with_capacity(ids.len());
            for id in ids {
                pipeline.cmd("EXISTS").arg(self.key(id));
            }
            self.server.ask(&pipeline).await.map_err(|error| failed(&error))
        })
    }

    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        Box::pin(async move {
            if ids.is_empty() {
                return Ok(0);
            }
            let millis = i64::try_from(window.as_millis()).unwrap_or(i64::MAX).max(1);
            let mut pipeline = Pipeline::with_capacity(ids.len());
            for id in ids {
                let set = pipeline.cmd("SET").arg(self.key(id)).arg(&[ENTRY]);
                set.arg("PX").arg(millis).ignore();
            }
            let () = self.server.ask(&pipeline).await.map_err(|error| failed(&error))?;
            Ok(0)
        })
    }
}
