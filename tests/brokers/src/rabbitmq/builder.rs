//! What a broker is to be like: [`Builder`].

use std::time::Duration;

use super::broker::RabbitMq;
use super::series::Series;
use crate::StartError;

/// What a broker is to be like; [`RabbitMq::builder`] makes one.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    pub(super) series: Series,
    pub(super) management: bool,
    pub(super) tls: bool,
    pub(super) consumer_timeout: Option<Duration>,
    pub(super) settings: Vec<(String, String)>,
}

impl Builder {
    pub(super) const fn new(series: Series) -> Self {
        Self {
            series,
            management: false,
            tls: false,
            consumer_timeout: None,
            settings: Vec::new(),
        }
    }

    /// Whether it has the management plugin, its HTTP API at [`RabbitMq::management_url`]; not, unless asked for.
    pub const fn management(mut self, management: bool) -> Self {
        self.management = management;
        self
    }

    /// Whether it listens for TLS too, at [`RabbitMq::tls_url`], with a certificate of an authority of its own; not,
    /// unless asked for.
    pub const fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// For how long a consumer may keep a delivery unacknowledged, instead of half an hour. The broker looks every
    /// second.
    pub const fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.consumer_timeout = Some(timeout);
        self
    }

    /// A line of its `rabbitmq.conf`.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, and returns once it answers.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start(&self) -> Result<RabbitMq, StartError> {
        RabbitMq::start(self)
    }
}
