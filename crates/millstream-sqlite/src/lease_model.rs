//! Leases against a model that is plainly right: what two owners claim, renew, let expire, settle and leave behind when
//! they crash (P2, P3).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millstream_core::{Credit, OriginId, Outcome, Reason, Rejection, Settle, Settlement, Ticket};
use proptest::prelude::*;
use rusqlite::{Connection, params};

use crate::claim::Claims;
use crate::database::{Database, Durability};
use crate::group::Group;
use crate::session::{self, Session};
use crate::settle::settle;

const LEASE: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug)]
enum Step {
    Publish(Option<u8>),
    Claim(usize, usize),
    /// One of all that this owner has ever claimed, twice.
    Settle(usize, usize, How),
    Renew(usize),
    Expire(usize),
    /// It looks for sessions that have ended.
    Reap(usize),
    /// Its process ends, and another takes its place.
    Crash(usize),
    Close(usize),
    /// What is delayed is due.
    Due,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Ack,
    Reject,
    Release,
    Retry { delayed: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        3 => Just(How::Ack),
        1 => Just(How::Reject),
        2 => Just(How::Release),
        2 => any::<bool>().prop_map(|delayed| How::Retry { delayed }),
    ];
    let step = prop_oneof![
        5 => proptest::option::weighted(0.8, 0_u8..3).prop_map(Step::Publish),
        5 => (0_usize..2, 1_usize..5).prop_map(|(owner, most)| Step::Claim(owner, most)),
        5 => (0_usize..2, any::<usize>(), how).prop_map(|(owner, which, how)| Step::Settle(owner, which, how)),
        2 => (0_usize..2).prop_map(Step::Renew),
        2 => (0_usize..2).prop_map(Step::Expire),
        3 => (0_usize..2).prop_map(Step::Reap),
        1 => (0_usize..2).prop_map(Step::Crash),
        1 => (0_usize..2).prop_map(Step::Close),
        1 => Just(Step::Due),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Delayed,
    /// To the session with this token.
    Leased(i64),
    Dead,
    Gone,
}

#[derive(Debug)]
struct Modelled {
    key: Option<u8>,
    state: State,
    deliveries: u32,
    failures: u32,
}

/// A session that nobody has ended.
#[derive(Debug)]
struct Held {
    expired: bool,
    /// Its process lives.
    locked: bool,
}

#[derive(Debug, Default)]
struct Model {
    messages: Vec<Modelled>,
    sessions: BTreeMap<i64, Held>,
}

impl Model {
    /// What this session may lease now, in order.
    fn free(&self, token: i64) -> Vec<usize> {
        let free = |at: &usize| {
            let message = &self.messages[*at];
            let same = |other: &&Modelled| message.key.is_some() && other.key == message.key;
            let elsewhere = |other: &Modelled| matches!(other.state, State::Leased(owner) if owner != token);
            let delayed = |other: &Modelled| other.state == State::Delayed;
            message.state == State::Ready
                && !self.messages.iter().filter(same).any(elsewhere)
                && !self.messages[..*at].iter().filter(same).any(delayed)
        };
        (0..self.messages.len()).filter(free).collect()
    }

    fn end(&mut self, token: i64) {
        self.sessions.remove(&token);
        for message in &mut self.messages {
            if message.state == State::Leased(token) {
                message.state = State::Ready;
            }
        }
    }
}

/// One process, as far as leases go.
struct Owner {
    connection: Connection,
    claims: Claims,
    session: Session,
    generation: u32,
    /// All that it has claimed, with the token that it was leased by.
    claimed: Vec<(usize, i64, Ticket)>,
}

struct Both {
    database: Arc<Database>,
    group: Group,
    owners: Vec<Owner>,
    model: Model,
}

impl Both {
    /// This owner opens a session, and gives the one that it had.
    fn session(&mut self, owner: usize) -> Session {
        let of = &mut self.owners[owner];
        let next = Session::open(&self.database, &of.connection, &self.group, LEASE).unwrap();
        let old = std::mem::replace(&mut of.session, next);
        of.claims = Claims::new(true);
        of.generation += 1;
        let held = Held {
            expired: false,
            locked: true,
        };
        self.model.sessions.insert(of.session.token, held);
        old
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish(key) => {
                self.owners[0]
                    .connection
                    .execute(
                        "INSERT INTO millstream_messages (queue, key, payload) VALUES (?1, ?2, 'x')",
                        params![self.group.queue, key.map(|key| vec![key])],
                    )
                    .unwrap();
                self.model.messages.push(Modelled {
                    key,
                    state: State::Ready,
                    deliveries: 0,
                    failures: 0,
                });
            }
            Step::Claim(owner, most) => self.claim(owner, most),
            Step::Settle(owner, which, how) => self.settle(owner, which, how),
            Step::Renew(owner) => {
                let of = &self.owners[owner];
                let alive = of.session.is_alive(&of.connection).unwrap();
                let held = self.model.sessions.get_mut(&of.session.token);
                assert_eq!(alive, held.is_some());
                of.session.renew(&of.connection).unwrap();
                if let Some(held) = held {
                    held.expired = false;
                }
            }
            Step::Expire(owner) => {
                let of = &self.owners[owner];
                let token = of.session.token;
                of.connection
                    .execute(
                        "UPDATE millstream_sessions SET expires_at = 1 WHERE token = ?1",
                        [token],
                    )
                    .unwrap();
                if let Some(held) = self.model.sessions.get_mut(&token) {
                    held.expired = true;
                }
            }
            Step::Reap(owner) => {
                let of = &self.owners[owner];
                let own = of.session.token;
                let ended = session::reap(&self.database, &of.connection, own).unwrap();
                let over = |(token, held): (&i64, &Held)| {
                    (*token != own && (held.expired || !held.locked)).then_some(*token)
                };
                let over: Vec<_> = self.model.sessions.iter().filter_map(over).collect();
                assert_eq!(ended, !over.is_empty());
                over.into_iter().for_each(|token| self.model.end(token));
            }
            Step::Crash(owner) => {
                let old = self.session(owner);
                // As the operating system lets go of its lock.
                if let Some(held) = self.model.sessions.get_mut(&old.token) {
                    held.locked = false;
                }
            }
            Step::Close(owner) => {
                let old = self.session(owner);
                let token = old.token;
                old.close(&self.database, &self.owners[owner].connection).unwrap();
                self.model.end(token);
            }
            Step::Due => {
                self.owners[0]
                    .connection
                    .execute(
                        "UPDATE millstream_messages SET not_before = 1 WHERE not_before > 0",
                        [],
                    )
                    .unwrap();
                for message in &mut self.model.messages {
                    if message.state == State::Delayed {
                        message.state = State::Ready;
                    }
                }
            }
        }
    }

    fn claim(&mut self, owner: usize, messages: usize) {
        let of = &mut self.owners[owner];
        let token = of.session.token;
        if !of.session.is_alive(&of.connection).unwrap() {
            assert!(!self.model.sessions.contains_key(&token), "ended by nobody");
            return;
        }
        let expected: Vec<_> = self.model.free(token).into_iter().take(messages).collect();
        let credit = Credit {
            messages,
            bytes: usize::MAX,
        };
        let (claims, group) = (&mut of.claims, &self.group);
        let claimed = self
            .database
            .write(&of.connection, |connection| {
                claims.claim(connection, group, token, credit)
            })
            .unwrap();
        let got: Vec<_> = claimed
            .messages
            .iter()
            .map(|message| message.position as usize - 1)
            .collect();
        assert_eq!(got, expected, "P3");
        for (at, message) in got.into_iter().zip(claimed.messages) {
            let modelled = &mut self.model.messages[at];
            modelled.state = State::Leased(token);
            modelled.deliveries += 1;
            assert_eq!(
                (message.deliveries, message.failures),
                (modelled.deliveries, modelled.failures)
            );
            let ticket = Ticket::new(of.generation, OriginId::default(), message.position);
            of.claimed.push((at, token, ticket));
        }
    }

    fn settle(&mut self, owner: usize, which: usize, how: How) {
        let of = &self.owners[owner];
        let Some((at, by, ticket)) = of.claimed.get(which % of.claimed.len().max(1)).copied() else {
            return;
        };
        let settlement = match how {
            How::Ack => Settlement::Ack,
            How::Reject => Settlement::Reject(Arc::new(rejection())),
            How::Release => Settlement::Release,
            How::Retry { delayed } => Settlement::Retry {
                after: if delayed { LEASE } else { Duration::ZERO },
                failures: 2,
            },
        };
        let settle_twice = vec![Settle { ticket, settlement }; 2];
        let token = of.session.token;
        let outcomes = self
            .database
            .write(&of.connection, |connection| {
                settle(connection, &self.group, token, of.generation, &settle_twice)
            })
            .unwrap();
        let message = &mut self.model.messages[at];
        // A lease that is over is fenced off, also where the message is leased anew.
        let mine = by == token && message.state == State::Leased(token);
        let first = if mine { Outcome::Sent } else { Outcome::Stale };
        assert_eq!(
            outcomes,
            [first, Outcome::Stale],
            "P2: {message:?}, claimed by {by}, settled by {token}"
        );
        if !mine {
            return;
        }
        message.state = match how {
            How::Ack => State::Gone,
            How::Reject => State::Dead,
            How::Retry { delayed: true } => State::Delayed,
            How::Release | How::Retry { delayed: false } => State::Ready,
        };
        match how {
            How::Release => message.deliveries -= 1,
            How::Retry { .. } => (message.deliveries, message.failures) = (0, 2),
            How::Ack | How::Reject => {}
        }
    }

    /// Every row, and every session, is what the model says.
    fn compare(&self) {
        let connection = &self.owners[0].connection;
        let mut rows = connection
            .prepare(
                "SELECT id, lease, not_before > 1, deliveries, failures FROM millstream_messages ORDER BY id",
            )
            .unwrap();
        let rows: Vec<(usize, State, u32, u32)> = rows
            .query_map([], |row| {
                let (id, lease, delayed): (i64, Option<i64>, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let state = match lease {
                    Some(token) => State::Leased(token),
                    None if delayed => State::Delayed,
                    None => State::Ready,
                };
                Ok((id as usize - 1, state, row.get(3)?, row.get(4)?))
            })
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let there = |message: &Modelled| !matches!(message.state, State::Dead | State::Gone);
        let messages = self.model.messages.iter().enumerate();
        let expected: Vec<_> = messages
            .filter(|(_, message)| there(message))
            .map(|(at, message)| (at, message.state, message.deliveries, message.failures))
            .collect();
        assert_eq!(rows, expected);
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let dead = self
            .model
            .messages
            .iter()
            .filter(|message| message.state == State::Dead);
        assert_eq!(
            number("SELECT count(*) FROM millstream_dead"),
            dead.count() as i64
        );
        let sessions = number("SELECT count(*) FROM millstream_sessions");
        assert_eq!(sessions, self.model.sessions.len() as i64);
    }
}

fn rejection() -> Rejection {
    Rejection {
        pipeline: "orders".into(),
        stage: "processor".into(),
        reason: Reason::Rejected,
        error: "no".to_owned(),
        attempts: 1,
        deliveries: 1,
        origin: "orders@1".to_owned(),
        first_at: SystemTime::now(),
        at: SystemTime::now(),
    }
}

fn run(steps: &[Step]) {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::at(&directory.path().join("queue.db")).unwrap();
    let group = Group {
        queue: "orders".to_owned(),
        name: "default".to_owned(),
    };
    let mut model = Model::default();
    let owners = (0..2).map(|_| {
        let connection = database.connect(Durability::Order).unwrap();
        let session = Session::open(&database, &connection, &group, LEASE).unwrap();
        let held = Held {
            expired: false,
            locked: true,
        };
        model.sessions.insert(session.token, held);
        Owner {
            connection,
            claims: Claims::new(true),
            session,
            generation: 1,
            claimed: Vec::new(),
        }
    });
    let owners = owners.collect();
    let mut both = Both {
        database,
        group,
        owners,
        model,
    };
    for step in steps {
        both.step(step);
        both.compare();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p2_p3_leases_and_a_model_that_is_plainly_right_agree(steps in steps()) {
        run(&steps);
    }
}
