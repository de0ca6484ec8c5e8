//! A rate limit in a database, of several connections and of several processes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::num::NonZeroU32;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_core::{Ask, Pace, RateStore as _, Turns};
use millstream_sqlite::rusqlite::Connection;
use millstream_sqlite::{Queue, SqliteRates};

fn ask(key: &str, per_second: u32, burst: u32, number: u32) -> Ask {
    Ask {
        key: key.to_owned().into(),
        pace: Pace {
            each: Duration::from_secs(1) / per_second,
            burst: NonZeroU32::new(burst).unwrap(),
        },
        number,
        returns: false,
    }
}

fn rows(path: &Path) -> i64 {
    Connection::open(path)
        .unwrap()
        .query_row("SELECT count(*) FROM millstream_rates", [], |row| row.get(0))
        .unwrap()
}

/// What the database says was taken of a key, and when: in messages, and microseconds.
fn taken(path: &Path, key: &str) -> Option<(f64, i64)> {
    Connection::open(path)
        .unwrap()
        .query_row(
            "SELECT taken, at FROM millstream_rates WHERE key = ?1",
            [key.as_bytes()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .ok()
}

#[tokio::test]
async fn one_pipeline_has_one_limit_for_each_key_however_many_ask() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let [one, two] = [(); 2].map(|()| SqliteRates::new(&path, "orders"));
    let hourly = |key, number| Ask {
        pace: Pace {
            each: Duration::from_secs(3_600),
            burst: NonZeroU32::new(5).unwrap(),
        },
        ..ask(key, 1, 1, number)
    };
    let turns = one.take(&[hourly("a", 3), hourly("", 5)]).await.unwrap();
    assert_eq!((turns[0].now, turns[1].now), (3, 5));
    let turns = two.take(&[hourly("b", 1), hourly("a", 4)]).await.unwrap();
    assert_eq!((turns[0].now, turns[1].now), (1, 2));
    let hour = Duration::from_secs(3_600);
    assert!(turns[1].wait <= hour && turns[1].wait > hour - Duration::from_secs(60));
    let other = SqliteRates::new(&path, "audit");
    assert_eq!(other.take(&[hourly("a", 5)]).await.unwrap()[0].now, 5);
    assert_eq!(one.take(&[]).await.unwrap(), []);
    drop((one, two));
    let later = SqliteRates::new(&path, "orders");
    let turns = later.take(&[hourly("a", 1)]).await.unwrap();
    assert_eq!(turns[0].now, 0, "after a restart too");
}

/// Four threads with connections of their own take what they can; the database has the count, and the time.
#[test]
fn p4_four_at_once_take_what_the_limit_allows_and_no_more() {
    const RATE: u32 = 2_000;
    // Ten seconds' worth: a machine that is slow for a while leaves it unused, and loses nothing.
    const BURST: u32 = 20_000;
    const NUMBER: u32 = 80;
    let directory = tempfile::tempdir().unwrap();
    let path = Arc::new(directory.path().join("limits.db"));
    let open = Arc::new(Barrier::new(5));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (path, open) = (Arc::clone(&path), Arc::clone(&open));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let rates = SqliteRates::new(&*path, "orders");
                    rates.take(&[ask("other", RATE, BURST, 1)]).await.unwrap();
                    open.wait();
                    let mut had = 0;
                    for _ in 0..85 {
                        let turns = rates.take(&[ask("a", RATE, BURST, NUMBER)]).await.unwrap()[0];
                        had += NUMBER;
                        tokio::time::sleep(last(turns, RATE, NUMBER)).await;
                    }
                    had
                })
            })
        })
        .collect();
    let before = now();
    open.wait();
    let had: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let after = now();
    // Each had its turns when they had come, so all of them lie between the two readings of the clock.
    let allowed = f64::from(BURST) + f64::from(RATE) * (after - before) as f64 / 1e6;
    assert!(f64::from(had) <= allowed + 1.0, "{had} of {allowed}");
    // No turn that was taken is forgotten, and a bucket that is never full loses nothing.
    let (taken, at) = taken(&path, "a").unwrap();
    let made_up_for = f64::from(RATE) * (at - before) as f64 / 1e6;
    assert!(taken >= f64::from(had) - made_up_for - 1.0, "{taken} of {had}");
    let allowed = f64::from(BURST) + made_up_for;
    assert!(
        f64::from(had) >= allowed * 0.9,
        "{had} of {allowed} by the database's clock"
    );
}

/// How long the last of so many waits for its turn.
fn last(turns: Turns, per_second: u32, number: u32) -> Duration {
    let others = (number - turns.now).saturating_sub(1);
    turns.wait + Duration::from_secs(1) / per_second * others
}

fn now() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// The other process of the test below: it takes one turn after the other, and says so, until it is killed.
#[test]
#[ignore = "it is run by another test"]
fn taker() {
    let [path, key] = ["MILLSTREAM_RATES", "MILLSTREAM_KEY"].map(|name| std::env::var(name).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let rates = SqliteRates::new(path, "orders");
        loop {
            let turns = rates.take(&[ask(&key, 500, 50, 5)]).await.unwrap()[0];
            tokio::time::sleep(last(turns, 500, 5)).await;
        }
    });
}

struct Taker(Child);

impl Taker {
    fn start(path: &Path, key: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "taker", "--ignored", "--nocapture"])
            .env("MILLSTREAM_RATES", path)
            .env("MILLSTREAM_KEY", key)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_process_that_is_killed_leaves_nothing_taken_but_what_it_had_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let rates = SqliteRates::new(&path, "orders");
    rates.take(&[ask("other", 1, 1, 1)]).await.unwrap();
    for key in ["a", "b", "c"] {
        let takers: Vec<_> = (0..2).map(|_| Taker::start(&path, key)).collect();
        let until = Instant::now() + Duration::from_secs(60);
        while taken(&path, key).is_none_or(|(taken, _)| taken < 50.0) {
            assert!(
                Instant::now() < until,
                "the two never take more than the rate makes up for"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(takers);
        let (taken, _) = taken(&path, key).unwrap();
        assert!(
            taken <= 50.0 + 2.0 * 5.0,
            "{taken}, of a burst of fifty and five for each"
        );
        let turns = rates.take(&[ask(key, 500, 50, 1)]).await.unwrap()[0];
        assert!(turns.wait <= Duration::from_millis(2) * 11, "{:?}", turns.wait);
    }
}

#[tokio::test]
async fn rows_of_idle_keys_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let rates = SqliteRates::new(&path, "orders");
    let many: Vec<_> = (0..500).map(|key| ask(&key.to_string(), 100_000, 1, 1)).collect();
    rates.take(&many).await.unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while rows(&path) > 10 {
        rates.take(&many[..5]).await.unwrap();
        assert!(Instant::now() < until, "{} rows", rows(&path));
    }
}

#[tokio::test]
async fn it_shares_a_file_with_a_queue_and_a_database_that_cannot_be_opened_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("later").join("orders.db");
    let rates = SqliteRates::new(&path, "orders");
    let error = rates.take(&[ask("a", 1, 1, 1)]).await.unwrap_err().to_string();
    assert!(error.contains("orders.db"), "{error}");
    std::fs::create_dir(directory.path().join("later")).unwrap();
    let queue = Queue::open(&path, "orders").unwrap();
    queue.publish(&[millstream_core::Outgoing::new("one")]).unwrap();
    assert_eq!(rates.take(&[ask("a", 1, 1, 1)]).await.unwrap()[0].now, 1);
    assert_eq!(queue.counts().unwrap().ready, 1);
}

/// What somebody drops is made again: one call says what was wrong, and the next has a limit.
#[tokio::test]
async fn a_table_that_is_dropped_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let rates = SqliteRates::new(&path, "orders");
    rates.take(&[ask("a", 1, 1, 1)]).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("DROP TABLE millstream_rates").unwrap();
    let error = rates.take(&[ask("a", 1, 1, 1)]).await.unwrap_err().to_string();
    assert!(error.contains("millstream_rates"), "{error}");
    assert_eq!(rates.take(&[ask("a", 1, 1, 1)]).await.unwrap()[0].now, 1);
}
