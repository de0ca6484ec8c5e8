//! Partitions that stand still at a message that was given up (`dead_letter = "halt"`), until somebody has mended it; and
//! messages that were out when their process ended uncleanly.

use super::broker::Partition;
use super::script::Deed;
use super::world::{Event, State};

impl State {
    /// The process has ended uncleanly: that counts against all that it had.
    pub(super) fn count_ends(&mut self) {
        for delivery in self.model.out() {
            // What a partition has that stands still is not about to run.
            let generation = self.model.ticket(delivery).map(|ticket| ticket.generation);
            if generation.is_some_and(|generation| self.model.withdrawn.contains(&generation)) {
                continue;
            }
            let post = self.model.post(delivery);
            if let Some(post) = self.broker.posts.get_mut(post) {
                post.ends += 1;
            }
        }
    }

    /// This partition stands still at this message, and nothing more of the generation is to begin.
    pub(super) fn halt(&mut self, partition: usize, number: usize, generation: u32) {
        self.met("halt");
        self.broker.hold(partition);
        self.model.withdraw(generation);
        self.model.halted.insert(generation);
        if let Some(partition) = self.broker.partitions.get_mut(partition) {
            partition.halted = Some(number);
        }
        self.tell_halts();
    }

    /// The engine hears which partitions stand still.
    pub(super) fn tell_halts(&self) {
        let at = self.broker.partitions.iter().enumerate();
        let at: Vec<_> = at
            .filter_map(|(number, partition)| Some(format!("place-{number}@{}", partition.halted?)))
            .collect();
        if let Some(engine) = &self.engine {
            engine.halted(&at);
        }
    }

    /// A partition that stands still, whose message somebody has mended just now.
    pub(super) fn mend(&mut self) -> Option<usize> {
        let stands = |partition: &Partition| partition.assigned.and(partition.halted);
        let mut partitions = self.broker.partitions.iter().enumerate();
        let (number, post) = partitions.find_map(|(number, partition)| Some((number, stands(partition)?)))?;
        let written = self.broker.posts.get(post).map(|post| post.written);
        let written = self.broker.written.get_mut(written?)?;
        written.deed = Deed::Succeeds;
        if let Some(post) = self.broker.posts.get_mut(post) {
            post.ends = 0;
        }
        self.note(Event::Mended(post));
        Some(number)
    }
}
