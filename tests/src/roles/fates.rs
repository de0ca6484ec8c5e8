//! Handlers that do with each message what its fate says: [`Fated`], [`FatedBatch`]; and one that reads what came of
//! those that were given up: [`Letters`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::rt::Instant;
use millstream_core::{Batch, BatchHandler, Context, Failure, Processor, Reason, Rejection, rt};
use millstream_tests::ledger::{Event, Ledger, Record};
use millstream_tests::{ATTEMPTS, Fate, Work};

use super::handler::busy;
use crate::Arguments;

/// Writes down what becomes of messages in this process.
struct Notes {
    ledger: Ledger,
    actor: u32,
    seed: u64,
}

impl Notes {
    fn new(arguments: &Arguments) -> Self {
        Self {
            ledger: Ledger::inherited().expect("the ledger is the standard output"),
            actor: arguments.get("actor"),
            seed: arguments.get("seed"),
        }
    }

    fn write(&self, event: Event, number: u32, attempt: u32) {
        self.ledger.write(Record {
            attempt,
            ..Record::of(event, self.actor, number)
        });
    }
}

/// After so many runs, what it needs is away for a while, once.
struct Outage {
    after: u32,
    lasts: Duration,
    runs: AtomicU32,
    began: OnceLock<Instant>,
}

impl Outage {
    fn is_on(&self) -> bool {
        self.runs.fetch_add(1, Ordering::Relaxed) >= self.after
            && self.began.get_or_init(rt::now).elapsed() < self.lasts
    }
}

/// The number of a message, and which attempt at it it was that got to a batch.
type Item = (u32, u32);

pub(crate) struct Fated {
    notes: Notes,
    longest: Duration,
    outage: Outage,
}

impl Fated {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self {
            notes: Notes::new(arguments),
            longest: Duration::from_micros(arguments.get("longest_us")),
            outage: Outage {
                after: arguments.get("outage_after"),
                lasts: Duration::from_millis(arguments.get("outage_ms")),
                runs: AtomicU32::new(0),
                began: OnceLock::new(),
            },
        }
    }
}

impl Processor for Fated {
    type Input = Bytes;
    type Output = Item;

    async fn process(&self, payload: Bytes, cx: &mut Context<'_>) -> Result<Item, Failure> {
        let number = Work::number(&payload).ok_or_else(|| Failure::reject("no number"))?;
        let attempt = cx.attempt();
        self.notes.write(Event::Begin, number, attempt);
        let fate = Fate::of(self.notes.seed, number);
        let is_last = fate == Fate::FailsForEver && attempt == ATTEMPTS;
        if self.outage.is_on() {
            self.notes.write(Event::Down, number, attempt);
            if is_last {
                // The first runs of an outage come before the breaker can know of it.
                self.notes.write(Event::GivenUp, number, attempt);
            }
            return Err(Failure::retry("what it needs is away"));
        }
        busy(self.longest).await;
        match fate {
            Fate::Panics if attempt == 1 => panic!("as its fate says"),
            Fate::Hangs if attempt == 1 => std::future::pending().await,
            Fate::Fails(times) if attempt <= times => Err(Failure::retry("as its fate says")),
            Fate::FailsForEver => {
                if is_last {
                    self.notes.write(Event::GivenUp, number, attempt);
                }
                Err(Failure::retry("as its fate says"))
            }
            Fate::Rejected => {
                self.notes.write(Event::GivenUp, number, attempt);
                Err(Failure::reject("as its fate says"))
            }
            _ => Ok((number, attempt)),
        }
    }
}

pub(crate) struct FatedBatch(Notes);

impl FatedBatch {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self(Notes::new(arguments))
    }
}

impl BatchHandler for FatedBatch {
    type Input = Item;

    async fn handle(&self, batch: &mut Batch<Item>) -> Result<(), Failure> {
        // What comes again has failed each time before.
        let before = batch.attempt() - 1;
        for index in 0..batch.len() {
            let Some((number, attempt)) = batch.items().get(index).copied() else {
                continue;
            };
            let attempt = attempt + before;
            match Fate::of(self.0.seed, number) {
                Fate::FailsInBatch(times) if attempt <= times => {
                    batch.fail(index, Failure::retry("as its fate says"));
                }
                Fate::RejectedInBatch => {
                    self.0.write(Event::GivenUp, number, attempt);
                    batch.fail(index, Failure::reject("as its fate says"));
                }
                _ => self.0.write(Event::End, number, attempt),
            }
        }
        Ok(())
    }
}

/// Reads dead letters.
pub(crate) struct Letters(Notes);

impl Letters {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self(Notes::new(arguments))
    }
}

impl Processor for Letters {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, payload: Bytes, cx: &mut Context<'_>) -> Result<(), Failure> {
        let number = Work::number(&payload).ok_or_else(|| Failure::reject("no number"))?;
        let [_, _, reason, _, attempts, ..] = Rejection::HEADERS.map(|name| cx.headers().get(name));
        let reason = Reason::ALL
            .iter()
            .position(|known| reason == Some(known.as_str()))
            .ok_or_else(|| Failure::reject("no reason"))?;
        let attempt = attempts.unwrap_or_default().parse()?;
        self.0.ledger.write(Record {
            deliveries: u32::try_from(reason)?,
            attempt,
            ..Record::of(Event::Letter, self.0.actor, number)
        });
        Ok(())
    }
}
