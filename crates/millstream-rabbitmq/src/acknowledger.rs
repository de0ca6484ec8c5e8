//! The settling side: [`RabbitAcknowledger`].

use std::fmt;
use std::sync::Arc;

use millstream_core::{Acknowledger, Outcome, Settle};

use crate::inbox::{Inbox, Presence};
use crate::settings::OnFailure;

/// The acknowledger of a [`RabbitConnector`](crate::RabbitConnector).
///
/// Acks go out as cumulative ones wherever that is possible. A settlement for a delivery whose channel is gone is
/// stale: the broker hands the message out again.
pub struct RabbitAcknowledger {
    presence: Arc<Presence>,
    on_failure: OnFailure,
}

impl RabbitAcknowledger {
    pub(crate) fn new(presence: Arc<Presence>, on_failure: OnFailure) -> Self {
        Self { presence, on_failure }
    }

    fn inbox(&self) -> &Inbox {
        self.presence.inbox()
    }
}

impl Acknowledger for RabbitAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        let channels = self.inbox().channels();
        for gone in self.inbox().take_closed() {
            gone.flush(outcomes).await;
        }
        for tags in &channels {
            tags.settle(settlements, self.on_failure, outcomes).await;
        }
        let known = |settle: &&Settle| {
            channels
                .iter()
                .any(|tags| tags.generation() == settle.ticket.generation)
        };
        outcomes.extend(
            settlements
                .iter()
                .filter(|settle| !known(settle))
                .map(|settle| (settle.clone(), Outcome::Stale)),
        );
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        for tags in self.inbox().take_closed().iter().chain(&self.inbox().channels()) {
            tags.flush(outcomes).await;
        }
    }
}

impl fmt::Debug for RabbitAcknowledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RabbitAcknowledger")
    }
}
