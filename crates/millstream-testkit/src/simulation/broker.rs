//! What the broker has: messages ready, delayed, handed out or settled, and partitions with what is committed of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_core::{Message, OriginId, Outcome, Settlement, Ticket};

use super::plan::{Kind, Letters, Plan};
use super::script::group;
use super::world::{Event, State, Written};

#[derive(Debug)]
pub(super) struct Broker {
    /// What was published, by its number.
    pub(super) written: Vec<Written>,
    /// Messages at the broker, copies that came back through the retry sink included.
    pub(super) posts: Vec<Post>,
    ready: BTreeSet<usize>,
    delayed: BTreeSet<(Duration, usize)>,
    pub(super) partitions: Vec<Partition>,
    /// The latest of all generations.
    generation: u32,
    /// The generation of the queue's connection.
    connection: u32,
    pub(super) origins: Vec<OriginId>,
    pub(super) trouble: Trouble,
    pub(super) publishing: bool,
}

#[derive(Debug)]
pub(super) struct Post {
    pub(super) written: usize,
    pub(super) message: Message,
    pub(super) partition: usize,
    pub(super) offset: u64,
    deliveries: u32,
    /// Processes that ended uncleanly while they had it.
    pub(super) ends: u32,
    failures: u32,
    pub(super) settled: bool,
    /// The delivery that is out.
    pub(super) out: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) by_offset: BTreeMap<u64, usize>,
    /// Not handed out in this assignment, or given back.
    pending: BTreeSet<u64>,
    pub(super) settled: BTreeSet<u64>,
    pub(super) next: u64,
    pub(super) committed: u64,
    /// The assignment, while there is one.
    pub(super) assigned: Option<u32>,
    held_until: Duration,
    /// It stands still at this message, which was given up.
    pub(super) halted: Option<usize>,
}

/// What does not work, until when.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) slow_acks: Duration,
    pub(super) failing_acks: Duration,
    pub(super) slow_letters: Duration,
    pub(super) failing_letters: Duration,
    pub(super) read_fails: bool,
    /// One has failed, and nothing was opened since.
    pub(super) read_failed: bool,
    pub(super) opens_fail: u32,
}

impl Broker {
    pub(super) fn new(plan: &Plan) -> Self {
        let partitions = match plan.broker {
            Kind::Queue { .. } => 0,
            Kind::Log { partitions, .. } => partitions as usize,
        };
        Self {
            written: Vec::new(),
            posts: Vec::new(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            generation: 0,
            connection: 0,
            origins: Vec::new(),
            trouble: Trouble::default(),
            publishing: true,
        }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation += 1;
        self.generation
    }

    /// What is neither settled nor known to be lost for good, in words, for a run that does not come to rest.
    pub(super) fn left(&self) -> Vec<String> {
        let unsettled = self
            .posts
            .iter()
            .enumerate()
            .filter(|(_, post)| !post.settled || post.out.is_some());
        unsettled
            .map(|(number, post)| match post.out {
                Some(delivery) => format!("message {number} (delivery {delivery})"),
                None => format!("message {number} (not handed out)"),
            })
            .collect()
    }

    /// Nothing more of this partition is handed out in its assignment.
    pub(super) fn hold(&mut self, number: usize) {
        if let Some(partition) = self.partitions.get_mut(number) {
            partition.held_until = Duration::MAX;
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        !self.publishing && self.posts.iter().all(|post| post.settled && post.out.is_none())
    }
}

impl State {
    pub(super) fn publish(&mut self, written: Written) {
        let message = written.message.clone();
        self.broker.written.push(written);
        let number = self.broker.written.len() - 1;
        self.post(number, message, Duration::ZERO);
    }

    /// Where messages come more than once, one of them may.
    fn publishes_twice(&mut self) -> Option<usize> {
        self.plan.features.deduplicates?;
        let again = self.chance(150);
        again.then(|| self.rng.usize(..self.broker.written.len()))
    }

    pub(super) fn publish_again(&mut self) {
        if let Some(number) = self.publishes_twice()
            && let Some(written) = self.broker.written.get(number)
        {
            let message = written.message.clone();
            self.post(number, message, Duration::ZERO);
        }
    }

    /// Puts a message at the end, to be handed out after this long.
    pub(super) fn post(&mut self, written: usize, mut message: Message, delay: Duration) {
        message.take_failures();
        let due = self.now() + delay;
        let broker = &mut self.broker;
        let number = broker.posts.len();
        let mut post = Post {
            written,
            partition: 0,
            offset: 0,
            deliveries: 0,
            ends: 0,
            failures: message.failures,
            settled: false,
            out: None,
            message,
        };
        if !broker.partitions.is_empty() {
            let key =
                group(&post.message).map_or(number, |key| key.iter().map(|byte| usize::from(*byte)).sum());
            post.partition = key % broker.partitions.len();
        }
        broker.posts.push(post);
        if delay.is_zero() {
            self.arrive(number);
        } else {
            self.broker.delayed.insert((due, number));
        }
        self.note(Event::Published(number));
    }

    /// From now on it can be handed out.
    fn arrive(&mut self, number: usize) {
        let broker = &mut self.broker;
        let Some(post) = broker.posts.get_mut(number) else {
            return;
        };
        let Some(partition) = broker.partitions.get_mut(post.partition) else {
            broker.ready.insert(number);
            return;
        };
        // As compaction and transaction markers leave gaps.
        partition.next += self.rng.u64(1..3);
        post.offset = partition.next;
        partition.by_offset.insert(post.offset, number);
        partition.pending.insert(post.offset);
        partition.next += 1;
    }

    /// A source opens: what an earlier one had is handed out again.
    pub(super) fn open(&mut self, origins: Vec<OriginId>) {
        self.broker.origins = origins;
        self.broker.trouble.read_failed = false;
        self.close();
        let generation = self.broker.next_generation();
        self.broker.connection = generation;
        for number in 0..self.broker.partitions.len() {
            self.assign(number);
        }
    }

    /// What is out is lost, as nobody has it any more.
    pub(super) fn close(&mut self) {
        self.lose(|_| true);
        for partition in &mut self.broker.partitions {
            partition.assigned = None;
        }
    }

    pub(super) fn assign(&mut self, number: usize) {
        let generation = self.broker.next_generation();
        if let Some(partition) = self.broker.partitions.get_mut(number) {
            partition.assigned = Some(generation);
            partition.held_until = Duration::ZERO;
            partition.halted = None;
            partition.pending = partition
                .by_offset
                .range(partition.committed..)
                .map(|(offset, _)| *offset)
                .collect();
            // What was settled beyond the committed offset is repeated.
            partition.settled.clear();
        }
        self.note(Event::Assigned(number, generation));
    }

    /// The deliveries that `which` picks are nobody's any more.
    pub(super) fn lose(&mut self, which: impl Fn(&Ticket) -> bool) {
        for delivery in self.model.out() {
            let Some(ticket) = self.model.ticket(delivery).filter(&which) else {
                continue;
            };
            self.model.lose(delivery);
            self.note(Event::Lost(delivery));
            let post = self.model.post(delivery);
            self.back(post, delivery, ticket);
        }
    }

    /// A post whose delivery is over and that is not settled can be handed out again.
    fn back(&mut self, number: usize, delivery: usize, ticket: Ticket) {
        let Some(post) = self
            .broker
            .posts
            .get_mut(number)
            .filter(|post| post.out == Some(delivery))
        else {
            return;
        };
        post.out = None;
        let (partition, offset) = (post.partition, post.offset);
        match self.broker.partitions.get_mut(partition) {
            Some(partition) => {
                if partition.assigned == Some(ticket.generation) {
                    partition.pending.insert(offset);
                }
            }
            None => {
                if !post.settled {
                    self.broker.ready.insert(number);
                }
            }
        }
    }

    /// The connection breaks, or some leases are lost. Says which scope's deliveries.
    pub(super) fn disconnect(&mut self) -> Vec<u32> {
        let generations = if self.plan.broker.is_single() {
            let out = self.model.out();
            let lost = out.into_iter().filter(|_| self.rng.bool()).collect::<Vec<_>>();
            lost.into_iter()
                .filter_map(|delivery| Some(self.model.ticket(delivery)?.generation))
                .collect()
        } else {
            vec![self.broker.connection]
        };
        self.lose(|ticket| generations.contains(&ticket.generation));
        let generation = self.broker.next_generation();
        self.broker.connection = generation;
        generations
    }

    /// Hands out what may be, at most so many messages and bytes. Says when there may be more.
    pub(super) fn hand_out(
        &mut self,
        most: usize,
        bytes: usize,
        chunk: &mut millstream_core::Chunk,
    ) -> Option<Instant> {
        let now = self.now();
        while let Some((due, number)) = self
            .broker
            .delayed
            .first()
            .copied()
            .filter(|(due, _)| *due <= now)
        {
            self.broker.delayed.remove(&(due, number));
            self.arrive(number);
        }
        let first = self.rng.usize(..self.broker.partitions.len().max(1));
        while chunk.len() < most && chunk.bytes() < bytes {
            let Some(number) = self.next_post(first, now) else {
                break;
            };
            // What came often comes alone.
            if self.deliver(number, chunk) {
                break;
            }
        }
        let broker = &self.broker;
        let held = broker
            .partitions
            .iter()
            .filter(|partition| !partition.pending.is_empty());
        let held = held
            .map(|partition| partition.held_until)
            .filter(|until| *until > now && *until < Duration::MAX)
            .min();
        let due = broker.delayed.first().map(|(due, _)| *due);
        [held, due]
            .into_iter()
            .flatten()
            .min()
            .map(|moment| self.instant(moment))
    }

    fn next_post(&mut self, first: usize, now: Duration) -> Option<usize> {
        let broker = &mut self.broker;
        let many = broker.partitions.len();
        for turn in 0..many {
            let Some(partition) = broker.partitions.get_mut((first + turn) % many) else {
                continue;
            };
            if partition.assigned.is_some()
                && partition.held_until <= now
                && let Some(offset) = partition.pending.pop_first()
            {
                return partition.by_offset.get(&offset).copied();
            }
        }
        let Kind::Queue {
            orders_keys,
            reorders,
            ..
        } = self.plan.broker
        else {
            return None;
        };
        let number = if reorders {
            let at = self.rng.usize(..10);
            broker.ready.iter().nth(at).or(broker.ready.first()).copied()?
        } else {
            let key = |number: usize| {
                broker
                    .posts
                    .get(number)
                    .and_then(|post| post.message.key.as_ref())
            };
            let waits = |number: usize| {
                orders_keys
                    && broker
                        .delayed
                        .iter()
                        .any(|(_, earlier)| *earlier < number && key(*earlier) == key(number))
            };
            broker.ready.iter().copied().find(|number| !waits(*number))?
        };
        broker.ready.remove(&number);
        Some(number)
    }

    /// Says whether nothing may be handed out beside it.
    fn deliver(&mut self, number: usize, chunk: &mut millstream_core::Chunk) -> bool {
        let (counts, ends) = (self.plan.broker.counts(), self.plan.broker.is_log());
        let generation = match self.plan.broker {
            Kind::Queue { single: true, .. } => self.broker.next_generation(),
            Kind::Queue { .. } | Kind::Log { .. } => self.broker.connection,
        };
        let delivery = self.model.next();
        let Some(post) = self.broker.posts.get_mut(number) else {
            return false;
        };
        post.deliveries += 1;
        post.out = Some(delivery);
        let origin = self
            .broker
            .origins
            .get(post.partition)
            .copied()
            .unwrap_or_default();
        let (generation, sequence) = match self.broker.partitions.get(post.partition) {
            Some(partition) => (partition.assigned.unwrap_or_default(), post.offset),
            None => (generation, delivery as u64),
        };
        let mut message = post.message.clone();
        message.origin = origin;
        message.position = number as u64;
        message.failures = post.failures;
        message.deliveries = match (counts, ends) {
            (true, true) => post.ends + 1,
            (true, false) => post.deliveries,
            (false, _) => 0,
        };
        let alone = ends && message.deliveries > 1;
        let ticket = Ticket::new(generation, origin, sequence);
        let partition = post.partition;
        self.note(Event::HandedOut {
            delivery,
            post: number,
            generation,
        });
        self.handed_out(number, partition, ticket, &message);
        chunk.push(ticket, message);
        alone
    }

    /// Does what a settlement says; the model has judged it.
    pub(super) fn apply(&mut self, delivery: usize, ticket: Ticket, settlement: &Settlement) -> Outcome {
        let number = self.model.post(delivery);
        let halts = self.plan.letters == Letters::Halt;
        let due = self.now()
            + if let Settlement::Retry { after, .. } = settlement {
                *after
            } else {
                Duration::ZERO
            };
        let Some(post) = self.broker.posts.get_mut(number) else {
            return Outcome::Stale;
        };
        post.out = None;
        let offset = post.offset;
        match settlement {
            Settlement::Reject(_) if halts => {}
            Settlement::Ack | Settlement::Reject(_) => post.settled = true,
            Settlement::Release => post.deliveries = post.deliveries.saturating_sub(1),
            Settlement::Retry { failures, .. } => {
                post.failures = *failures;
                post.deliveries = 0;
            }
        }
        let partition = post.partition;
        if matches!(settlement, Settlement::Reject(_)) && halts {
            self.halt(partition, number, ticket.generation);
            return Outcome::Sent;
        }
        let settled = matches!(settlement, Settlement::Ack | Settlement::Reject(_));
        match self.broker.partitions.get_mut(partition) {
            Some(partition) if settled => {
                partition.settled.insert(offset);
            }
            Some(partition) => {
                partition.pending.insert(offset);
                if let Settlement::Retry { .. } = settlement {
                    partition.held_until = partition.held_until.max(due);
                }
            }
            None if settled => {}
            None if matches!(settlement, Settlement::Retry { .. }) => {
                self.broker.delayed.insert((due, number));
            }
            None => {
                self.broker.ready.insert(number);
            }
        }
        debug_assert!(ticket.generation <= self.broker.generation);
        Outcome::Sent
    }
}
