//! The thread behind a source and its acknowledger: [`Consumer`].
//!
//! It owns the connection and the session. Whatever waits when it comes round, settlements, a fetch, the
//! renewal of the lease, is one transaction, so settlements are batched the more the busier it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_core::{
    Credit, EngineHandle, Message, OriginId, Outcome, Scope, Settle, Settlement, Ticket, rt,
};
use rusqlite::Connection;

use crate::claim::{Claimed, Claims};
use crate::connector::Settings;
use crate::database::{Database, Durability, now as unix_now};
use crate::error::Error;
use crate::group::Group;
use crate::inbox::{Attendance, Inbox, Turn};
use crate::session::{self, Session};
use crate::settle::settle;

/// How often a session that wants messages looks for dead ones.
const REAP: Duration = Duration::from_millis(100);
/// How long to wait after a first failure; twice as long after each further one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

pub(crate) struct Consumer {
    settings: Settings,
    group: Group,
    engine: EngineHandle,
    origin: OriginId,
    database: Arc<Database>,
    connection: Connection,
    inbox: Arc<Inbox>,
    generations: Arc<AtomicU32>,
    generation: u32,
    /// None while another has ended it and the next could not be opened.
    session: Option<Session>,
    claims: Claims,
    /// Fetched messages that nobody will read, to be released.
    unread: Vec<Settle>,
    /// The database's version as a fetch that found nothing more left it.
    seen: Option<i64>,
    /// When there may be more though nobody writes: the next delayed message, and keys that were blocked.
    due: Option<i64>,
    again: Option<Instant>,
    next_renewal: Instant,
    next_reap: Instant,
    next_poll: Instant,
    /// How long the last wait after a failure was, until there is a success.
    failing: Option<Duration>,
}

/// What a transaction came to.
enum Served {
    /// The session was ended by another.
    Lost,
    /// All of it was done.
    Done {
        outcomes: Vec<Outcome>,
        claimed: Option<(Claimed, i64)>,
    },
}

impl Consumer {
    /// Opens the database and a session in it.
    pub(crate) fn open(
        settings: Settings,
        engine: EngineHandle,
        generations: Arc<AtomicU32>,
    ) -> Result<Self, Error> {
        let database = Database::at(&settings.path)?;
        let connection = database.connect(Durability::Order)?;
        let group = Group {
            queue: settings.queue.clone(),
            name: settings.group.clone(),
        };
        session::free_orphans(&database, &connection).map_err(|error| database.error(error))?;
        let session = Session::open(&database, &connection, &group, settings.lease)?;
        let inbox = Arc::new(Inbox::default());
        database.listen(&inbox);
        let now = rt::now();
        Ok(Self {
            origin: engine.origin(&settings.queue),
            claims: Claims::new(settings.ordered),
            generation: generations.fetch_add(1, Ordering::Relaxed),
            next_renewal: now + settings.lease / 3,
            next_reap: now,
            next_poll: now,
            unread: Vec::new(),
            seen: None,
            due: None,
            again: None,
            failing: None,
            session: Some(session),
            settings,
            group,
            engine,
            database,
            connection,
            inbox,
            generations,
        })
    }

    pub(crate) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// Serves until both sides are gone, then ends the session.
    pub(crate) fn run(mut self) {
        let _attendance = Attendance::new(Arc::clone(&self.inbox));
        loop {
            let turn = self.inbox.next(self.wake_at());
            let closed = turn.closed;
            self.serve(turn);
            if closed {
                break;
            }
        }
        if let Some(session) = self.session.take() {
            // What cannot be freed now is freed by whoever finds the lock file unlocked.
            session.close(&self.database, &self.connection).ok();
            self.database.wake();
        }
    }

    fn wake_at(&self) -> Instant {
        if self.inbox.wanted() || !self.unread.is_empty() {
            self.next_renewal.min(self.next_poll)
        } else {
            self.next_renewal
        }
    }

    fn serve(&mut self, turn: Turn) {
        self.unread.extend(turn.unread.into_iter().map(release));
        let (settlements, reply) = match turn.settling {
            Some(settling) => (settling.settlements, Some(settling.reply)),
            None => (Vec::new(), None),
        };
        let outcomes = match self.transact(&settlements, turn.want) {
            Ok(Some(outcomes)) => {
                if self.failing.take().is_some() {
                    self.engine.recovered();
                }
                outcomes
            }
            Ok(None) => Vec::new(),
            Err(error) => {
                self.back_off(&error);
                vec![Outcome::Failed; settlements.len()]
            }
        };
        if let Some(reply) = reply {
            // An acknowledger that is gone needs no answer.
            reply.send(outcomes).ok();
        }
    }

    /// Does what there is to do in one transaction; `None` if there was nothing.
    fn transact(
        &mut self,
        settlements: &[Settle],
        want: Option<Credit>,
    ) -> Result<Option<Vec<Outcome>>, Error> {
        let now = rt::now();
        let rested = self.failing.is_none() || now >= self.next_poll;
        if self.session.is_none() {
            if !rested {
                return Ok((!settlements.is_empty()).then(|| vec![Outcome::Stale; settlements.len()]));
            }
            self.reopen()?;
        }
        let fetch = match want {
            Some(credit) if rested && self.may_find(now).map_err(|error| self.database.error(error))? => {
                Some(credit)
            }
            _ => None,
        };
        let renew = now >= self.next_renewal;
        if settlements.is_empty() && (self.unread.is_empty() || !rested) && fetch.is_none() && !renew {
            self.plan_poll(now);
            return Ok(None);
        }
        let served = self
            .database
            .write(&self.connection, |connection| -> rusqlite::Result<Served> {
                let Some(session) = self.session.as_ref() else {
                    return Ok(Served::Lost);
                };
                if !session.is_alive(connection)? {
                    return Ok(Served::Lost);
                }
                let (group, token) = (&self.group, session.token);
                let outcomes = settle(connection, group, token, self.generation, settlements)?;
                let returned = |settle: &Settle| {
                    matches!(settle.settlement, Settlement::Retry { .. } | Settlement::Release)
                };
                if self.settings.ordered && settlements.iter().any(returned) {
                    // It may hold later ones of the same keys, which must not be read before them.
                    self.unread
                        .extend(self.inbox.take_back().into_iter().map(release));
                }
                settle(connection, group, token, self.generation, &self.unread)?;
                let claimed = match fetch {
                    Some(credit) => {
                        let claimed = self.claims.claim(connection, group, token, credit)?;
                        Some((claimed, data_version(connection)?))
                    }
                    None => None,
                };
                if renew {
                    session.renew(connection)?;
                }
                Ok(Served::Done { outcomes, claimed })
            });
        match served.map_err(|error| self.database.error(error))? {
            Served::Lost => {
                self.lose();
                Ok(Some(vec![Outcome::Stale; settlements.len()]))
            }
            Served::Done { outcomes, claimed } => {
                if renew {
                    self.next_renewal = now + self.settings.lease / 3;
                }
                let returned = |settle: &Settle| settle.settlement != Settlement::Ack;
                if !self.unread.is_empty() || settlements.iter().any(returned) {
                    self.seen = None;
                }
                self.unread.clear();
                match claimed {
                    Some((claimed, version)) => self.deliver(claimed, version),
                    None => self.plan_poll(now),
                }
                Ok(Some(outcomes))
            }
        }
    }

    /// Whether there is reason to fetch: a look that costs next to nothing where nothing has happened.
    fn may_find(&mut self, now: Instant) -> rusqlite::Result<bool> {
        if let Some(session) = self.session.as_ref().filter(|_| now >= self.next_reap) {
            self.next_reap = now + REAP;
            if session::reap(&self.database, &self.connection, session.token)? {
                self.seen = None;
            }
        }
        let due =
            self.due.is_some_and(|due| due <= unix_now()) || self.again.is_some_and(|again| again <= now);
        Ok(due || self.seen.is_none() || self.seen != Some(data_version(&self.connection)?))
    }

    /// Hands over what was leased.
    fn deliver(&mut self, claimed: Claimed, version: i64) {
        self.seen = (!claimed.more).then_some(version);
        self.due = claimed.due;
        self.again = claimed.again;
        if !claimed.messages.is_empty() {
            let delivery = |mut message: Message| {
                message.origin = self.origin;
                (
                    Ticket::new(self.generation, self.origin, message.position),
                    message,
                )
            };
            self.inbox
                .deliver(claimed.messages.into_iter().map(delivery).collect());
        }
        self.plan_poll(rt::now());
    }

    fn plan_poll(&mut self, now: Instant) {
        if self.failing.is_some() && now < self.next_poll {
            return;
        }
        let mut next = (now + self.settings.poll).min(self.next_reap.max(now));
        if let Some(due) = self.due {
            let left = u64::try_from(due.saturating_sub(unix_now())).unwrap_or(0);
            next = next.min(now + self.settings.poll.min(Duration::from_millis(left)));
        }
        if let Some(again) = self.again {
            next = next.min(again);
        }
        self.next_poll = if self.session.is_none() { now } else { next };
    }

    /// Another has ended the session: everything that was leased by it is someone else's.
    fn lose(&mut self) {
        if let Some(session) = self.session.take() {
            session.abandon();
        }
        self.unread.clear();
        self.inbox.forget();
        self.engine.lost(Scope::Generation(self.generation));
        self.seen = None;
        self.next_renewal = rt::now();
    }

    fn reopen(&mut self) -> Result<(), Error> {
        let session = Session::open(&self.database, &self.connection, &self.group, self.settings.lease)?;
        self.session = Some(session);
        self.generation = self.generations.fetch_add(1, Ordering::Relaxed);
        self.next_renewal = rt::now() + self.settings.lease / 3;
        self.seen = None;
        Ok(())
    }

    /// Says what is wrong, and waits before trying again.
    fn back_off(&mut self, error: &Error) {
        self.engine.degraded(&error.to_string());
        let longest = BACKOFF.1.min(self.settings.lease / 6).max(BACKOFF.0);
        let wait = self
            .failing
            .map_or(BACKOFF.0, |last| last.saturating_mul(2))
            .min(longest);
        self.failing = Some(wait);
        self.seen = None;
        let again = rt::now() + wait.mul_f64(0.5 + rt::chance() / 2.0);
        self.next_poll = again;
        self.next_renewal = self.next_renewal.max(again);
    }
}

fn release(ticket: Ticket) -> Settle {
    Settle {
        ticket,
        settlement: Settlement::Release,
    }
}

/// Differs from its last value if another connection has written meanwhile.
fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}
