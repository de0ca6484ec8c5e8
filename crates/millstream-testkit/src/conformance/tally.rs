//! What has arrived, counted by payload: [`Tally`].

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_core::Outgoing;
use parking_lot::Mutex;

use super::trial::until;

/// How often each payload has arrived. Every clone counts the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<Bytes, usize>>>);

impl Tally {
    pub(crate) fn add(&self, payload: &Bytes) {
        *self.0.lock().entry(payload.clone()).or_default() += 1;
    }

    /// How many different payloads have arrived.
    pub(crate) fn distinct(&self) -> usize {
        self.0.lock().len()
    }

    /// How many have arrived, each as often as it has.
    pub(crate) fn total(&self) -> usize {
        self.0.lock().values().sum()
    }

    /// Waits until so many different payloads have arrived.
    pub(crate) async fn reaches(&self, distinct: usize) {
        until("all messages", || self.distinct() >= distinct).await;
    }

    /// P1: all of these arrived, and nothing else did.
    pub(crate) fn assert_all(&self, sent: &[Outgoing]) {
        let arrived = self.0.lock();
        let lost = sent
            .iter()
            .filter(|message| !arrived.contains_key(&message.payload));
        let lost = lost.count();
        assert_eq!(lost, 0, "{lost} of {} messages were lost", sent.len());
        assert_eq!(
            arrived.len(),
            sent.len(),
            "messages arrived that were never sent here"
        );
    }

    /// All of these arrived, and each but once.
    pub(crate) fn assert_once(&self, sent: &[Outgoing]) {
        self.assert_all(sent);
        let twice = self.0.lock().values().filter(|times| **times > 1).count();
        assert_eq!(
            twice, 0,
            "{twice} messages came again though they were acknowledged"
        );
    }

    /// Whether this one has arrived.
    pub(crate) fn has(&self, message: &Outgoing) -> bool {
        self.0.lock().contains_key(&message.payload)
    }
}
