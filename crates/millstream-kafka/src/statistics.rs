//! What librdkafka's statistics tell the engine: how much waits, and how far behind each partition is.

use millstream_core::EngineHandle;
use rdkafka::Offset;
use rdkafka::statistics::Statistics;

use crate::shared::{Place, Shared};

/// What the statistics say of the end of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// One past its last message.
    high: u64,
    /// Where fetching goes on, once nothing that was fetched waits to be read: there may be no message between the last
    /// one read and this.
    next: Option<u64>,
}

impl End {
    /// How many messages there are from `mark` on, the first offset that is not settled. `idle` says that everything
    /// which was read is settled.
    pub(crate) fn lag(self, mark: Option<u64>, idle: bool) -> Option<u64> {
        let next = self.next.filter(|_| idle);
        // Where nothing was ever committed and nothing was read, fetching begins with the first there is.
        let from = mark.max(next)?;
        Some(self.high.saturating_sub(from))
    }
}

/// Takes note of them, and tells the engine.
pub(crate) fn tell(engine: &EngineHandle, shared: &Shared, statistics: &Statistics) {
    engine.depth(depth(statistics, &shared.positions()) + shared.ahead() as u64);
    for (topic, partitions) in &statistics.topics {
        for partition in partitions.partitions.values() {
            // Negative where it is not known yet.
            let Ok(high) = u64::try_from(partition.hi_offset) else {
                continue;
            };
            let next = (partition.fetchq_cnt == 0).then_some(partition.next_offset);
            let next = next.and_then(|next| u64::try_from(next).ok());
            shared.learn(topic, partition.partition, End { high, next });
        }
    }
    engine.partitions(shared.partitions());
}

/// How many messages wait in the partitions that are fetched from, and were not read.
fn depth(statistics: &Statistics, positions: &[(Place, Option<Offset>)]) -> u64 {
    let waiting = |(place, position): &(Place, Option<Offset>)| {
        let topic = statistics.topics.get(&*place.topic)?;
        let partition = topic.partitions.get(&place.partition)?;
        let next = match position {
            Some(Offset::Offset(next)) => *next,
            // Nothing was read, and this is where fetching began.
            _ => partition.app_offset,
        };
        let active = next >= 0 && partition.fetch_state == "active";
        u64::try_from(partition.ls_offset - next).ok().filter(|_| active)
    };
    positions.iter().filter_map(waiting).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_counted_from_the_first_unsettled_message_on() {
        let end = End {
            high: 10,
            next: Some(8),
        };
        // Some that were read are not settled, however far fetching is.
        assert_eq!(end.lag(Some(3), false), Some(7));
        // The last that was read is followed by what is no message, such as the marker of a transaction.
        assert_eq!(end.lag(Some(7), true), Some(2));
        assert_eq!(end.lag(Some(12), true), Some(0));
    }

    #[test]
    fn lag_is_not_known_before_it_is_known_where_the_group_begins() {
        let end = |next| End { high: 10, next };
        assert_eq!(end(None).lag(None, true), None);
        assert_eq!(end(Some(4)).lag(None, true), Some(6));
    }
}
