//! What the source and the acknowledger of one opened file have in common: [`Shared`].

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use millstream_core::rt;
use millstream_core::{
    EngineHandle, Headers, Message, OriginId, Outcome, Outgoing, Reason, Rejection, Settle, Settlement,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use super::keeper::Keeper;
use super::kind::Format;
use super::ledger::Ledger;
use super::lines::{Line, trim};
use crate::envelope::{Envelope, EnvelopeError};

/// One opened file.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) generation: u32,
    pub(super) origin: OriginId,
    pub(super) ledger: Mutex<Ledger>,
    /// Told when a line may go out again.
    pub(super) changed: Notify,
    keeper: Mutex<Keeper>,
    engine: EngineHandle,
    degraded: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        path: &Path,
        format: Format,
        generation: u32,
        ledger: Ledger,
        keeper: Keeper,
        engine: EngineHandle,
    ) -> Self {
        let name = path.display().to_string();
        Self {
            origin: engine.origin(&name),
            name,
            format,
            generation,
            ledger: Mutex::new(ledger),
            changed: Notify::new(),
            keeper: Mutex::new(keeper),
            engine,
            degraded: AtomicBool::new(false),
        }
    }

    /// The line as a message; `None` where there is none in it.
    pub(super) fn message(&self, number: u64, bytes: Bytes) -> Result<Option<Message>, EnvelopeError> {
        let message = match self.format {
            Format::Lines => Message::new(bytes),
            Format::Envelopes if bytes.iter().all(u8::is_ascii_whitespace) => return Ok(None),
            Format::Envelopes => Message::from(Envelope::parse(&bytes)?),
        };
        Ok(Some(Message {
            origin: self.origin,
            position: number,
            ..message
        }))
    }

    /// Settles these, and saves the position. It blocks.
    pub(super) fn settle(&self, settles: &[Settle]) -> Vec<Outcome> {
        let buried = self.bury_rejected(settles);
        let now = rt::now();
        let mut ledger = self.ledger.lock();
        let outcomes = settles
            .iter()
            .map(|Settle { ticket, settlement }| {
                if ticket.generation != self.generation {
                    return Outcome::Stale;
                }
                let number = ticket.sequence;
                let was_out = match settlement {
                    Settlement::Ack => ledger.done(number),
                    Settlement::Reject(_) if !buried => return Outcome::Failed,
                    Settlement::Reject(_) => ledger.done(number),
                    Settlement::Release => ledger.release(number),
                    Settlement::Retry { after, failures } => ledger.retry(number, now, *after, *failures),
                };
                if was_out { Outcome::Sent } else { Outcome::Stale }
            })
            .collect();
        drop(ledger);
        self.save();
        self.changed.notify_one();
        outcomes
    }

    /// Keeps lines that are no envelopes; they are settled with that. It blocks.
    pub(super) fn bury_broken(&self, lines: &[(Line, EnvelopeError)]) -> io::Result<()> {
        let Some((first, cause)) = lines.first() else {
            return Ok(());
        };
        warn!(
            file = self.name, lines = lines.len(), first = first.number, %cause,
            "lines that are no envelopes were set aside"
        );
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.unwrap_or_default().as_millis().to_string();
        let mut dead = Vec::new();
        for (line, cause) in lines {
            let [_, stage, reason, error, _, _, origin, first_at, at] = Rejection::HEADERS;
            let headers = [
                (stage, "source"),
                (reason, Reason::Decode.as_str()),
                (error, &cause.to_string()),
                (origin, &format!("{}@{}", self.name, line.number)),
                (first_at, &now),
                (at, &now),
            ];
            let outgoing = Outgoing {
                payload: line.bytes.clone(),
                headers: headers.into_iter().collect::<Headers>(),
                ..Outgoing::default()
            };
            Envelope::from(&outgoing).write(&mut dead);
        }
        self.keeper.lock().bury(&dead)?;
        let mut ledger = self.ledger.lock();
        for (line, _) in lines {
            ledger.done(line.number);
        }
        drop(ledger);
        self.save();
        Ok(())
    }

    /// Keeps what of these is rejected; whether that succeeded.
    fn bury_rejected(&self, settles: &[Settle]) -> bool {
        let mut keeper = self.keeper.lock();
        let mut dead = Vec::new();
        let mut read = || -> io::Result<()> {
            for Settle { ticket, settlement } in settles {
                let place = self.ledger.lock().place(ticket.sequence);
                let (Settlement::Reject(rejection), Some(place)) = (settlement, place) else {
                    continue;
                };
                if ticket.generation != self.generation {
                    continue;
                }
                let mut bytes = keeper.read(place)?;
                trim(&mut bytes);
                // It was an envelope when it went out.
                if let Ok(Some(message)) = self.message(ticket.sequence, bytes.into()) {
                    Envelope::from(&rejection.dead_letter(&message)).write(&mut dead);
                }
            }
            Ok(())
        };
        let kept = read().and_then(|()| {
            if dead.is_empty() {
                Ok(())
            } else {
                keeper.bury(&dead)
            }
        });
        drop(keeper);
        match kept {
            Ok(()) => true,
            Err(error) => {
                warn!(file = self.name, %error, "rejected lines cannot be kept");
                false
            }
        }
    }

    /// Saves the position. If that fails, a later one will do: until then a crash would repeat more.
    pub(super) fn save(&self) {
        // Held while the mark is read, so that an earlier one never overwrites a later.
        let mut keeper = self.keeper.lock();
        let mark = self.ledger.lock().settled();
        match keeper.save(mark) {
            Ok(()) => {
                if self.degraded.swap(false, Ordering::Relaxed) {
                    self.engine.recovered();
                }
            }
            Err(error) => {
                self.degraded.store(true, Ordering::Relaxed);
                self.engine
                    .degraded(&format!("cannot save the position in {}: {error}", self.name));
            }
        }
    }
}
