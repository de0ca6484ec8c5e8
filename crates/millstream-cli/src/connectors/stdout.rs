//! `type = "stdout"`: a sink that prints envelopes.

use std::io::{self, Write};
use std::sync::Arc;

use millstream_config::{Invalid, NoSettings, SinkContext, SinkKind};
use millstream_core::{
    Delivered, Finding, OpenError, Outgoing, SharedSinkConnector, Sink, SinkConnector, SinkError,
};

use crate::envelope::Envelope;
use crate::screen;

/// Prints messages to standard output, an envelope a line.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdoutKind;

impl SinkKind for StdoutKind {
    type Settings = NoSettings;

    fn sink(&self, _: &NoSettings, _: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid> {
        Ok(Arc::new(Stdout))
    }
}

#[derive(Debug)]
struct Stdout;

impl SinkConnector for Stdout {
    type Sink = Self;

    async fn open(&self) -> Result<Self, OpenError> {
        Ok(Self)
    }

    async fn check(&self) -> Vec<Finding> {
        Vec::new()
    }
}

impl Sink for Stdout {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let mut lines = Vec::new();
        for message in messages {
            Envelope::from(message).write(&mut lines);
        }
        // Whoever reads the other end of a pipe may keep it waiting.
        let print = move || {
            screen::beside(|| {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&lines)?;
                stdout.flush()
            })
        };
        match tokio::task::spawn_blocking(print).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(SinkError(format!("standard output: {error}"))),
            Err(error) => return Err(SinkError(error.to_string())),
        }
        results.extend(messages.iter().map(|_| Delivered::Confirmed));
        Ok(())
    }
}
