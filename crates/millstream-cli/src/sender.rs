//! Messages to a sink until it has confirmed them: [`Sender`].

use std::fmt::{self, Display};

use anyhow::anyhow;
use backon::{BackoffBuilder, ExponentialBuilder};
use millstream_core::rt::{self, Duration};
use millstream_core::{Delivered, DynSink, OpenError, Outgoing, SharedSinkConnector};
use tracing::warn;

use crate::signals::Signals;

/// How often a failure is tried again, with waits from a fifth of a second to five seconds.
const RETRIES: usize = 6;

/// Sends, and sends again what failed.
pub(crate) struct Sender {
    target: SharedSinkConnector,
    open: Option<Box<dyn DynSink>>,
    confirmed: u64,
}

/// Why sending has not succeeded.
enum Fault {
    /// Trying again cannot help.
    Fatal(anyhow::Error),
    /// It may.
    Passing(String),
}

impl Sender {
    pub(crate) fn new(target: SharedSinkConnector) -> Self {
        Self {
            target,
            open: None,
            confirmed: 0,
        }
    }

    /// How many messages are confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Sends these, each with what an error calls it; what is confirmed leaves the batch. After a failure of the sink as
    /// a whole a message may be there twice.
    ///
    /// # Errors
    /// If a message is refused, if the sink does not work in the end, or if a signal asks to end while it does not.
    pub(crate) async fn send<N: Display>(
        &mut self,
        batch: &mut Vec<(N, Outgoing)>,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(RETRIES)
            .with_jitter()
            .build();
        loop {
            let cause = match self.attempt(batch).await {
                Ok(()) => return Ok(()),
                Err(Fault::Fatal(error)) => return Err(error),
                Err(Fault::Passing(cause)) => cause,
            };
            let Some(wait) = waits.next() else {
                return Err(anyhow!(cause));
            };
            warn!(?wait, cause, "publishing again");
            tokio::select! {
                biased;
                signal = signals.end() => return Err(anyhow!("{signal} while publishing failed: {cause}")),
                () = rt::sleep(wait) => {}
            }
        }
    }

    /// Tries once; what is confirmed leaves the batch.
    async fn attempt<N: Display>(&mut self, batch: &mut Vec<(N, Outgoing)>) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        // A sink that fails is dropped.
        let mut sink = match self.open.take() {
            Some(sink) => sink,
            None => self.target.open().await.map_err(|error| match error {
                OpenError::Refused(cause) => Fault::Fatal(anyhow!(cause)),
                OpenError::Unavailable(cause) => Fault::Passing(cause),
            })?,
        };
        let messages: Vec<_> = batch.iter().map(|(_, message)| message.clone()).collect();
        let mut results = Vec::with_capacity(batch.len());
        sink.send(&messages, &mut results)
            .await
            .map_err(|error| Fault::Passing(error.to_string()))?;
        self.open = Some(sink);
        let mut worst = Ok(());
        let mut results = results.into_iter();
        batch.retain(|(name, _)| match results.next() {
            Some(Delivered::Confirmed) => {
                self.confirmed += 1;
                false
            }
            Some(Delivered::Refused(cause)) => {
                if !matches!(worst, Err(Fault::Fatal(_))) {
                    worst = Err(Fault::Fatal(anyhow!("{name} is refused: {cause}")));
                }
                true
            }
            failed => {
                let cause = match failed {
                    Some(Delivered::Failed(cause)) => cause,
                    _ => "the sink gave no result".to_owned(),
                };
                if worst.is_ok() {
                    worst = Err(Fault::Passing(format!("{name}: {cause}")));
                }
                true
            }
        });
        worst
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("confirmed", &self.confirmed)
            .finish_non_exhaustive()
    }
}
