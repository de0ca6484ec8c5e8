//! Which assignment a message came with: [`Whence`].

use crate::copies::Assigned;
use crate::fetched::Given;
use crate::member::Callbacks;

/// Knows where a message came from last: most come from the same partition as the one before.
#[derive(Debug, Default)]
pub(crate) struct Whence(Option<Last>);

/// A partition, and what it was assigned as when there had been so many rebalances.
#[derive(Debug)]
struct Last {
    /// Where librdkafka keeps its topic. To read its name from there for each message costs more than to look it up.
    topic: usize,
    partition: i32,
    rebalances: u64,
    from: Assigned,
}

impl Whence {
    /// Where this one comes from, if that is still assigned.
    pub(crate) fn of(&mut self, callbacks: &Callbacks, message: &Given<'_>) -> Option<Assigned> {
        let (topic, partition) = (message.topic_at(), message.partition());
        let rebalances = callbacks.shared.rebalances();
        if let Some(last) = &self.0
            && (last.topic, last.partition, last.rebalances) == (topic, partition, rebalances)
        {
            return Some(last.from);
        }
        let place = message.place();
        let origin = callbacks.origin(&place);
        let from = Assigned {
            origin,
            assignment: callbacks.shared.assigned(origin)?,
            wait: callbacks.tiers.wait(&place.topic),
        };
        self.0 = Some(Last {
            topic,
            partition,
            rebalances,
            from,
        });
        Some(from)
    }
}
