//! All departures from New York in 2013 through a pipeline, on the embedded queue or on a broker.
//!
//! `flights [FILE [NUMBER]]`: run it, kill it whenever you like, run it again: the table at the end is the same. The TOML
//! file says where the messages travel: `flights.toml`, which it takes without an argument, has the embedded queue, and
//! those beside it a broker each. With a number, only the first so many departures do.

mod departures;
mod figures;
mod pipeline;
mod progress;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use millstream::prelude::*;

use crate::figures::Figures;
use crate::pipeline::{Carriers, Delay};

/// What says how the pipeline runs, unless another file is named.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/flights.toml");

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // RabbitMQ's client calls each lost connection an error; the pipeline gets over it.
        .with_env_filter("error,lapin=off")
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
    let file = std::env::args().nth(1).unwrap_or_else(|| FILE.to_owned());
    let name = Path::new(&file).file_stem().context("the file has no name")?;
    let all = match std::env::args().nth(2) {
        Some(number) => number.parse().context("the number of departures is none")?,
        None => departures::DEPARTURES,
    };
    let figures = Figures::open(Path::new(name).with_extension("figures.db"))?;
    let app = App::new().pipeline(
        "flights",
        Flow::process(Delay).batch("carriers", Carriers::new(figures.clone())),
    );
    let config = app.config(&file)?;
    let shutdown_timeout = config.host.shutdown_timeout;
    let source = config
        .pipelines
        .iter()
        .find_map(|pipeline| pipeline.publish_to.clone());
    departures::publish(&*source.context("the source takes no messages")?, &figures, all).await?;
    let host = app.start(config).await?;

    let finished = tokio::select! {
        done = progress::until_done(&figures, &host, all) => { done?; true }
        _ = tokio::signal::ctrl_c() => false,
    };
    for (name, report) in host.drain(shutdown_timeout).await {
        eprintln!("{name}: {report}");
    }
    if finished {
        println!("{}", figures.table(all)?);
    } else {
        println!("interrupted: run it again to go on");
    }
    Ok(())
}
