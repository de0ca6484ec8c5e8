//! A consumer that deduplicates with a store in SQLite, killed again and again, on a queue in which every message is
//! twice or more: each has its effect once, but for what was unsettled when a process was killed.

use std::collections::HashMap;

use millstream_sqlite::Counts;
use millstream_tests::ledger::{Event, Ledger, NOT_MEASURED, Record};
use millstream_tests::{Report, Scale, Work};

use crate::alone;
use crate::place::{Place, SOON};

#[test]
fn a_message_that_is_published_twice_has_its_effect_once_but_for_what_a_kill_left_unsettled() {
    let _machine = alone();
    let scale = Scale::of("sqlite_twins");
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let (copies, kills): (u32, u32) = (scale.get("copies"), scale.get("kills"));
    let in_flight: u32 = scale.get("in_flight");
    let work = Work {
        seed: scale.seed(),
        keys: scale.get("keys"),
        bytes: 16,
    };
    let place = Place::new();
    let mut numbers: Vec<u32> = (0..copies).flat_map(|_| 0..messages).collect();
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    // Twins come at any distance, and many of them close together.
    for chunk in numbers.chunks_mut(messages as usize / 4) {
        chance.shuffle(chunk);
    }
    let half = numbers.len() / 2;
    chance.shuffle(&mut numbers[half - half / 2..half + half / 2]);
    let outgoing: Vec<_> = numbers.iter().map(|number| work.message(*number)).collect();
    place.queue().publish(&outgoing).unwrap();

    let (ledger, records) = Ledger::new().unwrap();
    let arguments = [
        ("in_flight", in_flight.to_string()),
        ("by_key", "true".to_owned()),
        ("conduct", "busy".to_owned()),
        ("longest_us", "500".to_owned()),
        ("deduplicate", "true".to_owned()),
    ];
    let start = |number| place.start("consume", number, &ledger, &arguments);
    let mut consumer = start(0);
    let (got, reader) = records.in_background();
    let mut history = Lives::default();
    for life in 1..=kills {
        // Kills are spread over the work, and none comes when all is done.
        let after = messages * life / (kills + 1);
        while history.effects() < after {
            history.add(got.recv_timeout(SOON).expect("the consumer goes on"));
        }
        consumer.kill();
        ledger.write(dead(life - 1));
        consumer = start(life);
        while history.lives < life {
            history.add(got.recv_timeout(SOON).expect("the end of a life is noted"));
        }
    }
    let counts = place.until("empty", |counts| {
        counts.ready + counts.delayed + counts.leased == 0
    });
    consumer.dismiss();
    assert!(consumer.wait().success(), "it drains and ends");
    drop(ledger);
    reader.join().unwrap();
    got.try_iter().for_each(|record| history.add(record));

    assert_eq!(counts, Counts::default(), "nothing is left, and nothing is dead");
    assert_eq!(history.effects(), messages, "nothing is lost");
    assert_eq!(history.twice_in_a_life, 0, "no life does a message twice");
    let repeats = history.ended - messages;
    let most = history.repeats.values().max().copied().unwrap_or(0);
    assert!(
        most <= in_flight,
        "a kill repeats {most}, more than was unsettled"
    );
    report.add("messages", messages);
    report.add("copies of each in the queue", copies);
    report.add("kills", kills);
    report.add("effects", history.ended);
    report.add("effects repeated after a kill", repeats);
    report.add("  at most, after one kill", most);
    report.print();
}

fn dead(actor: u32) -> Record {
    Record::of(Event::Dead, actor, NOT_MEASURED)
}

/// What each life of the consumer did.
#[derive(Default)]
struct Lives {
    /// In which life each message had its effect last.
    last: HashMap<u32, u32>,
    ended: u32,
    lives: u32,
    twice_in_a_life: u32,
    /// Effects of an earlier life that a life repeats.
    repeats: HashMap<u32, u32>,
}

impl Lives {
    fn add(&mut self, record: Record) {
        match record.event {
            Event::Dead => self.lives += 1,
            Event::End => {
                self.ended += 1;
                match self.last.insert(record.number, record.actor) {
                    Some(life) if life == record.actor => self.twice_in_a_life += 1,
                    Some(life) => *self.repeats.entry(life).or_default() += 1,
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// How many messages had their effect.
    fn effects(&self) -> u32 {
        u32::try_from(self.last.len()).unwrap()
    }
}
