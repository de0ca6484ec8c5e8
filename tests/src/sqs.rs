//! SQS as tests call it, past the connector.

use millstream_sqs::aws_sdk_sqs::Client;
use millstream_sqs::aws_sdk_sqs::config::retry::RetryConfig;
use millstream_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use millstream_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;

/// A client of the broker at this endpoint, which takes any credentials.
#[must_use]
pub fn client(endpoint: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("elasticmq"))
        .credentials_provider(Credentials::new("x", "x", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::standard())
        .endpoint_url(endpoint);
    Client::from_conf(config.build())
}

/// How many messages of the queue with this URL wait, and how many are out.
///
/// # Panics
/// If the broker does not say.
pub async fn counts(client: &Client, queue: &str) -> (usize, usize) {
    let names = [
        Attribute::ApproximateNumberOfMessages,
        Attribute::ApproximateNumberOfMessagesNotVisible,
    ];
    let ask = client.get_queue_attributes().queue_url(queue);
    let answer = ask.set_attribute_names(Some(names.to_vec())).send().await;
    let attributes = answer
        .ok()
        .and_then(|answer| answer.attributes)
        .unwrap_or_default();
    let [waiting, out] = names.map(|name| {
        let count = attributes.get(&name).and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("the broker does not say {name} of {queue}"))
    });
    (waiting, out)
}
