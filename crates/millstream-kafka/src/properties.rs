//! What is passed on to librdkafka, and what is not: [`InvalidProperty`].

use std::time::Duration;

use rdkafka::ClientConfig;
use thiserror::Error;

/// A property that cannot be passed on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the property `{name}` {why}")]
pub struct InvalidProperty {
    /// Its name.
    pub name: String,
    /// Why not, and what to write instead.
    pub why: &'static str,
}

type Rule = (&'static str, &'static str);

/// What neither side may be given.
const BOTH: [Rule; 3] = [
    ("bootstrap.servers", "is what `brokers` says"),
    ("metadata.broker.list", "is what `brokers` says"),
    ("opaque", "is for programs"),
];

const SOURCE: [Rule; 8] = [
    ("transactional.id", "is what `transactional_id` says"),
    ("group.id", "is what `group` says"),
    ("group.instance.id", "is what `static_id` says"),
    ("auto.offset.reset", "is what `offset_reset` says"),
    (
        "auto.commit.interval.ms",
        "has no effect: `commit_interval` says how often",
    ),
    (
        "enable.auto.commit",
        "would commit what is not settled; `commit_interval` says how often offsets are committed",
    ),
    ("enable.auto.offset.store", "would commit what is not settled"),
    (
        "offset.store.method",
        "would keep offsets where no other member finds them",
    ),
];

const SINK: [Rule; 6] = [
    ("transactional.id", "is what the source's `transactional_id` says"),
    (
        "acks",
        "would have messages confirmed that a broker may lose; it is `all`",
    ),
    (
        "request.required.acks",
        "is another name of `acks`, which is `all`",
    ),
    (
        "enable.idempotence",
        "would let messages be written twice, or out of order; it is on",
    ),
    (
        "delivery.report.only.error",
        "would leave what is written unconfirmed",
    ),
    ("dr_cb", "is for programs"),
];

pub(crate) fn check_source(name: &str) -> Result<(), InvalidProperty> {
    check(name, &SOURCE)
}

pub(crate) fn check_sink(name: &str) -> Result<(), InvalidProperty> {
    check(name, &SINK)
}

fn check(name: &str, rules: &[Rule]) -> Result<(), InvalidProperty> {
    match BOTH.iter().chain(rules).find(|(forbidden, _)| *forbidden == name) {
        Some((_, why)) => Err(InvalidProperty {
            name: name.to_owned(),
            why,
        }),
        None => Ok(()),
    }
}

/// What it takes to reach the brokers that a source reads from, for other clients than its consumer.
pub(crate) fn reach(source: &ClientConfig) -> ClientConfig {
    let mut reach = ClientConfig::new();
    for (name, value) in source.config_map() {
        let connects = ["bootstrap.servers", "client.id"].contains(&name)
            || ["security.", "sasl.", "ssl.", "socket.", "broker.address."]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        if connects {
            reach.set(name, value);
        }
    }
    reach
}

/// What this property is set to, in milliseconds.
pub(crate) fn millis(config: &ClientConfig, name: &str, default: Duration) -> Duration {
    config
        .get(name)
        .and_then(|value| value.parse().ok())
        .map_or(default, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_promise_is_refused_with_the_reason() {
        let error = check_source("enable.auto.commit").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the property `enable.auto.commit` would commit what is not settled; `commit_interval` says how often \
             offsets are committed"
        );
        assert!(check_sink("acks").is_err());
        assert_eq!(check_source("acks"), Ok(()));
        assert_eq!(check_source("fetch.min.bytes"), Ok(()));
    }
}
