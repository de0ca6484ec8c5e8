//! The reading side.

use std::sync::Arc;

use millstream_config::{Invalid, SinkContext, SourceContext, SourceKind};
use millstream_core::{Ordering, SharedConnector, SharedSinkConnector};
use millstream_rabbitmq::{OnFailure, RabbitConnector, RabbitSink, ReaderSettings};

use super::RabbitKind;
use super::settings::{RabbitSettings, arguments, dial, too_long, topology};

impl SourceKind for RabbitKind {
    type Settings = RabbitSettings;

    fn source(&self, settings: &RabbitSettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        Ok(Arc::new(RabbitConnector::new(reader(settings, cx)?)))
    }

    fn publish(
        &self,
        settings: &RabbitSettings,
        cx: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        if settings.queue.is_empty() {
            return Ok(None);
        }
        let dial = dial(
            &settings.url,
            cx.pipeline,
            settings.heartbeat,
            settings.ca_file.as_deref(),
        )?;
        let topology = topology(&settings.queue, settings.declare.as_ref(), &settings.bindings)?;
        Ok(Some(Arc::new(RabbitSink::queue(dial, topology))))
    }
}

fn reader(settings: &RabbitSettings, cx: &SourceContext<'_>) -> Result<ReaderSettings, Invalid> {
    let dial = dial(
        &settings.url,
        cx.pipeline,
        settings.heartbeat,
        settings.ca_file.as_deref(),
    )?;
    let topology = topology(&settings.queue, settings.declare.as_ref(), &settings.bindings)?;
    let mut reader = ReaderSettings::new(dial, topology);
    reader.prefetch = settings.prefetch;
    reader.connections = settings.connections;
    reader.on_failure = OnFailure::from(settings.on_failure);
    reader.consumer_tag.clone_from(&settings.consumer_tag);
    reader.arguments = arguments(&settings.arguments, "arguments")?;
    if let Some(url) = &settings.management_url {
        reader
            .ask_management(url.expose())
            .map_err(|why| Invalid::new("this URL cannot be used", why).at("management_url"))?;
    }
    named(settings)?;
    concurrent(settings, &reader, cx)?;
    stream(settings, &reader)?;
    Ok(reader)
}

/// A queue without a name is one that the broker names.
fn named(settings: &RabbitSettings) -> Result<(), Invalid> {
    if settings.queue.is_empty() && settings.declare.as_ref().is_none_or(|declare| declare.passive) {
        return Err(Invalid::new(
            "`queue` is empty and nothing declares one",
            "name the queue; or, for a queue that the broker names, say with `declare` how it is made",
        )
        .at("queue"));
    }
    if settings.consumer_tag.as_ref().is_some_and(|tag| tag.len() > 200) {
        return Err(too_long("`consumer_tag`").at("consumer_tag"));
    }
    if settings.prefetch == Some(0) {
        return Err(Invalid::new(
            "a `prefetch` of 0 sets no bound",
            "leave it out: it then follows from `limits.in_flight`",
        )
        .at("prefetch"));
    }
    Ok(())
}

/// What several connections cannot do.
fn concurrent(
    settings: &RabbitSettings,
    reader: &ReaderSettings,
    cx: &SourceContext<'_>,
) -> Result<(), Invalid> {
    let at_one = |why: &str| Invalid::new(why, "set `connections` to 1").at("connections");
    match settings.connections {
        0 => return Err(at_one("without connections nothing is read")),
        1 => return Ok(()),
        _ => {}
    }
    if !matches!(cx.ordering, Ordering::None) {
        return Err(at_one("between two connections messages lose their order"));
    }
    if settings.queue.is_empty() {
        return Err(at_one("each connection would have a queue of its own"));
    }
    if settings.declare.as_ref().is_some_and(|declare| declare.exclusive) {
        return Err(at_one("an exclusive queue can be read by one connection"));
    }
    if reader.is_stream() {
        return Err(at_one("each connection would read the whole stream"));
    }
    Ok(())
}

/// What a stream cannot do.
fn stream(settings: &RabbitSettings, reader: &ReaderSettings) -> Result<(), Invalid> {
    if !reader.is_stream() {
        return Ok(());
    }
    if reader.on_failure != OnFailure::Reject {
        return Err(Invalid::new(
            "nothing can be put back into a stream",
            "remove `on_failure`, and name a `dead_letter` for what is given up",
        )
        .at("on_failure"));
    }
    if let Some(declare) = &settings.declare
        && (!declare.durable || declare.exclusive || declare.auto_delete)
    {
        return Err(Invalid::new(
            "a stream is durable, and neither exclusive nor deleted by itself",
            "remove what says otherwise",
        )
        .at("declare"));
    }
    Ok(())
}
