//! The reading side: [`SqsConnector`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use millstream_core::{
    Capabilities, Connector, EngineHandle, Facts, Finding, Ids, OpenError, SharedLetterBox, rt,
};
use tokio::sync::OnceCell;

use crate::address::Address;
use crate::check::{self, Redrive};
use crate::desk::{Desk, Opening, Pace, Seat};
use crate::heartbeat;
use crate::leases::LONGEST;
use crate::letters::QueueLetters;
use crate::returned::Returned;
use crate::service::{Service, Trouble};
use crate::settling::Settling;
use crate::source::Polling;
use crate::wire;

/// The shortest and the longest wait of a poll that SQS takes.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));
/// The shortest and the longest time for which SQS hides a delivery.
const VISIBILITY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(12 * 3_600));
/// What the queue hides a delivery for where it does not say.
const USUAL_VISIBILITY: Duration = Duration::from_secs(30);

/// Reads a queue of Amazon SQS.
///
/// Any number of processes may read one queue. A queue whose name ends in `.fifo` keeps the order of message groups:
/// a message's key is its group, and while one of a group is out, waits for a retry or is run elsewhere, nothing that
/// follows it is handed out.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use std::time::Duration;
/// use millstream_sqs::SqsConnector;
///
/// let orders = SqsConnector::new("orders").region("eu-west-1").pollers(4);
/// let local = SqsConnector::new("orders").endpoint_url("http://127.0.0.1:9324");
/// ```
#[derive(Clone, Debug)]
pub struct SqsConnector {
    address: Address,
    wait: Duration,
    pollers: usize,
    visibility: Option<Duration>,
    heartbeat: Option<Duration>,
    ordered: bool,
    client: Arc<OnceCell<Client>>,
    returned: Arc<Returned>,
    sequences: Arc<AtomicU64>,
}

impl SqsConnector {
    /// Reads the queue of this name or URL.
    ///
    /// Credentials come from where the AWS SDK looks for them: the environment, its files, a container's or an
    /// instance's role. So do region and endpoint, unless they are said here; the region is also in a queue's URL.
    pub fn new(queue: &str) -> Self {
        Self {
            address: Address::new(queue),
            wait: Duration::from_secs(5),
            pollers: 8,
            visibility: None,
            heartbeat: None,
            ordered: true,
            client: Arc::default(),
            returned: Arc::default(),
            sequences: Arc::default(),
        }
    }

    /// The region that the queue is in.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        self.address.set_region(region);
        self
    }

    /// Calls SQS with this client, made by the application's own rules: then what else is said here of where the queue
    /// is, and of who asks, says nothing.
    #[must_use]
    pub fn client(mut self, client: Client) -> Self {
        self.client = Arc::new(OnceCell::new_with(Some(client)));
        self
    }

    /// Where SQS is, for what is not Amazon's own.
    #[must_use]
    pub fn endpoint_url(mut self, url: &str) -> Self {
        self.address.set_endpoint(url);
        self
    }

    /// How long a poll waits for messages: from 1 to 20 seconds, 5 unless said.
    ///
    /// Longer ones cost fewer calls while the queue is empty, one per wait. A drain waits for the one that is under
    /// way, because what SQS has sent to a poll that was broken off is hidden from everyone for a while.
    #[must_use]
    pub fn wait_time(mut self, wait: Duration) -> Self {
        self.wait = wait.clamp(WAIT.0, WAIT.1);
        self
    }

    /// How many polls there are at a time at most, 8 unless said. Each brings up to ten messages. There is one while
    /// the queue is empty.
    #[must_use]
    pub fn pollers(mut self, pollers: usize) -> Self {
        self.pollers = pollers.max(1);
        self
    }

    /// For how long a delivery is hidden from others unless that is put off: after a crash, that is how long it takes
    /// to come again. What the queue says, unless it is said here; from a second to twelve hours.
    #[must_use]
    pub fn visibility_timeout(mut self, visibility: Duration) -> Self {
        self.visibility = Some(visibility.clamp(VISIBILITY.0, VISIBILITY.1));
        self
    }

    /// How often that is put off while a message is queued or runs, however long it takes, up to the twelve hours that
    /// SQS allows. A third of the visibility timeout unless said, and half of it at most.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }

    /// Whether a pipeline that keeps an order keeps that of the messages' own keys, as a FIFO queue does; yes unless
    /// said.
    #[must_use]
    pub fn ordered(mut self, ordered: bool) -> Self {
        self.ordered = ordered;
        self
    }

    fn pace(&self, attributes: &HashMap<Attribute, String>) -> Pace {
        let of_queue = attributes
            .get(&Attribute::VisibilityTimeout)
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs);
        let visibility = self
            .visibility
            .or(of_queue)
            .unwrap_or(USUAL_VISIBILITY)
            .clamp(VISIBILITY.0, VISIBILITY.1);
        Pace {
            wait: self.wait,
            pollers: self.pollers,
            visibility,
            heartbeat: self.heartbeat.unwrap_or(visibility / 3).min(visibility / 2),
        }
    }

    /// The dead-letter queue of the redrive policy, if there is one and it can be had; it must be, where that is where
    /// what is given up is kept.
    async fn dead(
        &self,
        service: &Service,
        redrive: Option<Redrive>,
        must: bool,
    ) -> Result<Option<Service>, OpenError> {
        let Some(Redrive { target, .. }) = redrive else {
            if !must {
                return Ok(None);
            }
            return Err(OpenError::Refused(format!(
                "{} has no redrive policy, so nothing would keep what is given up: set one, or add \
                 [pipelines.NAME.dead_letter], or write dead_letter = \"discard\"",
                self.address
            )));
        };
        match service.sibling(&target).await {
            Ok(dead) => Ok(Some(dead)),
            Err(trouble) if must => Err(trouble.of(&format!("the dead-letter queue {target}")).into()),
            Err(_) => Ok(None),
        }
    }

    /// The queue, and what it says of itself.
    async fn queue(&self) -> Result<(Service, HashMap<Attribute, String>), Trouble> {
        let service = Service::at(&self.client, &self.address).await?;
        let attributes = service
            .attributes(&[Attribute::VisibilityTimeout, Attribute::RedrivePolicy])
            .await?;
        Ok((service, attributes))
    }
}

impl Connector for SqsConnector {
    type Source = Polling;
    type Acknowledger = Settling;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: true,
            keeps_rejected: true,
            counts_deliveries: true,
            longest_delay: Some(LONGEST),
            orders_keys: self.address.is_fifo() && self.ordered,
            ids: Ids::Header(wire::MESSAGE_ID),
            leases_singly: true,
            ..Capabilities::default()
        }
    }

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(Arc::new(QueueLetters {
            address: self.address.clone(),
            client: Arc::clone(&self.client),
            redriven: true,
        }))
    }

    async fn open(&self, engine: EngineHandle) -> Result<(Polling, Settling), OpenError> {
        let (service, attributes) = self
            .queue()
            .await
            .map_err(|trouble| trouble.of(&self.address.to_string()))?;
        let redrive = Redrive::of(&attributes);
        let dead = self.dead(&service, redrive, engine.rejects_to_source()).await?;
        let desk = Desk::new(Opening {
            service,
            dead,
            pace: self.pace(&attributes),
            fifo: self.address.is_fifo(),
            origin: engine.origin(self.address.name()),
            engine,
            returned: Arc::clone(&self.returned),
            sequences: Arc::clone(&self.sequences),
        });
        // Both end with the desk.
        drop(rt::spawn(heartbeat::run(Arc::clone(&desk))));
        drop(rt::spawn(heartbeat::watch(Arc::clone(&desk))));
        let seat = Arc::new(Seat(Arc::clone(&desk)));
        let source = Polling {
            desk: Arc::clone(&desk),
            _seat: Arc::clone(&seat),
        };
        Ok((source, Settling::new(desk, seat)))
    }

    async fn check(&self, facts: &Facts<'_>) -> Vec<Finding> {
        match self.queue().await {
            Ok((service, attributes)) => {
                let visibility = self.pace(&attributes).visibility;
                check::source(&self.address, &service, &attributes, visibility, facts).await
            }
            Err(trouble) => vec![check::missing(
                trouble,
                &self.address.to_string(),
                self.address.key(),
            )],
        }
    }
}
