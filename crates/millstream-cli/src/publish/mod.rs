//! `publish`: standard input to where a pipeline's source reads.

mod input;

use std::fmt;
use std::io;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use millstream_config::{Config, Registry};
use millstream_core::{Headers, SharedSinkConnector};
use tokio::sync::mpsc;

use self::input::{Chunk, Input, Pattern};
use crate::args::Publish;
use crate::load::load;
use crate::log;
use crate::named::{messages, pipeline};
use crate::program::{BAD_CONFIG, print, runtime};
use crate::progress::Progress;
use crate::sender::Sender;
use crate::signals::Signals;

/// How many chunks are read ahead while one is being confirmed.
const AHEAD: usize = 2;

pub(crate) fn publish(args: &Publish, registry: &Registry) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.file, registry) else {
        return Ok(BAD_CONFIG.into());
    };
    log::start(&config.host)?;
    let target = target(&config, &args.pipeline)?;
    let pattern = Pattern {
        key: args.key.clone().map(Bytes::from),
        headers: args
            .header
            .iter()
            .map(|(name, value)| (name, value))
            .collect::<Headers>(),
        envelopes: args.json,
    };
    let runtime = runtime()?;
    let published = runtime.block_on(publish_all(target, pattern));
    runtime.shutdown_background();
    print(&format!("published {}\n", messages(published?)))
}

fn target(config: &Config, name: &str) -> anyhow::Result<SharedSinkConnector> {
    pipeline(config, name)?
        .publish_to
        .clone()
        .ok_or_else(|| anyhow!("the source of pipeline `{name}` cannot be published to"))
}

/// What an error calls a message.
struct Line(u64);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.0)
    }
}

/// Publishes until the input ends; says how many are confirmed, also in an error.
async fn publish_all(target: SharedSinkConnector, pattern: Pattern) -> anyhow::Result<u64> {
    let mut signals = Signals::listen()?;
    let mut chunks = read_ahead(pattern)?;
    let mut sender = Sender::new(target);
    let mut progress = Progress::of_input("published");
    loop {
        let chunk = tokio::select! {
            biased;
            signal = signals.end() => {
                drop(progress);
                bail!("{signal}; {} published before it", messages(sender.confirmed()));
            }
            chunk = chunks.recv() => chunk,
        };
        let Some(Chunk {
            messages: batch,
            bytes,
            end,
        }) = chunk
        else {
            return Ok(sender.confirmed());
        };
        let mut batch = batch
            .into_iter()
            .map(|(line, message)| (Line(line), message))
            .collect();
        let sent = sender.send(&mut batch, &mut signals).await;
        progress.advance(bytes, sender.confirmed());
        let ended = sent.and_then(|()| end.map_or(Ok(()), Err));
        if let Err(error) = ended {
            drop(progress);
            return Err(error).with_context(|| format!("{} published", messages(sender.confirmed())));
        }
    }
}

/// Reads standard input in a thread of its own, which ends with the process if nothing comes.
fn read_ahead(pattern: Pattern) -> io::Result<mpsc::Receiver<Chunk>> {
    let (chunks, receiver) = mpsc::channel(AHEAD);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut input = Input::new(io::stdin().lock(), pattern);
            while let Some(chunk) = input.next() {
                let last = chunk.end.is_some();
                if chunks.blocking_send(chunk).is_err() || last {
                    return;
                }
            }
        })?;
    Ok(receiver)
}
