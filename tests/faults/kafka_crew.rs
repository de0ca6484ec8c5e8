//! The members of a group, and what is done to them: [`Crew`], [`plan`].

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_tests::Actor;
use millstream_tests::ledger::{Event, Ledger, Record};

use crate::place::SOON;

/// How many members there always are, and at most.
const MEMBERS: usize = 4;
const MOST: usize = MEMBERS + 1;

/// How many members stand still at once, at most.
const FROZEN: usize = 2;

/// What is done to the member in this seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deed {
    seat: usize,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// Killed, and another started in its seat.
    Kill,
    /// Started, in an empty seat.
    Join,
    /// Told to drain and end.
    Leave,
    /// Stopped where it is.
    Freeze,
    /// Let go on.
    Thaw,
    /// Its connections closed.
    Cut,
}

/// What is done at each of so many ticks, all of it from the seed; whoever is frozen is let go on by the end. A tick
/// has one deed, and those by which what was done before comes to its end.
pub(crate) fn plan(seed: u64, ticks: usize) -> Vec<Vec<Deed>> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut seats = [Some(0); MOST];
    seats[MEMBERS] = None;
    let mut plan = Vec::new();
    for tick in 1..=ticks {
        let mut deeds = Vec::new();
        // A seat says from which tick on its member is awake.
        for (seat, member) in seats.iter().enumerate() {
            if *member == Some(tick) {
                deeds.push(Deed {
                    seat,
                    what: What::Thaw,
                });
            }
        }
        let awake: Vec<_> = (0..MOST)
            .filter(|seat| seats[*seat].is_some_and(|from| from <= tick))
            .collect();
        let asleep = seats.iter().flatten().count() - awake.len();
        let empty = seats.iter().position(Option::is_none);
        let seat = awake[chance.usize(..awake.len())];
        let deed = match (chance.u8(..4), empty) {
            (0, _) => Deed {
                seat,
                what: What::Kill,
            },
            (1, Some(seat)) => {
                seats[seat] = Some(tick);
                Deed {
                    seat,
                    what: What::Join,
                }
            }
            (1, None) => {
                seats[seat] = None;
                Deed {
                    seat,
                    what: What::Leave,
                }
            }
            (2, _) if asleep < FROZEN && tick < ticks => {
                // Shorter than a session of three ticks, or longer.
                let ticks_long = if chance.bool() { 1 } else { 5 };
                seats[seat] = Some((tick + ticks_long).min(ticks));
                Deed {
                    seat,
                    what: What::Freeze,
                }
            }
            _ => Deed {
                seat,
                what: What::Cut,
            },
        };
        deeds.push(deed);
        plan.push(deeds);
    }
    plan
}

/// The members, by their seats.
pub(crate) struct Crew {
    ledger: Ledger,
    arguments: Vec<String>,
    ports: Vec<u16>,
    seats: Vec<Option<Actor>>,
    leaving: Vec<Actor>,
    started: u32,
    done: BTreeMap<What, usize>,
    closed: usize,
}

impl Crew {
    /// Starts them; what is closed when one is cut off are its connections to these ports.
    pub(crate) fn hire(ledger: Ledger, arguments: Vec<String>, ports: Vec<u16>) -> Self {
        let mut crew = Self {
            ledger,
            arguments,
            ports,
            seats: (0..MOST).map(|_| None).collect(),
            leaving: Vec::new(),
            started: 0,
            done: BTreeMap::new(),
            closed: 0,
        };
        for seat in 0..MEMBERS {
            crew.start(seat);
        }
        crew
    }

    fn start(&mut self, seat: usize) {
        let actor = Actor::start(
            env!("CARGO_BIN_EXE_actor"),
            self.started,
            &self.ledger,
            &self.arguments,
        );
        self.started += 1;
        self.seats[seat] = Some(actor);
    }

    fn note(&self, event: Event, actor: u32) {
        self.ledger.write(Record::of(event, actor, 0));
    }

    /// Does it.
    pub(crate) fn deal(&mut self, Deed { seat, what }: Deed) {
        *self.done.entry(what).or_default() += 1;
        if what == What::Join {
            return self.start(seat);
        }
        let mut actor = self.seats[seat].take().expect("the seat is taken");
        let number = actor.number;
        assert_eq!(actor.ended(), None, "member {number} ended by itself");
        match what {
            What::Kill => {
                self.note(Event::Killing, number);
                actor.kill();
                self.note(Event::Dead, number);
                return self.start(seat);
            }
            What::Leave => {
                actor.dismiss();
                self.leaving.push(actor);
                return;
            }
            What::Freeze => {
                self.note(Event::Breaking, number);
                actor.freeze();
            }
            What::Thaw => {
                actor.thaw();
                self.note(Event::Mended, number);
            }
            What::Cut => {
                self.note(Event::Breaking, number);
                self.closed += self.ports.iter().map(|port| actor.cut(*port)).sum::<usize>();
                self.note(Event::Mended, number);
            }
            What::Join => {}
        }
        self.seats[seat] = Some(actor);
    }

    /// What was done, and how often; and how many connections were closed.
    pub(crate) fn done(&self) -> (&BTreeMap<What, usize>, usize) {
        (&self.done, self.closed)
    }

    /// Ends all members as they ought to end.
    pub(crate) fn dismiss(&mut self) {
        let stayed = self.seats.iter_mut().filter_map(Option::take);
        let mut all: Vec<_> = self.leaving.drain(..).chain(stayed).collect();
        all.iter_mut().for_each(Actor::dismiss);
        let until = Instant::now() + SOON;
        for actor in &mut all {
            let ended = loop {
                if let Some(ended) = actor.ended() {
                    break ended;
                }
                assert!(Instant::now() < until, "member {} does not end", actor.number);
                std::thread::sleep(Duration::from_millis(10));
            };
            assert!(
                ended.success(),
                "member {} drains and ends: {ended}",
                actor.number
            );
        }
    }
}
