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

const SOURCE: [Rule; 9] = [
    ("enable.partition.eof", "is for programs"),
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

pub(crate) fn check_source(name: &str, value: &str) -> Result<(), InvalidProperty> {
    check(name, value, &SOURCE)
}

pub(crate) fn check_sink(name: &str, value: &str) -> Result<(), InvalidProperty> {
    check(name, value, &SINK)
}

fn check(name: &str, value: &str, rules: &[Rule]) -> Result<(), InvalidProperty> {
    let forbidden = BOTH.iter().chain(rules).find(|(forbidden, _)| *forbidden == name);
    match forbidden
        .map(|(_, why)| *why)
        .or_else(|| not_built_in(name, value))
    {
        Some(why) => Err(InvalidProperty {
            name: name.to_owned(),
            why,
        }),
        None => Ok(()),
    }
}

/// Why this build cannot do what the value asks for.
fn not_built_in(name: &str, value: &str) -> Option<&'static str> {
    let value = value.to_ascii_lowercase();
    let (built_in, why) = match name {
        "security.protocol" if value.ends_with("ssl") => (
            cfg!(feature = "ssl"),
            "asks for TLS, which is not built in: build with the feature `kafka-ssl`",
        ),
        "sasl.mechanism" | "sasl.mechanisms" if value == "gssapi" => (
            cfg!(feature = "gssapi"),
            "asks for Kerberos, which is not built in: build with the feature `kafka-gssapi`",
        ),
        "sasl.mechanism" | "sasl.mechanisms" if value != "plain" => (
            cfg!(feature = "ssl"),
            "asks for a mechanism that takes OpenSSL, which is not built in: build with the feature `kafka-ssl`",
        ),
        "compression.type" | "compression.codec" if value == "zstd" => (
            cfg!(feature = "zstd"),
            "asks for zstd, which is not built in: build with the feature `kafka-zstd`",
        ),
        _ => return None,
    };
    (!built_in).then_some(why)
}

/// Whether a property says how to reach and to convince brokers, which is the same for all clients of theirs.
#[must_use]
pub fn connects(name: &str) -> bool {
    ["bootstrap.servers", "client.id"].contains(&name)
        || ["security.", "sasl.", "ssl.", "socket.", "broker.address."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// What it takes to reach the brokers that a source reads from, for other clients than its consumer.
pub(crate) fn reach(source: &ClientConfig) -> ClientConfig {
    let mut reach = ClientConfig::new();
    // The map itself has a placeholder for each password.
    for name in source.config_map().into_keys().filter(|name| connects(name)) {
        reach.set(name, source.get(name).unwrap_or_default());
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
        let error = check_source("enable.auto.commit", "true").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the property `enable.auto.commit` would commit what is not settled; `commit_interval` says how often \
             offsets are committed"
        );
        assert!(check_sink("acks", "1").is_err());
        assert_eq!(check_source("acks", "1"), Ok(()));
        assert_eq!(check_source("fetch.min.bytes", "1"), Ok(()));
    }
    #[test]
    fn other_clients_log_in_with_the_same_password() {
        let mut source = ClientConfig::new();
        source
            .set("bootstrap.servers", "localhost:9092")
            .set("sasl.password", "a secret")
            .set("group.id", "readers");
        let reach = reach(&source);
        assert_eq!(reach.get("sasl.password"), Some("a secret"));
        assert_eq!(reach.get("bootstrap.servers"), Some("localhost:9092"));
        assert_eq!(reach.get("group.id"), None);
    }

    #[test]
    fn what_is_not_built_in_is_refused_with_the_feature_that_has_it() {
        let built_in = [
            (
                "security.protocol",
                "SASL_SSL",
                cfg!(feature = "ssl"),
                "kafka-ssl",
            ),
            (
                "sasl.mechanisms",
                "SCRAM-SHA-512",
                cfg!(feature = "ssl"),
                "kafka-ssl",
            ),
            (
                "sasl.mechanism",
                "GSSAPI",
                cfg!(feature = "gssapi"),
                "kafka-gssapi",
            ),
            ("compression.type", "zstd", cfg!(feature = "zstd"), "kafka-zstd"),
            ("security.protocol", "sasl_plaintext", true, ""),
            ("sasl.mechanism", "PLAIN", true, ""),
            ("compression.type", "lz4", true, ""),
        ];
        for (name, value, built_in, feature) in built_in {
            match check_sink(name, value) {
                Ok(()) => assert!(built_in, "{name} = {value}"),
                Err(error) => assert!(!built_in && error.why.contains(feature), "{error}"),
            }
        }
    }
}
