//! One Redis, as stores ask it: [`Server`].

use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisError};
use thiserror::Error;

/// How long a connection, or an answer, may take; both are less than what the engine waits for them. It asks again later.
const PATIENCE: Duration = Duration::from_millis(450);

/// Connects when it is asked first, and again after each failure.
pub(crate) struct Server {
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// A URL that names no Redis. It says nothing of the URL, in which there may be a password.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl Server {
    pub(crate) fn new(url: &str) -> Result<Self, InvalidUrl> {
        if url.starts_with("rediss:") || url.starts_with("valkeys:") {
            return Err(InvalidUrl(
                "Redis cannot be reached through TLS by this build".to_owned(),
            ));
        }
        let client = Client::open(url)
            .map_err(|error| InvalidUrl(format!("it is no URL of Redis: {}", error.category())))?;
        Ok(Self {
            client,
            connection: Mutex::default(),
        })
    }

    /// All of it in one round trip; there must be something to ask.
    pub(crate) async fn ask<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
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
                    .await?;
                self.connection.lock().insert(new).clone()
            }
        };
        // Whatever is wrong with it, and if nobody waits for the answer any longer: the next call has another one.
        let unproven = Unproven(&self.connection);
        let answer = pipeline.query_async(&mut connection).await?;
        std::mem::forget(unproven);
        Ok(answer)
    }
}

/// A connection that owes an answer. Dropped, it is used no more.
struct Unproven<'a>(&'a Mutex<Option<MultiplexedConnection>>);

impl Drop for Unproven<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
