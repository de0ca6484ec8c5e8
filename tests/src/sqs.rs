//! SQS as tests call it, past the connector.

use millstream_sqs::aws_sdk_sqs::Client;
use millstream_sqs::aws_sdk_sqs::config::retry::RetryConfig;
use millstream_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};

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
