//! SQS as the rest of the crate calls it: [`Service`].
//!
//! Every batch call answers for each of its entries. Their ids are their places in the call: a message may be in one
//! twice, and ids that are not distinct fail a whole call.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Region, StalledStreamProtectionConfig};
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageSystemAttributeName, QueueAttributeName, SendMessageBatchRequestEntry,
};
use aws_smithy_http_client::Builder as HttpBuilder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use millstream_core::OpenError;
use tokio::sync::OnceCell;

use crate::address::Address;

/// Entries that a batch call takes at most, and messages that a receive gives at most.
pub(crate) const BATCH: usize = 10;
/// Calls that settle under way at a time. What all of 10,000 messages take so is a second where SQS answers within thirty
/// milliseconds; more at once would each end later, and none sooner.
pub(crate) const CALLS: usize = 32;
/// How long an attempt at a call may take that waits for nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than it waits for messages an attempt at a receive may take: an answer that is lost is not awaited
/// for ever.
const GRACE: Duration = Duration::from_secs(5);
/// Where an endpoint is given, its region matters to nobody; the client wants one.
const ANY_REGION: &str = "us-east-1";

/// What came in the way of a call, or of one of its entries.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// What that says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It may help.
    Passing,
    /// The delivery that this was for is nobody's any more.
    Stale,
    /// What was asked for is wrong and stays so.
    Wrong,
    /// Whoever asked may not.
    Denied,
    /// There is no such queue.
    Missing,
}

impl Kind {
    /// Whether it says that the delivery is nobody's any more, and nothing of how the queue is.
    pub(crate) fn is_of_the_delivery(self) -> bool {
        self == Self::Stale
    }

    fn of(code: &str, by_sender: bool) -> Self {
        match code.rsplit('.').next().unwrap_or(code) {
            "ReceiptHandleIsInvalid" | "MessageNotInflight" => Self::Stale,
            "QueueDoesNotExist" | "NonExistentQueue" | "InvalidAddress" => Self::Missing,
            "AccessDenied"
            | "AccessDeniedException"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "SignatureDoesNotMatch"
            | "InvalidSecurity" => Self::Denied,
            "InvalidMessageContents"
            | "InvalidParameterValue"
            | "InvalidAttributeValue"
            | "BatchRequestTooLong"
            | "MessageTooLong"
            | "MissingParameter" => Self::Wrong,
            code if by_sender && !code.contains("Throttl") && code != "OverLimit" => Self::Wrong,
            _ => Self::Passing,
        }
    }
}

impl Trouble {
    fn of_call<E, R>(error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: fmt::Debug + 'static,
    {
        match error {
            SdkError::ServiceError(service) => {
                let code = service.err().code().unwrap_or("no code");
                Self {
                    kind: Kind::of(code, false),
                    text: format!("{code}: {}", service.err().message().unwrap_or("no message")),
                }
            }
            SdkError::TimeoutError(_) => Self::passing("SQS did not answer in time"),
            other => Self::passing(&causes(other)),
        }
    }

    /// The same, said of this.
    pub(crate) fn of(mut self, what: &str) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    fn passing(text: &str) -> Self {
        Self {
            kind: Kind::Passing,
            text: text.to_owned(),
        }
    }
}

/// An error with what it comes from.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

impl From<Trouble> for OpenError {
    fn from(trouble: Trouble) -> Self {
        match trouble.kind {
            Kind::Passing | Kind::Stale => Self::Unavailable(trouble.text),
            Kind::Wrong | Kind::Denied | Kind::Missing => Self::Refused(trouble.text),
        }
    }
}

/// What became of one entry of a batch call.
pub(crate) type Taken = Result<(), Trouble>;

/// A client, as the address, the environment and the files of the AWS SDK's users say.
async fn connect(address: &Address) -> Client {
    let http = HttpBuilder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let asked = ProviderConfig::without_region().with_http_client(http.clone());
    let region = RegionProviderChain::first_try(address.region())
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::builder().configure(&asked).build());
    // A machine outside of AWS has nobody to ask, and waits for an answer all the same.
    let region = match &address.endpoint {
        Some(_) => region.or_else(Region::new(ANY_REGION)),
        None => region.or_else(ImdsRegionProvider::builder().configure(&asked).build()),
    };
    let mut config = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(region)
        .retry_config(RetryConfig::standard())
        .timeout_config(patience(PATIENCE));
    if let Some(endpoint) = &address.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Client::new(&config.load().await)
}

fn patience(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(GRACE)
        .operation_attempt_timeout(attempt)
        .build()
}

/// One queue.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    client: Client,
    pub(crate) url: Arc<str>,
}

/// How to receive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receive<'a> {
    pub(crate) most: usize,
    pub(crate) wait: Duration,
    pub(crate) visibility: Duration,
    /// For FIFO queues: with the same one, a receive whose answer was lost can be repeated.
    pub(crate) attempt: Option<&'a str>,
}

impl Service {
    /// The queue at this address, by the client that is there or made now.
    pub(crate) async fn at(client: &OnceCell<Client>, address: &Address) -> Result<Self, Trouble> {
        let client = client.get_or_init(|| connect(address)).await.clone();
        if let Some(url) = address.url() {
            return Ok(Self {
                client,
                url: url.into(),
            });
        }
        Self::named(client, address.name(), None).await
    }

    async fn named(client: Client, name: &str, account: Option<&str>) -> Result<Self, Trouble> {
        let found = client
            .get_queue_url()
            .queue_name(name)
            .set_queue_owner_aws_account_id(account.map(str::to_owned))
            .send()
            .await
            .map_err(|error| Trouble::of_call(&error))?;
        let url = found
            .queue_url
            .ok_or_else(|| Trouble::passing("a queue without a URL"))?;
        Ok(Self {
            client,
            url: url.into(),
        })
    }

    /// The queue of this ARN, `arn:aws:sqs:REGION:ACCOUNT:NAME`, in the same region.
    pub(crate) async fn sibling(&self, arn: &str) -> Result<Self, Trouble> {
        let mut parts = arn.rsplit(':');
        let (name, account) = (parts.next().unwrap_or_default(), parts.next());
        Self::named(self.client.clone(), name, account).await
    }

    pub(crate) async fn attributes(
        &self,
        names: &[QueueAttributeName],
    ) -> Result<HashMap<QueueAttributeName, String>, Trouble> {
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(&*self.url)
            .set_attribute_names(Some(names.to_vec()))
            .send()
            .await
            .map_err(|error| Trouble::of_call(&error))?;
        Ok(answer.attributes.unwrap_or_default())
    }

    /// Waits for messages; gives none if none came in time.
    ///
    /// # Cancel safety
    /// Not cancel safe: messages of an answer that nobody reads are hidden from everyone.
    pub(crate) async fn receive(&self, how: Receive<'_>) -> Result<Vec<Message>, Trouble> {
        // A receive that waits for messages is a stream that stalls.
        let patient = aws_sdk_sqs::config::Builder::new()
            .timeout_config(patience(how.wait + GRACE))
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let answer = self
            .client
            .receive_message()
            .queue_url(&*self.url)
            .max_number_of_messages(i32::try_from(how.most.clamp(1, BATCH)).unwrap_or(1))
            .wait_time_seconds(whole_seconds(how.wait))
            .visibility_timeout(whole_seconds(how.visibility))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::MessageGroupId)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .message_attribute_names("All")
            .set_receive_request_attempt_id(how.attempt.map(str::to_owned))
            .customize()
            .config_override(patient)
            .send()
            .await
            .map_err(|error| Trouble::of_call(&error))?;
        Ok(answer.messages.unwrap_or_default())
    }

    /// Deletes up to ten deliveries.
    pub(crate) async fn delete(&self, receipts: &[Arc<str>]) -> Vec<Taken> {
        let entries = receipts.iter().enumerate().filter_map(|(index, receipt)| {
            let entry = DeleteMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(&**receipt);
            entry.build().ok()
        });
        let call = self
            .client
            .delete_message_batch()
            .queue_url(&*self.url)
            .set_entries(Some(entries.collect()));
        match call.send().await {
            Ok(answer) => taken(
                receipts.len(),
                answer.successful.iter().map(|entry| entry.id.as_str()),
                &answer.failed,
            ),
            Err(error) => vec![Err(Trouble::of_call(&error)); receipts.len()],
        }
    }

    /// Hides up to ten deliveries from others for so long from now on; for no time, gives them back.
    pub(crate) async fn hide(&self, deliveries: &[(Arc<str>, Duration)]) -> Vec<Taken> {
        let entries = deliveries
            .iter()
            .enumerate()
            .filter_map(|(index, (receipt, time))| {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(index.to_string())
                    .receipt_handle(&**receipt)
                    .visibility_timeout(whole_seconds(*time));
                entry.build().ok()
            });
        let call = self
            .client
            .change_message_visibility_batch()
            .queue_url(&*self.url)
            .set_entries(Some(entries.collect()));
        match call.send().await {
            Ok(answer) => taken(
                deliveries.len(),
                answer.successful.iter().map(|entry| entry.id.as_str()),
                &answer.failed,
            ),
            Err(error) => vec![Err(Trouble::of_call(&error)); deliveries.len()],
        }
    }

    /// Sends up to ten messages, whose ids are their places.
    pub(crate) async fn send(&self, entries: Vec<SendMessageBatchRequestEntry>) -> Vec<Taken> {
        let number = entries.len();
        let call = self
            .client
            .send_message_batch()
            .queue_url(&*self.url)
            .set_entries(Some(entries));
        match call.send().await {
            Ok(answer) => taken(
                number,
                answer.successful.iter().map(|entry| entry.id.as_str()),
                &answer.failed,
            ),
            Err(error) => vec![Err(Trouble::of_call(&error)); number],
        }
    }
}

/// What an answer says of so many entries, in their order.
fn taken<'a>(
    number: usize,
    successful: impl Iterator<Item = &'a str>,
    failed: &[BatchResultErrorEntry],
) -> Vec<Taken> {
    let mut taken = vec![Err(Trouble::passing("SQS did not say what became of it")); number];
    let mut set = |id: &str, result| {
        if let Some(place) = id.parse().ok().and_then(|index: usize| taken.get_mut(index)) {
            *place = result;
        }
    };
    for id in successful {
        set(id, Ok(()));
    }
    for entry in failed {
        let text = format!(
            "{}: {}",
            entry.code,
            entry.message.as_deref().unwrap_or("no message")
        );
        let kind = Kind::of(&entry.code, entry.sender_fault);
        set(&entry.id, Err(Trouble { kind, text }));
    }
    taken
}

/// Seconds, rounded up: SQS counts in no less.
pub(crate) fn whole_seconds(time: Duration) -> i32 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}
