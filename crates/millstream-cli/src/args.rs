//! What can be written on the command line: [`Args`].

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args as Arguments, Parser, Subcommand};
use millstream_config::PositiveDuration;

use crate::dead_letter::Filter;

/// Runs message consumers.
#[derive(Debug, Parser)]
#[command(version, about, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the pipelines of a file until SIGTERM or SIGINT, then drains them; a second signal releases at once.
    ///
    /// SIGHUP reads the file again and takes over what has changed in it.
    ///
    /// Status 0: drained. 1: a pipeline gave up, or messages were left at the deadline. 2: the file is wrong.
    Run(Run),
    /// Says all that is wrong with a file; connects to nothing unless asked to.
    ///
    /// Status 0: it is right. 2: it is not.
    Check(Check),
    /// Prints the JSON Schema of a file, for editors.
    Schema,
    /// Publishes standard input, a message a line, to where a pipeline's source reads.
    ///
    /// Status 0: all of it is confirmed. 1: not all of it. 2: the file is wrong.
    Publish(Publish),
    /// Looks after what a pipeline gave up.
    ///
    /// Status 0: done. 1: not, or not all of it. 2: the file is wrong.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
}

#[derive(Debug, Arguments)]
pub(crate) struct Run {
    /// The configuration.
    pub(crate) file: PathBuf,
    /// Drain and end once nothing has arrived for this long, such as 2s, and no limit holds anything back.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) until_idle: Option<PositiveDuration>,
}

#[derive(Debug, Arguments)]
pub(crate) struct Check {
    /// The configuration.
    pub(crate) file: PathBuf,
    /// Also reach every broker, and compare the settings with what is there. Changes nothing; warnings leave status 0.
    #[arg(long)]
    pub(crate) connect: bool,
}

#[derive(Debug, Arguments)]
pub(crate) struct Publish {
    /// The configuration.
    pub(crate) file: PathBuf,
    /// The pipeline.
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: String,
    /// The key of messages that have none of their own.
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// A header for every message; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub(crate) header: Vec<(String, String)>,
    /// A line is an envelope: a JSON object with `payload` or `payload_base64`, `key` and `headers`.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// Prints the dead letters, a line each, without their payloads.
    List(List),
    /// Prints one dead letter, payload and all. On a terminal control characters of the payload are shown as escapes.
    Show(Show),
    /// Sends dead letters back to where the pipeline reads, and removes them.
    Replay(Replay),
    /// Removes dead letters for good.
    Purge(Purge),
}

impl DeadLetterCommand {
    pub(crate) fn chosen(&self) -> &Chosen {
        match self {
            Self::List(List { chosen, .. })
            | Self::Show(Show { chosen, .. })
            | Self::Replay(Replay { chosen, .. })
            | Self::Purge(Purge { chosen, .. }) => chosen,
        }
    }
}

/// Which letters of which pipeline.
#[derive(Clone, Debug, Arguments)]
pub(crate) struct Chosen {
    /// The configuration.
    pub(crate) file: PathBuf,
    /// The pipeline.
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: String,
    /// Only letters for which this is so; may be given several times, and all must hold: FIELD=VALUE or FIELD!=VALUE with
    /// reason, stage, pipeline, origin, id or header:NAME, age>TIME, age<TIME.
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Vec<Filter>,
    /// At most so many letters.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Arguments)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Print envelopes, payload and all, instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Arguments)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// The letter, as `list` names it.
    pub(crate) id: String,
    /// Print the envelope.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the payload and nothing else, byte for byte, whatever it does to a terminal.
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
}

#[derive(Debug, Arguments)]
pub(crate) struct Replay {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Messages a second at most.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) rate: Option<NonZeroU32>,
    /// Only print what would be replayed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Pass over letters that were replayed so often already.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub(crate) max_replays: u32,
}

#[derive(Debug, Arguments)]
pub(crate) struct Purge {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Only print what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

fn duration(text: &str) -> Result<PositiveDuration, String> {
    text.parse()
        .map_err(|invalid: millstream_config::Invalid| format!("{}; {}", invalid.message(), invalid.help()))
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_in_order() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_header_is_split_at_its_first_sign() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(header("a="), Ok(("a".to_owned(), String::new())));
        assert!(header("a").is_err() && header("=b").is_err());
    }
}
