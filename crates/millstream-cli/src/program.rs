//! From arguments to an exit status: [`main`].

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use millstream_config::{Registry, schema};
use millstream_core::Severity;
use tokio::runtime::{Builder, Runtime};

use crate::args::{Args, Check, Command};
use crate::load::{load, tell};
use crate::named::counted;
use crate::{connect, dead_letter, publish, run, screen};

/// The file is wrong, and it was said how.
pub(crate) const BAD_CONFIG: u8 = 2;

/// Runs the command that the process's arguments ask for, over what this registry knows.
///
/// It starts a runtime, logging and, for `run`, the handling of signals of its own, and so belongs into `main`:
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     millstream_cli::main(millstream_cli::stock())
/// }
/// ```
pub fn main(registry: Registry) -> ExitCode {
    let command = Args::parse().command;
    let ended = match command {
        Command::Run(args) => run::run(&args, &registry),
        Command::Check(args) => check(&args, &registry),
        Command::Schema => print_schema(&registry),
        Command::Publish(args) => publish::publish(&args, &registry),
        Command::DeadLetter(command) => dead_letter::run(&command, &registry),
    };
    // What the registry holds may have threads or files of its own.
    drop(registry);
    ended.unwrap_or_else(|error| {
        // Where it cannot be said, the exit status says it.
        let _ = writeln!(io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The runtime of a command. It is not waited for at the end: a handler may block its thread.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

fn check(args: &Check, registry: &Registry) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.file, registry) else {
        return Ok(BAD_CONFIG.into());
    };
    let mut said = counted(config.pipelines.len() as u64, "pipeline");
    let mut found = connect::look(&config);
    if args.connect {
        let runtime = runtime()?;
        found.extend(runtime.block_on(connect::connect(&config)));
        runtime.shutdown_background();
    }
    if let Some(found) = connect::diagnose(&config, &found) {
        tell(&found);
        if found.count(Severity::Error) > 0 {
            return Ok(BAD_CONFIG.into());
        }
        match found.count(Severity::Warning) {
            0 => {}
            warnings => said = format!("{said}, {}", counted(warnings as u64, "warning")),
        }
    }
    print(&format!("ok: {said}\n"))
}

fn print_schema(registry: &Registry) -> anyhow::Result<ExitCode> {
    print(&format!("{:#}\n", schema(registry)))
}

/// Writes to standard output. A reader that has read enough is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<ExitCode> {
    print_bytes(text.as_bytes())
}

/// The same with what may be no text.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    print_part(bytes).map(|_| ExitCode::SUCCESS)
}

/// The same with one part of many. Whether its reader wants more.
pub(crate) fn print_part(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match screen::beside(|| stdout.write_all(bytes).and_then(|()| stdout.flush())) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes to standard error what there is to say beside what was asked for.
pub(crate) fn say(text: &str) {
    // Where it cannot be said, nothing depends on it.
    let _ = screen::beside(|| io::stderr().write_all(text.as_bytes()));
}
