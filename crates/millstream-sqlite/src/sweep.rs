//! Which messages may be leased next where keys are ordered: [`Sweeper`].
//!
//! A message is passed over while an earlier one of its key is leased by another session or is delayed: its
//! key is blocked. A session may lease more of a key of which it leases some already, so all leased messages
//! of a key belong to one session, and a probe of an index for each other session tells what is blocked.
//!
//! A blocked hot key can put any number of messages in the way. A sweep that has passed over many remembers
//! how far it came and which keys were blocked, and the next one goes on from there. It forgets when any
//! message has returned to the group, which could be an earlier one of a key that lies ahead; when a key is
//! found free again; and after a time in proportion to what it passed over, so that it costs little.

use std::hash::BuildHasher;
use std::time::Duration;

use millstream_core::rt::{self, Instant};
use rusqlite::{Connection, OptionalExtension, Row, params};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use crate::group::Group;

/// Messages that one sweep looks at before it lets other writers in.
const STRIDE: usize = 10_000;
/// Messages that are passed over anew each time rather than remembered.
const FORGETTABLE: usize = 1000;
/// Blocked keys that are remembered; with more of them a sweep goes no further.
const REMEMBERED: usize = 250_000;
/// Blocked keys that are looked at again while a sweep is remembered; more than these wait until it is not.
const WATCHED: usize = 64;
/// How often they are looked at.
const WATCH: Duration = Duration::from_millis(100);
/// How long a sweep is remembered for each message that it passed over: ten times what passing it costs.
const MEMORY: Duration = Duration::from_micros(10);

const FRONT: &str = "
    SELECT id, priority, NULL FROM millstream_messages INDEXED BY millstream_ready
    WHERE queue = ?1 AND grp = ?2 AND lease IS NULL AND not_before = 0
    ORDER BY priority DESC, id LIMIT ?3";
const ALL: &str = "
    SELECT id, priority, key FROM millstream_messages INDEXED BY millstream_ready
    WHERE queue = ?1 AND grp = ?2 AND lease IS NULL AND not_before = 0
    ORDER BY priority DESC, id";
const SAME_PRIORITY: &str = "
    SELECT id, priority, key FROM millstream_messages INDEXED BY millstream_ready
    WHERE queue = ?1 AND grp = ?2 AND lease IS NULL AND not_before = 0 AND priority = ?3 AND id > ?4
    ORDER BY id";
const LOWER_PRIORITY: &str = "
    SELECT id, priority, key FROM millstream_messages INDEXED BY millstream_ready
    WHERE queue = ?1 AND grp = ?2 AND lease IS NULL AND not_before = 0 AND priority < ?3
    ORDER BY priority DESC, id";
const LEASED: &str = "
    SELECT 1 FROM millstream_messages INDEXED BY millstream_leased WHERE lease = ?1 AND key = ?2 LIMIT 1";
const DELAYED: &str = "
    SELECT id, priority FROM millstream_messages INDEXED BY millstream_delayed_keys
    WHERE queue = ?1 AND grp = ?2 AND key = ?3 AND not_before > 0
    ORDER BY priority DESC, id LIMIT 1";

/// A place in the order of delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: i64,
    priority: i64,
}

impl Place {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            priority: row.get(1)?,
        })
    }

    fn is_before(self, other: Self) -> bool {
        self.priority > other.priority || (self.priority == other.priority && self.id < other.id)
    }
}

/// What keeps a key's messages from being leased.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    elsewhere: bool,
    delayed: Option<Place>,
}

impl Verdict {
    fn blocks(self, place: Place) -> bool {
        self.elsewhere || self.delayed.is_some_and(|delayed| delayed.is_before(place))
    }
}

/// How far sweeps have come past blocked messages.
#[derive(Debug)]
struct Passed {
    to: Place,
    /// Hashes of the keys that were blocked: a collision holds a key up until all this is forgotten.
    blocked: FxHashSet<u64>,
    /// The first of these keys.
    watched: Vec<Vec<u8>>,
    next_watch: Instant,
    messages: usize,
    returned: i64,
    since: Instant,
}

impl Passed {
    fn nothing(returned: i64) -> Self {
        let now = rt::now();
        Self {
            to: Place {
                id: i64::MIN,
                priority: i64::MAX,
            },
            blocked: FxHashSet::default(),
            watched: Vec::new(),
            next_watch: now + WATCH,
            messages: 0,
            returned,
            since: now,
        }
    }

    fn until(&self) -> Instant {
        self.since + MEMORY.saturating_mul(u32::try_from(self.messages).unwrap_or(u32::MAX))
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// May be leased, in order.
    pub(crate) found: Vec<Place>,
    /// There may be more behind them.
    pub(crate) more: bool,
    passed: Option<Passed>,
}

/// Finds messages that may be leased.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    passed: Option<Passed>,
}

impl Sweeper {
    /// The first `most` messages, where nothing can be blocked.
    pub(crate) fn front(connection: &Connection, group: &Group, most: usize) -> rusqlite::Result<Swept> {
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let found: Vec<Place> = connection
            .prepare_cached(FRONT)?
            .query_map(params![group.queue, group.name, limit], Place::of)?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Swept {
            more: found.len() == most,
            found,
            passed: None,
        })
    }

    /// The first `most` messages whose keys are not blocked for the session with this token.
    pub(crate) fn ordered(
        &mut self,
        connection: &Connection,
        group: &Group,
        token: i64,
        most: usize,
        delayed: bool,
    ) -> rusqlite::Result<Swept> {
        let others: Vec<i64> = connection
            .prepare_cached(
                "SELECT token FROM millstream_sessions WHERE queue = ?1 AND grp = ?2 AND token <> ?3",
            )?
            .query_map(params![group.queue, group.name, token], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if others.is_empty() && !delayed {
            self.passed = None;
            return Self::front(connection, group, most);
        }
        let mut sweep = Sweep {
            connection,
            group,
            others,
            most,
            looked: 0,
            verdicts: FxHashMap::default(),
        };
        let returned = group.returned(connection)?;
        let mut swept = Swept::default();
        let mut remembered = self.passed.take().filter(|passed| passed.returned == returned);
        if let Some(passed) = &mut remembered
            && sweep.outdates(passed)?
        {
            remembered = None;
        }
        match remembered {
            Some(passed) => {
                let Place { id, priority } = passed.to;
                swept.passed = Some(passed);
                let same = params![group.queue, group.name, priority, id];
                let lower = params![group.queue, group.name, priority];
                if sweep.run(SAME_PRIORITY, same, &mut swept)? {
                    sweep.run(LOWER_PRIORITY, lower, &mut swept)?;
                }
            }
            None => {
                swept.passed = Some(Passed::nothing(returned));
                sweep.run(ALL, params![group.queue, group.name], &mut swept)?;
            }
        }
        Ok(swept)
    }

    /// Ends a sweep of which everything up to `last` was leased, or all if that is `None`; says when to sweep
    /// again though nothing has changed.
    pub(crate) fn finish(&mut self, swept: Swept, last: Option<Place>) -> Option<Instant> {
        self.passed = swept.passed.filter(|passed| passed.messages > FORGETTABLE);
        let passed = self.passed.as_mut()?;
        if let Some(last) = last {
            passed.to = last;
        }
        Some(passed.until().min(passed.next_watch))
    }
}

/// One sweep on its way.
struct Sweep<'a> {
    connection: &'a Connection,
    group: &'a Group,
    others: Vec<i64>,
    most: usize,
    looked: usize,
    verdicts: FxHashMap<Vec<u8>, Verdict>,
}

impl Sweep<'_> {
    /// Whether what is remembered is too old, or one of its keys is free again.
    fn outdates(&mut self, passed: &mut Passed) -> rusqlite::Result<bool> {
        let now = rt::now();
        if now >= passed.until() {
            return Ok(true);
        }
        if now < passed.next_watch {
            return Ok(false);
        }
        passed.next_watch = now + WATCH;
        for key in &passed.watched {
            let Verdict { elsewhere, delayed } = self.verdict(key)?;
            if !elsewhere && delayed.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes through the rows of one query; returns whether to go on behind them.
    fn run(
        &mut self,
        sql: &str,
        bounds: &[&dyn rusqlite::ToSql],
        swept: &mut Swept,
    ) -> rusqlite::Result<bool> {
        let Swept {
            found,
            more,
            passed: Some(passed),
        } = swept
        else {
            return Ok(false);
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(bounds)?;
        while let Some(row) = rows.next()? {
            if found.len() >= self.most || self.looked >= STRIDE {
                *more = true;
                return Ok(false);
            }
            if passed.blocked.len() >= REMEMBERED {
                return Ok(false);
            }
            self.looked += 1;
            let place = Place::of(row)?;
            let key = row.get_ref(2)?.as_blob_or_null().unwrap_or_default();
            if let Some(key) = key {
                let hash = FxBuildHasher.hash_one(key);
                if passed.blocked.contains(&hash) || self.verdict(key)?.blocks(place) {
                    if passed.blocked.insert(hash) && passed.watched.len() < WATCHED {
                        passed.watched.push(key.to_vec());
                    }
                    passed.messages += 1;
                    passed.to = place;
                    continue;
                }
            }
            passed.to = place;
            found.push(place);
        }
        Ok(true)
    }

    fn verdict(&mut self, key: &[u8]) -> rusqlite::Result<Verdict> {
        if let Some(&known) = self.verdicts.get(key) {
            return Ok(known);
        }
        let mut leased = self.connection.prepare_cached(LEASED)?;
        let mut elsewhere = false;
        for token in &self.others {
            elsewhere = elsewhere || leased.exists(params![token, key])?;
        }
        let delayed = self
            .connection
            .prepare_cached(DELAYED)?
            .query_row(params![self.group.queue, self.group.name, key], Place::of)
            .optional()?;
        let verdict = Verdict { elsewhere, delayed };
        self.verdicts.insert(key.to_vec(), verdict);
        Ok(verdict)
    }
}
