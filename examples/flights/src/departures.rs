//! The departures, from the file to where the pipeline reads.

use std::io::Read;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;
use lzma_rust2::XzReader;
use millstream::prelude::*;
use millstream::{Delivered, DynSink, DynSinkConnector, OpenError};
use serde::{Deserialize, Serialize};

use crate::figures::Figures;
use crate::progress;

static DATA: &[u8] = include_bytes!("../data/flights.csv.xz");

/// How many there are.
pub(crate) const DEPARTURES: u32 = 336_776;

/// Departures that are confirmed together.
const AT_A_TIME: usize = 5_000;

/// One row of the file. What is not known is empty or `NA`.
#[derive(Debug, Deserialize)]
struct Row {
    carrier: String,
    tailnum: String,
    sched_dep_time: u32,
    #[serde(deserialize_with = "csv::invalid_option")]
    dep_time: Option<u32>,
    origin: String,
    dest: String,
}

impl Row {
    fn tail(&self) -> Option<&str> {
        Some(&*self.tailnum).filter(|tail| !tail.is_empty() && *tail != "NA")
    }
}

/// One departure, as it travels: times are hours and minutes, as in `2359`.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Departure {
    pub(crate) id: u32,
    pub(crate) carrier: String,
    pub(crate) sched_dep_time: u32,
    pub(crate) dep_time: Option<u32>,
    pub(crate) origin: String,
    pub(crate) dest: String,
}

/// Publishes what has not been published yet of the first so many, to where the source reads.
///
/// How far it has come is noted once the broker has confirmed: killed in between, it publishes a few departures
/// twice, and the figures count them once.
pub(crate) async fn publish(to: &dyn DynSinkConnector, figures: &Figures, all: u32) -> anyhow::Result<()> {
    let mut published = figures.progress()?.published;
    if published >= all {
        return Ok(());
    }

    let mut text = String::new();
    XzReader::new(DATA, false).read_to_string(&mut text)?;
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    let mut rows = rows.deserialize::<Row>().skip(published as usize);
    let mut sink = open(to).await.context("where the departures go does not open")?;
    let bar: ProgressBar = progress::bar("published", published, all);
    while published < all {
        let mut messages = Vec::with_capacity(AT_A_TIME);
        for row in rows.by_ref().take(AT_A_TIME.min((all - published) as usize)) {
            let row = row?;
            let tail = row.tail().map(str::to_owned);
            let message = Outgoing::new(serde_json::to_vec(&Departure {
                id: published + u32::try_from(messages.len())?,
                carrier: row.carrier,
                sched_dep_time: row.sched_dep_time,
                dep_time: row.dep_time,
                origin: row.origin,
                dest: row.dest,
            })?);
            messages.push(match tail {
                Some(tail) => message.with_key(tail),
                None => message,
            });
        }
        anyhow::ensure!(!messages.is_empty(), "the file ends after {published} departures");
        let mut results = Vec::with_capacity(messages.len());
        sink.send(&messages, &mut results).await?;
        if let Some(refused) = results.iter().find(|result| **result != Delivered::Confirmed) {
            anyhow::bail!("a departure was not taken: {refused:?}");
        }
        published += u32::try_from(messages.len())?;
        figures.note_published(published)?;
        bar.set_position(published.into());
    }
    bar.finish();
    Ok(())
}

/// Opens it; a topic that Kafka makes when it is first asked for is there a moment later.
async fn open(to: &dyn DynSinkConnector) -> Result<Box<dyn DynSink>, OpenError> {
    for _ in 0..50 {
        match to.open().await {
            Err(OpenError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            opened => return opened,
        }
    }
    to.open().await
}
