//! A process of a fault test: `actor ROLE`, and in the environment a line `name=value` for each of its arguments.
//!
//! `publish` publishes numbered messages and ends; `consume` runs a host with one pipeline until it is told to
//! drain, and then ends; `copy` does so from a topic of Kafka to another; `run FILE` is the command line's own, with
//! a flow of the test's. Standard output is the ledger. A line on standard input says that it shall drain, unless it
//! does so at a signal, and its end that the test is gone, and so shall every process of it be.

mod roles {
    pub(crate) mod consume;
    pub(crate) mod copy;
    pub(crate) mod fates;
    pub(crate) mod handler;
    pub(crate) mod publish;
    pub(crate) mod run;
}

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;

use millstream_tests::ARGUMENTS;

/// What the test asked for.
struct Arguments(BTreeMap<String, String>);

impl Arguments {
    fn get<T: FromStr>(&self, name: &str) -> T {
        self.0
            .get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("the argument {name}=… is missing or wrong"))
    }

    fn get_or<T: FromStr>(&self, name: &str, default: T) -> T {
        if self.0.contains_key(name) {
            self.get(name)
        } else {
            default
        }
    }
}

/// From now on the process ends with its test.
fn ends_with_the_test() {
    std::thread::spawn(|| {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        std::process::exit(1);
    });
}

fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    let arguments = Arguments(
        arguments
            .lines()
            .filter_map(|line| {
                let (name, value) = line.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect(),
    );
    if role.as_deref() == Some("run") {
        // It logs as its file says.
        return roles::run::run(&arguments);
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("MILLSTREAM_ACTOR_LOG"))
        .init();
    match role.as_deref() {
        Some("publish") => roles::publish::run(&arguments),
        Some("consume") => roles::consume::run(&arguments),
        Some("copy") => roles::copy::run(&arguments),
        _ => {
            eprintln!("usage: actor publish|consume|copy|run FILE");
            ExitCode::FAILURE
        }
    }
}
