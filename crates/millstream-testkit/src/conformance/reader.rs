//! An opened connector without an engine: [`Reader`].

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use millstream_core::rt::{self, Duration};
use millstream_core::{
    Chunk, Credit, Detached, DynAcknowledger, DynSource, EngineHandle, Message, OpenError, Outcome, Read,
    Reason, Rejection, Settle, Settlement, SharedConnector, Ticket,
};

use super::trial::{A_WHILE, SOON, soon};

pub(crate) type Delivery = (Ticket, Message);

/// Credit for so many messages, of whatever size.
pub(crate) const fn messages(messages: usize) -> Credit {
    Credit {
        messages,
        bytes: usize::MAX,
    }
}

/// Both sides of an opened connector, and what they told the engine.
pub(crate) struct Reader {
    source: Box<dyn DynSource>,
    acknowledger: Box<dyn DynAcknowledger>,
    pub(crate) told: Detached,
}

impl Reader {
    /// Opens it, again and again while the broker cannot be reached.
    pub(crate) async fn open(connector: &SharedConnector) -> Self {
        soon("the connector to open", async {
            loop {
                let (engine, told) = EngineHandle::detached();
                match connector.open(engine).await {
                    Ok((source, acknowledger)) => {
                        return Self {
                            source,
                            acknowledger,
                            told,
                        };
                    }
                    Err(OpenError::Refused(why)) => panic!("the connector refused to open: {why}"),
                    Err(OpenError::Unavailable(_)) => rt::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    /// One read; empty if nothing came within this time.
    pub(crate) async fn read_within(&mut self, time: Duration, credit: Credit) -> Vec<Delivery> {
        let mut chunk = Chunk::new();
        match tokio::time::timeout(time, self.source.read(credit, &mut chunk)).await {
            Ok(Ok(Read::Messages)) => assert!(!chunk.is_empty(), "a read ended with messages, and gave none"),
            Ok(Ok(Read::Ended)) => panic!("the source ended, and nobody had drained it"),
            Ok(Err(error)) => panic!("the source died: {error}"),
            Err(_) => {}
        }
        assert!(
            chunk.len() <= credit.messages,
            "P4: {} messages came on credit for {}",
            chunk.len(),
            credit.messages
        );
        chunk.drain().collect()
    }

    /// One read.
    pub(crate) async fn read(&mut self, credit: Credit) -> Vec<Delivery> {
        let read = self.read_within(SOON, credit).await;
        assert!(!read.is_empty(), "waited a minute for a message, in vain");
        read
    }

    /// Reads until there are so many.
    pub(crate) async fn collect(&mut self, number: usize) -> Vec<Delivery> {
        let mut all = Vec::new();
        while all.len() < number {
            all.extend(self.read(messages(number - all.len())).await);
        }
        all
    }

    pub(crate) async fn one(&mut self) -> Delivery {
        self.collect(1).await.remove(0)
    }

    /// Believes, after a while, that nothing comes.
    pub(crate) async fn assert_nothing(&mut self, why: &str) {
        let came = payloads(&self.read_within(A_WHILE, messages(100)).await);
        assert!(came.is_empty(), "{why}, and there came {came:?}");
    }

    /// Settles these, sees what was kept back sent, and gives the outcomes in the order of the settlements.
    pub(crate) async fn settle_all(&mut self, settlements: &[Settle]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        soon("the settlements", async {
            self.acknowledger.settle(settlements, &mut outcomes).await;
            loop {
                let before = outcomes.len();
                self.acknowledger.flush(&mut outcomes).await;
                if outcomes.len() == before || outcomes.len() >= settlements.len() {
                    break;
                }
            }
        })
        .await;
        assert_eq!(
            outcomes.len(),
            settlements.len(),
            "P2: one outcome for each settlement"
        );
        settlements
            .iter()
            .map(|settle| {
                outcomes
                    .iter()
                    .find_map(|(of, outcome)| (of == settle).then_some(*outcome))
                    .unwrap_or_else(|| panic!("P2: {settle:?} has no outcome"))
            })
            .collect()
    }

    pub(crate) async fn settle(&mut self, ticket: Ticket, settlement: Settlement) -> Outcome {
        self.settle_all(&[Settle { ticket, settlement }]).await.remove(0)
    }

    /// Settles all of these alike; the broker takes it.
    pub(crate) async fn send(&mut self, deliveries: &[Delivery], settlement: &Settlement) {
        let settlements: Vec<_> = deliveries
            .iter()
            .map(|(ticket, _)| Settle {
                ticket: *ticket,
                settlement: settlement.clone(),
            })
            .collect();
        let outcomes = self.settle_all(&settlements).await;
        assert!(
            outcomes.iter().all(|outcome| *outcome == Outcome::Sent),
            "{settlement:?} came to {outcomes:?}"
        );
    }

    pub(crate) async fn ack(&mut self, deliveries: &[Delivery]) {
        self.send(deliveries, &Settlement::Ack).await;
    }

    pub(crate) async fn release(&mut self, deliveries: &[Delivery]) {
        self.send(deliveries, &Settlement::Release).await;
    }

    /// Drains the source to its end; what it still gave goes back.
    pub(crate) async fn end(mut self) {
        self.source.drain();
        soon("the source to end", async {
            loop {
                let mut chunk = Chunk::new();
                let read = self.source.read(messages(usize::MAX), &mut chunk).await;
                let rest: Vec<_> = chunk.drain().collect();
                self.release(&rest).await;
                if read.expect("a drained source ends without an error") == Read::Ended {
                    return;
                }
            }
        })
        .await;
    }
}

pub(crate) fn payloads(deliveries: &[Delivery]) -> Vec<Bytes> {
    deliveries
        .iter()
        .map(|(_, message)| message.payload.clone())
        .collect()
}

/// A rejection with this error.
pub(crate) fn rejection(error: &str) -> Settlement {
    Settlement::Reject(Arc::new(Rejection {
        pipeline: "conformance".into(),
        stage: "processor".into(),
        reason: Reason::Rejected,
        error: error.to_owned(),
        attempts: 1,
        deliveries: 1,
        origin: "conformance@1".to_owned(),
        first_at: SystemTime::now(),
        at: SystemTime::now(),
    }))
}
