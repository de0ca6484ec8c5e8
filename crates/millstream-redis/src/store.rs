//! [`RedisStore`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{BoxFuture, DedupError, DedupStore};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline};
use thiserror::Error;

/// How long a connection, or an answer, may take. The engine asks again later.
const PATIENCE: Duration = Duration::from_secs(2);

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
    client: Client,
    prefix: Vec<u8>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// A URL that names no Redis. It says nothing of the URL, in which there may be a password.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl RedisStore {
    /// The store of this pipeline at this URL, as in `redis://user:password@host:6379/0` or `unix:///run/redis.sock`.
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// If it is no URL of Redis, or one with TLS, which this build does not speak.
    pub fn new(url: &str, pipeline: &str) -> Result<Self, InvalidUrl> {
        if url.starts_with("rediss:") || url.starts_with("valkeys:") {
            return Err(InvalidUrl(
                "Redis cannot be reached through TLS by this build".to_owned(),
            ));
        }
        let client = Client::open(url)
            .map_err(|error| InvalidUrl(format!("it is no URL of Redis: {}", error.category())))?;
        Ok(Self {
            client,
            // With the length of the name, no two pipelines and ids come to one key.
            prefix: format!("millstream:{}:{pipeline}:", pipeline.len()).into_bytes(),
            connection: Mutex::default(),
        })
    }

    fn key(&self, id: &Bytes) -> Vec<u8> {
        [&self.prefix[..], &id[..]].concat()
    }

    /// All of it in one round trip; there must be something to ask.
    async fn ask<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, DedupError> {
        let open = self.connection.lock().clone();
        let mut connection = match open {
            Some(open) => open,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(PATIENCE))
                    .set_response_timeout(Some(PATIENCE));
                let new = self
                    .client
                    .get_multiplexed_async_connection_with_config(&config)
                    .await
                    .map_err(|error| failed(&error))?;
                self.connection.lock().insert(new).clone()
            }
        };
        let answer = pipeline.query_async(&mut connection).await;
        answer.map_err(|error| {
            // Whatever is wrong with it: the next call has another one.
            *self.connection.lock() = None;
            failed(&error)
        })
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
            self.ask(&pipeline).await
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
            let () = self.ask(&pipeline).await?;
            Ok(0)
        })
    }
}
