//! A process of a fault test: `actor ROLE name=value …`.
//!
//! `publish` publishes numbered messages and ends; `consume` runs a host with one pipeline until it is told to
//! drain, and then ends; `copy` does so from a topic of Kafka to another. Standard output is the ledger. A line on standard input says that it shall drain, and its
//! end that the test is gone, and so shall every process of it be.

mod roles {
    pub(crate) mod consume;
    pub(crate) mod copy;
    pub(crate) mod handler;
    pub(crate) mod publish;
}

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;

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

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("MILLSTREAM_ACTOR_LOG"))
        .init();
    let mut words = std::env::args().skip(1);
    let role = words.next();
    let arguments = Arguments(
        words
            .filter_map(|word| {
                let (name, value) = word.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect(),
    );
    match role.as_deref() {
        Some("publish") => roles::publish::run(&arguments),
        Some("consume") => roles::consume::run(&arguments),
        Some("copy") => roles::copy::run(&arguments),
        _ => {
            eprintln!("usage: actor publish|consume|copy name=value …");
            ExitCode::FAILURE
        }
    }
}
