//! What these tests share: a broker, a plain client, and an opened connector.

use std::sync::LazyLock;
use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{
    Acknowledger, Chunk, Connector, Credit, Detached, EngineHandle, Message, OpenError, Outcome, Read,
    Reason, Rejection, Settle, Settlement, Source, Ticket, rt,
};
use millstream_rabbitmq::lapin::BasicProperties;
use millstream_rabbitmq::lapin::options::BasicPublishOptions;
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::{
    Dial, RabbitAcknowledger, RabbitConnector, RabbitSource, ReaderSettings, Topology,
};
use parking_lot::Mutex;

pub(crate) use crate::common::{BROKER, Client, start};

/// The same of the newer series.
pub(crate) static BROKER_4: LazyLock<RabbitMq> = LazyLock::new(|| start(Series::V4));

const SOON: Duration = Duration::from_secs(30);

pub(crate) fn settings(broker: &RabbitMq, queue: &str) -> ReaderSettings {
    let dial = Dial::new([broker.url()]).unwrap().name("millstream tests");
    ReaderSettings::new(dial, Topology::new(queue))
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            rt::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// How many messages of the queue wait, how many are underway, and how many consumers it has.
pub(crate) fn counts(broker: &RabbitMq, queue: &str) -> (usize, usize, usize) {
    let expression = format!(
        "{{ok,Q}}=rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>,queue,<<\"{queue}\">>)), \
         [{{_,A}},{{_,B}},{{_,C}}]=rabbit_amqqueue:info(Q,[messages_ready,messages_unacknowledged,consumers]), \
         {{A,B,C}}"
    );
    // Callers at the same time get into each other's way.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let answer = broker.eval(&expression).unwrap();
    let numbers: Vec<_> = answer
        .trim_matches(['{', '}'])
        .split(',')
        .map(|number| number.trim().parse().unwrap())
        .collect();
    (numbers[0], numbers[1], numbers[2])
}

impl Client {
    /// Publishes `0`, `1` and so on, persistent and confirmed.
    pub(crate) async fn publish(&self, queue: &str, messages: std::ops::Range<usize>) {
        self.publish_all(queue, messages.map(|number| number.to_string()))
            .await;
    }

    /// Publishes so many of so many bytes.
    pub(crate) async fn publish_large(&self, queue: &str, messages: usize, bytes: usize) {
        self.publish_all(queue, std::iter::repeat_n("x".repeat(bytes), messages))
            .await;
    }

    async fn publish_all(&self, queue: &str, bodies: impl Iterator<Item = String>) {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let mut confirms = Vec::new();
        for body in bodies {
            let options = BasicPublishOptions::default();
            let publish = self.channel.basic_publish(
                "".into(),
                queue.into(),
                options,
                body.as_bytes(),
                properties.clone(),
            );
            confirms.push(publish.await.unwrap());
        }
        for confirm in confirms {
            confirm.await.unwrap();
        }
    }
}

/// A queue of this name with so many messages, at the broker of all tests.
pub(crate) async fn filled(queue: &str, messages: usize) -> Client {
    let client = Client::of(&BROKER).await;
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..messages).await;
    client
}

/// One opened connector.
pub(crate) struct Reading {
    pub(crate) source: RabbitSource,
    pub(crate) acknowledger: RabbitAcknowledger,
    pub(crate) engine: Detached,
    pub(crate) outcomes: Vec<(Settle, Outcome)>,
}

pub(crate) const PLENTY: Credit = Credit {
    messages: 1_000,
    bytes: 1 << 30,
};

impl Reading {
    pub(crate) async fn try_open(settings: ReaderSettings) -> Result<Self, OpenError> {
        let (handle, engine) = EngineHandle::detached();
        engine.rejects_elsewhere();
        let (source, acknowledger) = RabbitConnector::new(settings).open(handle).await?;
        Ok(Self {
            source,
            acknowledger,
            engine,
            outcomes: Vec::new(),
        })
    }

    pub(crate) async fn open(settings: ReaderSettings) -> Self {
        Self::try_open(settings).await.unwrap()
    }

    /// One read, which must give something soon.
    pub(crate) async fn read(&mut self, credit: Credit) -> Vec<(Ticket, Message)> {
        let mut chunk = Chunk::new();
        let read = tokio::time::timeout(SOON, self.source.read(credit, &mut chunk)).await;
        assert_eq!(read.expect("nothing came").unwrap(), Read::Messages);
        assert!(chunk.len() <= credit.messages);
        chunk.drain().collect()
    }

    /// Reads exactly so many.
    pub(crate) async fn take(&mut self, messages: usize) -> Vec<(Ticket, Message)> {
        let mut taken = Vec::new();
        while taken.len() < messages {
            let credit = Credit {
                messages: messages - taken.len(),
                ..PLENTY
            };
            taken.extend(self.read(credit).await);
        }
        taken
    }

    pub(crate) async fn settle(&mut self, tickets: &[Ticket], settlement: &Settlement) {
        let settles: Vec<_> = tickets
            .iter()
            .map(|&ticket| Settle {
                ticket,
                settlement: settlement.clone(),
            })
            .collect();
        self.acknowledger.settle(&settles, &mut self.outcomes).await;
    }

    pub(crate) async fn flush(&mut self) {
        self.acknowledger.flush(&mut self.outcomes).await;
    }

    /// Settles, flushes, and checks that each was sent.
    pub(crate) async fn settle_now(&mut self, tickets: &[Ticket], settlement: &Settlement) {
        self.settle(tickets, settlement).await;
        self.flush().await;
        assert_eq!(self.outcomes.len(), tickets.len());
        assert!(
            self.outcomes
                .drain(..)
                .all(|(_, outcome)| outcome == Outcome::Sent)
        );
    }

    /// Ends it, giving back what was not read.
    pub(crate) async fn drain(&mut self) {
        self.source.drain();
        loop {
            let mut chunk = Chunk::new();
            let read = tokio::time::timeout(SOON, self.source.read(PLENTY, &mut chunk)).await;
            let read = read.expect("the drain does not end").unwrap();
            let tickets: Vec<_> = chunk.drain().map(|(ticket, _)| ticket).collect();
            if !tickets.is_empty() {
                self.settle_now(&tickets, &Settlement::Release).await;
            }
            if read == Read::Ended {
                return;
            }
        }
    }
}

pub(crate) fn tickets(messages: &[(Ticket, Message)]) -> Vec<Ticket> {
    messages.iter().map(|(ticket, _)| *ticket).collect()
}

/// The number in the payload.
pub(crate) fn number(message: &Message) -> usize {
    std::str::from_utf8(&message.payload).unwrap().parse().unwrap()
}

pub(crate) fn numbers(messages: &[(Ticket, Message)]) -> Vec<usize> {
    messages.iter().map(|(_, message)| number(message)).collect()
}

pub(crate) fn rejected() -> Settlement {
    Settlement::Reject(
        Rejection {
            pipeline: "orders".into(),
            stage: "processor".into(),
            reason: Reason::Rejected,
            error: "never again".to_owned(),
            attempts: 1,
            deliveries: 1,
            origin: "orders@1".to_owned(),
            first_at: std::time::SystemTime::UNIX_EPOCH,
            at: std::time::SystemTime::UNIX_EPOCH,
        }
        .into(),
    )
}
