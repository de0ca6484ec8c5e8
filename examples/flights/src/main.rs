//! All departures from New York in 2013 through a pipeline on the embedded queue.
//!
//! Run it, kill it whenever you like, run it again: the table at the end is the same. `flights.toml` beside it says
//! how the pipeline runs.

mod departures;
mod figures;
mod pipeline;
mod progress;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use millstream::prelude::*;
use millstream::sqlite::Queue;
use tracing_subscriber::filter::LevelFilter;

use crate::figures::Figures;
use crate::pipeline::{Carriers, Delay};

/// The queue's database, as in `flights.toml`, and that of the figures.
const QUEUE: (&str, &str) = ("flights.db", "flights");
const FIGURES: &str = "carriers.db";

/// For how long nothing may move before the queue is looked at whether it is empty.
const QUIET: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(LevelFilter::ERROR)
        .init();
    match tokio::runtime::Runtime::new()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let queue = Queue::open(QUEUE.0, QUEUE.1)?;
    departures::publish(QUEUE.0, QUEUE.1)?;

    let figures = Figures::open(FIGURES)?;
    let app = App::new().pipeline(
        "flights",
        Flow::process(Delay).batch("carriers", Carriers::new(figures.clone())),
    );
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/flights.toml");
    let config = app.config(std::env::args().nth(1).as_deref().unwrap_or(file))?;
    let shutdown_timeout = config.host.shutdown_timeout;
    let host = app.start(config).await?;

    let finished = tokio::select! {
        () = progress::until_empty(&queue, &host, QUIET) => true,
        _ = tokio::signal::ctrl_c() => false,
    };
    for (name, report) in host.drain(shutdown_timeout).await {
        eprintln!("{name}: {report}");
    }
    if finished {
        println!("{}", figures.table(queue.counts()?.dead)?);
    } else {
        println!("interrupted: run it again to go on");
    }
    Ok(())
}
