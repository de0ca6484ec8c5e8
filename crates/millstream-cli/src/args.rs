//! What can be written on the command line: [`Args`].

use std::path::PathBuf;

use clap::{Args as Arguments, Parser, Subcommand};
use millstream_config::PositiveDuration;

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
}

#[derive(Debug, Arguments)]
pub(crate) struct Run {
    /// The configuration.
    pub(crate) file: PathBuf,
    /// Drain and end once nothing has arrived for this long, such as 2s.
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
