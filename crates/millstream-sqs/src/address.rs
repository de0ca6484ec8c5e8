//! Where a queue is: [`Address`].

use std::fmt;

use aws_sdk_sqs::config::Region;

/// A queue by its URL or its name, and where SQS is, as far as it is said here and not by the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    queue: String,
    region: Option<String>,
    pub(crate) endpoint: Option<String>,
}

impl Address {
    /// What contains `://` is a URL, as no name can.
    pub(crate) fn new(queue: &str) -> Self {
        Self {
            queue: queue.to_owned(),
            region: None,
            endpoint: None,
        }
    }

    pub(crate) fn set_region(&mut self, region: &str) {
        self.region = Some(region.to_owned());
    }

    pub(crate) fn set_endpoint(&mut self, url: &str) {
        self.endpoint = Some(url.to_owned());
    }

    /// Its URL, if that is what it was given by.
    pub(crate) fn url(&self) -> Option<&str> {
        self.queue.contains("://").then_some(&*self.queue)
    }

    /// The setting that names it.
    pub(crate) fn key(&self) -> &'static str {
        if self.url().is_some() {
            "queue_url"
        } else {
            "queue"
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.queue.rsplit('/').next().unwrap_or(&self.queue)
    }

    /// Whether it keeps the order of groups. SQS takes no other queue of such a name, and no such queue of another.
    pub(crate) fn is_fifo(&self) -> bool {
        self.name().ends_with(".fifo")
    }

    /// The region that was said, or that is in the URL of the queue.
    pub(crate) fn region(&self) -> Option<Region> {
        let in_url = || {
            let host = self.url()?.split("://").nth(1)?.split('/').next()?;
            let mut labels = host.split('.');
            let region = (labels.next() == Some("sqs")).then(|| labels.next())??;
            (labels.next() == Some("amazonaws")).then(|| region.to_owned())
        };
        self.region.clone().or_else(in_url).map(Region::new)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the queue {}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_goes_by_its_url_or_by_its_name() {
        let by_name = Address::new("orders.fifo");
        assert_eq!(
            (by_name.url(), by_name.name(), by_name.is_fifo()),
            (None, "orders.fifo", true)
        );
        let url = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders";
        let by_url = Address::new(url);
        assert_eq!(
            (by_url.url(), by_url.name(), by_url.is_fifo()),
            (Some(url), "orders", false)
        );
    }

    #[test]
    fn the_region_is_what_was_said_or_what_the_url_says() {
        let region = |address: &Address| address.region().map(|region| region.as_ref().to_owned());
        let mut address = Address::new("https://sqs.eu-west-1.amazonaws.com/123456789012/orders");
        assert_eq!(region(&address).as_deref(), Some("eu-west-1"));
        address.set_region("us-east-2");
        assert_eq!(region(&address).as_deref(), Some("us-east-2"));
        assert_eq!(
            region(&Address::new("http://127.0.0.1:9324/000000000000/orders")),
            None
        );
        assert_eq!(region(&Address::new("orders")), None);
    }
}
