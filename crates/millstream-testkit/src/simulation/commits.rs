//! The mark of each partition up to which its messages are done with (P7).

use super::world::{Event, State};

impl State {
    /// Commits what may be of this partition: up to its first message that is not settled (P7).
    pub(super) fn commit(&mut self, number: usize) {
        let past_a_gap = super::faulty_commits();
        let Some(partition) = self
            .broker
            .partitions
            .get_mut(number)
            .filter(|partition| partition.assigned.is_some())
        else {
            return;
        };
        let unsettled = |offset: &u64| !partition.settled.contains(offset);
        let mark = if past_a_gap {
            partition
                .settled
                .last()
                .map_or(partition.committed, |last| last + 1)
        } else {
            let mut offsets = partition
                .by_offset
                .range(partition.committed..)
                .map(|(offset, _)| *offset);
            offsets.find(unsettled).unwrap_or(partition.next)
        };
        if mark <= partition.committed {
            return;
        }
        let passed: Vec<usize> = partition
            .by_offset
            .range(partition.committed..mark)
            .map(|(_, post)| *post)
            .collect();
        partition.committed = mark;
        self.note(Event::Committed(number, mark));
        for post in passed {
            if self.broker.posts.get(post).is_some_and(|post| !post.settled) {
                self.violate("P7", format!("partition {number} was committed up to {mark}, past message {post}, which is not settled"));
            }
        }
    }
}
