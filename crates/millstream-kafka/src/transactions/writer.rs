//! The thread that makes transactions: [`Writer`].

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use millstream_core::{Delivered, Ticket};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::producer::{Producer, Trouble};
use super::work::{Round, Work, Write};
use crate::callbacks::Callbacks;
use crate::shared::transactional::Standing;
use crate::shared::{Commit, Shared};

/// How long to wait after an aborted transaction before it is made again.
const AGAIN: Duration = Duration::from_millis(50);

pub(crate) struct Writer {
    pub(crate) work: Arc<Work>,
    pub(crate) producer: Producer,
    pub(crate) consumer: Arc<BaseConsumer<Callbacks>>,
    pub(crate) shared: Arc<Shared>,
}

/// The offsets that go with a transaction, and the generation that they are of.
struct Offsets {
    generation: ConsumerGroupMetadata,
    commits: Vec<Commit>,
}

impl Writer {
    /// Makes transactions until the work is closed, and a last one then.
    pub(crate) fn run(mut self) {
        let mut ending = Ending(Arc::clone(&self.work), Round::default());
        let round = &mut ending.1;
        while self.work.collect(round) {
            if let Err(trouble) = self.serve(round) {
                match trouble {
                    Trouble::Again(why) => {
                        warn!(why, "a transaction was aborted, and is made again");
                        self.work.pause(AGAIN);
                    }
                    Trouble::Fatal(why) => self.work.fail(why),
                }
                self.failed();
            }
        }
        // What is settled need not come again. What is unwritten does.
        if self.work.failed().is_none() {
            let mut last = Round {
                asked: std::mem::take(&mut round.asked),
                ..Round::default()
            };
            self.shared.give_up_all();
            if let Err(Trouble::Again(why) | Trouble::Fatal(why)) = self.serve(&mut last) {
                warn!(why, "what was settled last comes again");
                self.failed();
            }
        }
    }

    /// A transaction came to nothing.
    fn failed(&self) {
        self.consumer.context().engine.commit_failed();
    }

    /// Makes a transaction for the round, and empties it; what is left of it is for another.
    fn serve(&mut self, round: &mut Round) -> Result<(), Trouble> {
        self.sort(&mut round.writes);
        self.transact(&mut round.writes)?;
        round.writes.drain(..).for_each(Write::end);
        round.asked.drain(..).for_each(|asked| {
            asked.send(true).ok();
        });
        round.due = false;
        Ok(())
    }

    /// Leaves out what need not be written: that of dropped calls, that of deliveries which are settled or stale.
    fn sort(&self, writes: &mut Vec<Write>) {
        writes.retain(|write| !write.claim.is_dropped());
        for write in &mut *writes {
            for (letter, result) in write.letters.iter().zip(&mut write.results) {
                let standing = letter.message.ticket.map(|ticket| self.shared.standing(&ticket));
                match standing {
                    // Its settlement is a stale one.
                    Some(Standing::Settled | Standing::Stale) if result.is_none() => {
                        debug!(?standing, "an output is left out");
                        *result = Some(Delivered::Confirmed);
                    }
                    _ => {}
                }
            }
        }
    }

    fn transact(&mut self, writes: &mut [Write]) -> Result<(), Trouble> {
        let inputs: Vec<Ticket> = writes.iter().flat_map(Write::inputs).collect();
        if writes.iter().all(|write| write.unwritten().next().is_none()) {
            let offsets = self.offsets(&inputs)?;
            if offsets.commits.is_empty() {
                return Ok(());
            }
            self.producer.begin()?;
            return self.commit(&offsets);
        }
        self.producer.begin()?;
        match self.producer.write(writes) {
            Ok(true) => {}
            Ok(false) => {
                self.producer.abort(&self.work)?;
                self.failed();
                return self.transact(writes);
            }
            Err(trouble) => return Err(self.abort(trouble)),
        }
        let claimed = writes.iter().filter(|write| write.claim.claim()).count();
        let committed = if claimed == writes.len() {
            match self.offsets(&inputs) {
                Ok(offsets) => self.commit(&offsets),
                Err(trouble) => Err(self.abort(trouble)),
            }
        } else {
            Err(self.abort(Trouble::Again("a batch of it was given up".to_owned())))
        };
        match committed {
            Ok(()) => self.shared.written(&inputs),
            Err(_) => writes.iter().for_each(|write| write.claim.unclaim()),
        }
        committed
    }

    /// What is to be committed once these are settled. The generation is read first: if they stand after that, it is one
    /// in which they are this member's.
    fn offsets(&self, inputs: &[Ticket]) -> Result<Offsets, Trouble> {
        let moved = || Trouble::Again("partitions of it were taken away".to_owned());
        let rebalances = self.shared.rebalances();
        let generation = self.consumer.group_metadata().ok_or_else(moved)?;
        // Such a generation may be none, which brokers do not check.
        if self.consumer.assignment_lost() {
            return Err(moved());
        }
        let commits = self
            .shared
            .uncommitted_with(inputs, rebalances)
            .ok_or_else(moved)?;
        Ok(Offsets { generation, commits })
    }

    /// Adds the offsets and commits.
    fn commit(&self, Offsets { generation, commits }: &Offsets) -> Result<(), Trouble> {
        let committed = match commits.is_empty() {
            true => Ok(()),
            false => self.producer.offsets(&self.work, commits, generation),
        };
        match committed.and_then(|()| self.producer.commit(&self.work)) {
            Ok(()) => {
                self.shared.committed(commits);
                Ok(())
            }
            Err(trouble) => {
                self.shared.commit_failed(commits);
                Err(self.abort(trouble))
            }
        }
    }

    /// Aborts what can be made again.
    fn abort(&self, trouble: Trouble) -> Trouble {
        match (&trouble, self.producer.dead()) {
            (_, Some(dead)) => dead,
            (Trouble::Fatal(_), None) => trouble,
            (Trouble::Again(_), None) => self.producer.abort(&self.work).err().unwrap_or(trouble),
        }
    }
}

/// Says that the thread has ended also where it panicked, and leaves nobody waiting.
struct Ending(Arc<Work>, Round);

impl Drop for Ending {
    fn drop(&mut self) {
        if self.0.is_open() {
            self.0.fail("the thread of its transactions died".to_owned());
        }
        self.0.end(std::mem::take(&mut self.1));
    }
}

/// The thread, as the thread that polls has it.
#[derive(Debug)]
pub(crate) struct Running {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(writer: Writer) -> std::io::Result<Self> {
        let work = Arc::clone(&writer.work);
        let thread = std::thread::Builder::new()
            .name("kafka writes".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            work,
            thread: Some(thread),
        })
    }

    /// Has what is settled committed, if it is time or somebody has asked for it.
    pub(crate) fn serve(&self, asked: Vec<oneshot::Sender<bool>>, due: bool) -> bool {
        if due || !asked.is_empty() {
            self.work.ask(asked, due);
        }
        due
    }

    /// Ends the thread, once its last transaction has ended.
    pub(crate) fn end(&mut self) {
        self.work.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that writes died");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
