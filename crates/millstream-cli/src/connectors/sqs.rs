//! `type = "sqs"`: queues of Amazon SQS.

use std::sync::Arc;
use std::time::Duration;

use millstream_config::{Invalid, PositiveDuration, SinkContext, SinkKind, SourceContext, SourceKind};
use millstream_core::{SharedConnector, SharedSinkConnector};
use millstream_sqs::{SqsConnector, SqsSink};
use schemars::JsonSchema;
use serde::Deserialize;

/// Queues of Amazon SQS.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqsKind;

/// A queue of Amazon SQS. Credentials come from where the AWS SDK looks for them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqsSettings {
    /// The queue's URL. Either this or `queue`.
    pub queue_url: Option<String>,
    /// The queue's name, in the account that the credentials are of.
    pub queue: Option<String>,
    /// The region. Absent: that of the URL, or what the AWS SDK finds in the environment or its files.
    pub region: Option<String>,
    /// Where SQS is, for what is not Amazon's own.
    pub endpoint_url: Option<String>,
    /// How long a poll waits for messages, 1s to 20s. A drain waits for the last one.
    #[serde(default = "wait_time")]
    pub wait_time: PositiveDuration,
    /// For how long a delivery is hidden from others, in whole seconds, unless that is put off. Absent: what the queue
    /// says.
    pub visibility_timeout: Option<PositiveDuration>,
    /// How often that is put off while a message is queued or runs. Absent: a third of it.
    pub heartbeat: Option<PositiveDuration>,
    /// Polls at a time at most; each brings up to ten messages.
    #[serde(default = "pollers")]
    pub pollers: usize,
}

/// A queue of Amazon SQS. A message is confirmed once SQS has it. Credentials come from where the AWS SDK looks for
/// them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqsSinkSettings {
    /// The queue's URL. Either this or `queue`.
    pub queue_url: Option<String>,
    /// The queue's name, in the account that the credentials are of.
    pub queue: Option<String>,
    /// The region. Absent: that of the URL, or what the AWS SDK finds in the environment or its files.
    pub region: Option<String>,
    /// Where SQS is, for what is not Amazon's own.
    pub endpoint_url: Option<String>,
}

fn wait_time() -> PositiveDuration {
    PositiveDuration::from_millis(5_000)
}

fn pollers() -> usize {
    8
}

/// The one that is said of a queue's URL and name.
fn queue<'a>(url: Option<&'a str>, name: Option<&'a str>) -> Result<&'a str, Invalid> {
    match (url, name) {
        (Some(url), None) if url.starts_with("https://") || url.starts_with("http://") => Ok(url),
        (Some(_), None) => Err(Invalid::new(
            "`queue_url` is no URL",
            "write it as SQS gives it, https://…, or name the queue with `queue`",
        )
        .at("queue_url")),
        (None, Some(name)) if is_name(name) => Ok(name),
        (None, Some(_)) => Err(Invalid::new(
            "`queue` is no name of a queue",
            "a name has up to 80 letters, digits, hyphens and underscores, and ends in .fifo for a FIFO queue; a URL \
             goes to `queue_url`",
        )
        .at("queue")),
        (Some(_), Some(_)) => {
            Err(Invalid::new("`queue_url` and `queue` both name the queue", "remove one of them").at("queue"))
        }
        (None, None) => Err(Invalid::new(
            "neither `queue_url` nor `queue` is there",
            "name the queue by one of them",
        )),
    }
}

fn is_name(name: &str) -> bool {
    let bare = name.strip_suffix(".fifo").unwrap_or(name);
    !bare.is_empty()
        && name.len() <= 80
        && bare
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn between(key: &str, value: PositiveDuration, least: u64, most: u64) -> Result<Duration, Invalid> {
    let value = value.get();
    if value < Duration::from_secs(least) || value > Duration::from_secs(most) {
        return Err(Invalid::new(
            format!("`{key}` is out of bounds"),
            format!("SQS takes \"{least}s\" to \"{most}s\""),
        )
        .at(key));
    }
    if value.subsec_nanos() > 0 {
        return Err(Invalid::new(
            format!("`{key}` has a part of a second"),
            "SQS counts in whole ones",
        )
        .at(key));
    }
    Ok(value)
}

fn sink(
    url: Option<&str>,
    name: Option<&str>,
    region: Option<&str>,
    endpoint: Option<&str>,
) -> Result<SharedSinkConnector, Invalid> {
    let mut sink = SqsSink::new(queue(url, name)?);
    if let Some(region) = region {
        sink = sink.region(region);
    }
    if let Some(endpoint) = endpoint {
        sink = sink.endpoint_url(endpoint);
    }
    Ok(Arc::new(sink))
}

impl SourceKind for SqsKind {
    type Settings = SqsSettings;

    fn source(&self, settings: &SqsSettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        let queue = queue(settings.queue_url.as_deref(), settings.queue.as_deref())?;
        if settings.pollers == 0 {
            return Err(Invalid::new("`pollers` is zero", "write 1 or more").at("pollers"));
        }
        let mut connector = SqsConnector::new(queue)
            .wait_time(between("wait_time", settings.wait_time, 1, 20)?)
            .pollers(settings.pollers)
            .ordered(cx.ordered);
        if let Some(region) = &settings.region {
            connector = connector.region(region);
        }
        if let Some(endpoint) = &settings.endpoint_url {
            connector = connector.endpoint_url(endpoint);
        }
        if let Some(visibility) = settings.visibility_timeout {
            connector = connector.visibility_timeout(between("visibility_timeout", visibility, 1, 43_200)?);
        }
        if let Some(heartbeat) = settings.heartbeat {
            let heartbeat = heartbeat.get();
            if let Some(visibility) = settings.visibility_timeout
                && heartbeat > visibility.get() / 2
            {
                return Err(Invalid::new(
                    "`heartbeat` is more than half of `visibility_timeout`",
                    "leave it time for a second try, or remove it: a third is usual",
                )
                .at("heartbeat"));
            }
            connector = connector.heartbeat(heartbeat);
        }
        Ok(Arc::new(connector))
    }

    fn publish(
        &self,
        settings: &SqsSettings,
        _: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        let SqsSettings {
            queue_url,
            queue,
            region,
            endpoint_url,
            ..
        } = settings;
        sink(
            queue_url.as_deref(),
            queue.as_deref(),
            region.as_deref(),
            endpoint_url.as_deref(),
        )
        .map(Some)
    }
}

impl SinkKind for SqsKind {
    type Settings = SqsSinkSettings;

    fn sink(&self, settings: &SqsSinkSettings, _: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid> {
        let SqsSinkSettings {
            queue_url,
            queue,
            region,
            endpoint_url,
        } = settings;
        sink(
            queue_url.as_deref(),
            queue.as_deref(),
            region.as_deref(),
            endpoint_url.as_deref(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> SqsSettings {
        SqsSettings {
            queue_url: None,
            queue: Some("orders".to_owned()),
            region: None,
            endpoint_url: None,
            wait_time: wait_time(),
            visibility_timeout: None,
            heartbeat: None,
            pollers: pollers(),
        }
    }

    fn refusal(change: impl FnOnce(&mut SqsSettings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        let made = SqsKind.source(&settings, &SourceContext::new("orders"));
        made.map(drop).unwrap_err().message().to_owned()
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused_with_the_key_at_fault() {
        SqsKind
            .source(&settings(), &SourceContext::new("orders"))
            .unwrap();
        let url = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders";
        assert!(refusal(|settings| settings.queue_url = Some(url.to_owned())).contains("both"));
        assert!(refusal(|settings| settings.queue = None).contains("neither"));
        assert!(refusal(|settings| settings.queue = Some(url.to_owned())).contains("no name"));
        assert!(refusal(|settings| settings.pollers = 0).contains("pollers"));
        let millis = PositiveDuration::from_millis;
        assert!(refusal(|settings| settings.wait_time = millis(21_000)).contains("wait_time"));
        assert!(refusal(|settings| settings.wait_time = millis(1_500)).contains("part of a second"));
        let heartbeat = |settings: &mut SqsSettings| {
            settings.visibility_timeout = Some(millis(30_000));
            settings.heartbeat = Some(millis(16_000));
        };
        assert!(refusal(heartbeat).contains("heartbeat"));
    }

    #[test]
    fn a_fifo_queue_keeps_the_order_of_keys_and_of_nothing_else() {
        let mut settings = settings();
        settings.queue = Some("orders.fifo".to_owned());
        let mut cx = SourceContext::new("orders");
        assert!(!SqsKind.source(&settings, &cx).unwrap().capabilities().orders_keys);
        cx.ordered = true;
        assert!(SqsKind.source(&settings, &cx).unwrap().capabilities().orders_keys);
    }
}
