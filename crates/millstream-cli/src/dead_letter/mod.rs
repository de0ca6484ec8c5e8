//! `dead-letter`: what a pipeline gave up, listed, shown, replayed and purged.

mod choice;
mod filter;
mod list;
mod pass;
mod purge;
mod replay;
mod show;
mod table;
mod time;

use std::process::ExitCode;

use anyhow::bail;
use millstream_config::{PipelineConfig, Registry};
use millstream_core::{DeadLetter, SharedLetterBox};

pub(crate) use self::filter::Filter;

use crate::args::{Chosen, DeadLetterCommand};
use crate::load::load;
use crate::log;
use crate::named::pipeline;
use crate::program::{BAD_CONFIG, print, runtime};

/// The most letters that are looked at, or sent, at a time.
const CHUNK: usize = 500;

pub(crate) fn run(command: &DeadLetterCommand, registry: &Registry) -> anyhow::Result<ExitCode> {
    let Chosen {
        file, pipeline: name, ..
    } = command.chosen();
    let Some(config) = load(file, registry) else {
        return Ok(BAD_CONFIG.into());
    };
    log::start(&config.host)?;
    let pipeline = pipeline(&config, name)?;
    let letters = letter_box(pipeline)?;
    let runtime = runtime()?;
    let said = runtime.block_on(async {
        match command {
            DeadLetterCommand::List(list) => list::list(letters, list).await,
            DeadLetterCommand::Show(show) => show::show(letters, show).await,
            DeadLetterCommand::Replay(replay) => replay::replay(letters, pipeline, replay).await,
            DeadLetterCommand::Purge(purge) => purge::purge(letters, purge).await,
        }
    });
    runtime.shutdown_background();
    print(&said?)
}

/// Where the pipeline's dead letters can be read, or why they cannot.
fn letter_box(pipeline: &PipelineConfig) -> anyhow::Result<SharedLetterBox> {
    let name = &pipeline.spec.name;
    let (found, why) = match &pipeline.spec.dead_letter {
        DeadLetter::Sink(sink) => (
            sink.letters(),
            format!(
                "the `dead_letter` of pipeline `{name}` is of a type that cannot be read again; name a queue, a topic \
                 or a file in [pipelines.{name}.dead_letter]"
            ),
        ),
        DeadLetter::Source => (
            pipeline.spec.source.letters(),
            format!(
                "the dead letters of pipeline `{name}` are where its broker puts what is rejected; name that place in \
                 [pipelines.{name}.dead_letter] to look after them"
            ),
        ),
        DeadLetter::Discard => (
            None,
            format!("pipeline `{name}` keeps no dead letters: `dead_letter` is \"discard\""),
        ),
        DeadLetter::Halt => (
            None,
            format!(
                "pipeline `{name}` keeps no dead letters: `dead_letter` is \"halt\", and it stands at what it gave up"
            ),
        ),
    };
    match found {
        Some(letters) => Ok(letters),
        None => bail!(why),
    }
}
