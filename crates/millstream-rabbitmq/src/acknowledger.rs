//! The settling side: [`RabbitAcknowledger`].

use std::fmt;
use std::sync::Arc;

use millstream_core::{Acknowledger, Outcome, Settle};

use crate::inbox::{Inbox, Presence};
use crate::progress::Progress;
use crate::settings::OnFailure;

/// The acknowledger of a [`RabbitConnector`](crate::RabbitConnector).
///
/// Acks go out as cumulative ones wherever that is possible. A settlement for a delivery whose channel is gone is
/// stale: the broker hands the message out again.
///
/// Of a stream's deliveries all are good until the source is dropped, whichever channel they came from. During a drain
/// a settlement is answered for once the position that it led to is stored.
pub struct RabbitAcknowledger {
    presence: Arc<Presence>,
    on_failure: OnFailure,
    /// Settled in a stream, and not answered for.
    unstored: Vec<Settle>,
}

impl RabbitAcknowledger {
    pub(crate) fn new(presence: Arc<Presence>, on_failure: OnFailure) -> Self {
        Self {
            presence,
            on_failure,
            unstored: Vec::new(),
        }
    }

    fn inbox(&self) -> &Inbox {
        self.presence.inbox()
    }

    async fn settle_offsets(
        presence: &Presence,
        progress: &Progress,
        unstored: &mut Vec<Settle>,
        settlements: &[Settle],
        outcomes: &mut Vec<(Settle, Outcome)>,
    ) {
        let waits = presence.inbox().is_draining();
        progress.settle(settlements, |settle, outcome| {
            if waits && outcome == Outcome::Sent {
                unstored.push(settle.clone());
            } else {
                outcomes.push((settle.clone(), outcome));
            }
        });
        for tags in presence.inbox().channels() {
            tags.credit(settlements.iter().map(|settle| settle.ticket)).await;
        }
    }
}

impl Acknowledger for RabbitAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        if let Some(progress) = self.presence.inbox().progress() {
            let unstored = &mut self.unstored;
            return Self::settle_offsets(&self.presence, progress, unstored, settlements, outcomes).await;
        }
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
        if let Some(progress) = self.presence.inbox().progress() {
            if !self.unstored.is_empty() && progress.store().await {
                outcomes.extend(self.unstored.drain(..).map(|settle| (settle, Outcome::Sent)));
            }
            return;
        }
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
