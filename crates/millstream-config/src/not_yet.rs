//! What the reference has and this build does not honour yet.

/// Connectors of the reference; one that is not registered is not unknown.
pub(crate) const CONNECTORS: [&str; 6] = ["memory", "sqlite", "file", "rabbitmq", "kafka", "sqs"];
/// Handlers of the reference.
pub(crate) const HANDLERS: [&str; 3] = ["forward", "http", "exec"];

/// The cause, for all that is in the reference and not in the build.
pub(crate) fn message(named: &str) -> String {
    format!("{named} is part of the reference, but this build does not honour it yet")
}
