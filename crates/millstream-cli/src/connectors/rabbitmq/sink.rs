//! The writing side.

use std::sync::Arc;

use millstream_config::{Invalid, SinkContext, SinkKind};
use millstream_core::SharedSinkConnector;
use millstream_rabbitmq::{RabbitSink, RoutingKey};

use super::RabbitKind;
use super::settings::{RabbitSinkSettings, dial, too_long, topology};

impl SinkKind for RabbitKind {
    type Settings = RabbitSinkSettings;

    fn sink(
        &self,
        settings: &RabbitSinkSettings,
        cx: &SinkContext<'_>,
    ) -> Result<SharedSinkConnector, Invalid> {
        let dial = dial(
            &settings.url,
            cx.pipeline,
            settings.heartbeat,
            settings.ca_file.as_deref(),
        )?;
        let sink = match (&settings.queue, &settings.exchange) {
            (Some(queue), None) => {
                for (key, set) in [
                    ("routing_key", settings.routing_key.is_some()),
                    ("routing_key_from", settings.routing_key_from.is_some()),
                ] {
                    if set {
                        return Err(Invalid::new(
                            format!("`{key}` has no meaning for a queue"),
                            "remove it, or name an `exchange` instead of the `queue`",
                        )
                        .at(key));
                    }
                }
                if queue.is_empty() {
                    return Err(
                        Invalid::new("`queue` is empty", "write a name between the quotes").at("queue"),
                    );
                }
                if settings.declare.as_ref().is_some_and(|declare| declare.exclusive) {
                    return Err(Invalid::new(
                        "an exclusive queue goes with the connection that writes to it",
                        "remove `exclusive`",
                    )
                    .at("declare"));
                }
                RabbitSink::queue(dial, topology(queue, settings.declare.as_ref(), &[])?)
            }
            (None, Some(exchange)) => {
                if settings.declare.is_some() {
                    return Err(Invalid::new(
                        "`declare` is for a queue, and this sink writes to an exchange",
                        "remove it; the source that reads the queue can declare and bind it",
                    )
                    .at("declare"));
                }
                if exchange.len() > 255 {
                    return Err(too_long("`exchange`").at("exchange"));
                }
                RabbitSink::exchange(dial, exchange, routing_key(settings)?)
            }
            _ => {
                return Err(Invalid::new(
                    "a sink writes either to a `queue` or to an `exchange`",
                    "name one of the two",
                ));
            }
        };
        Ok(Arc::new(sink.timeout(settings.timeout.get())))
    }
}

fn routing_key(settings: &RabbitSinkSettings) -> Result<RoutingKey, Invalid> {
    let fixed = settings.routing_key.as_deref().unwrap_or_default();
    if fixed.len() > 255 {
        return Err(too_long("`routing_key`").at("routing_key"));
    }
    let from = match settings.routing_key_from.as_deref() {
        None => RoutingKey::default(),
        Some("key") => RoutingKey::key(),
        Some(other) => match other.strip_prefix("header:").filter(|name| !name.is_empty()) {
            Some(name) => RoutingKey::header(name),
            None => {
                return Err(Invalid::new(
                    "there is no routing key to be had from there",
                    "write \"key\" or \"header:NAME\"",
                )
                .at("routing_key_from"));
            }
        },
    };
    Ok(from.or(fixed))
}
