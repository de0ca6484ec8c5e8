//! Many at once: nothing is lost, nothing is handed to two.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use parking_lot::Mutex;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p1_p2_publishers_and_consumers_at_once_lose_and_double_nothing() {
    const PUBLISHERS: usize = 3;
    const EACH: usize = 2000;
    let place = Arc::new(Place::new());
    drop(place.reader().await);
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut tasks = Vec::new();
    for publisher in 0..PUBLISHERS {
        let place = Arc::clone(&place);
        tasks.push(millstream_core::rt::spawn(async move {
            let numbers: Vec<usize> = (0..EACH).collect();
            for some in numbers.chunks(37) {
                let messages: Vec<_> = some
                    .iter()
                    .map(|number| message(&format!("{publisher}-{number}")))
                    .collect();
                place.publish(&messages).await;
            }
        }));
    }
    for _ in 0..2 {
        let (place, seen) = (Arc::clone(&place), Arc::clone(&seen));
        tasks.push(millstream_core::rt::spawn(async move {
            let mut reader = place.reader().await;
            while seen.lock().len() < PUBLISHERS * EACH {
                let read = tokio::time::timeout(A_WHILE, reader.read(50));
                let Ok(got) = read.await else { continue };
                for payload in payloads(&got) {
                    assert!(seen.lock().insert(payload), "each is handed out once");
                }
                reader.ack(&got).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        place.queue().counts().unwrap(),
        millstream_sqlite::Counts::default()
    );
}

#[test]
fn a_database_that_many_open_at_once_for_the_first_time_is_made_once() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| place.queue().publish(&[message("x")]).unwrap());
        }
    });
    assert_eq!(place.queue().counts().unwrap().ready, 8);
}

/// A queue was taken for empty whose last message had just gone from a process that had died to the next one.
#[test]
fn what_goes_from_one_state_to_another_is_counted_in_one_of_them() {
    let place = Place::new();
    place.queue().publish(&[message("the only one")]).unwrap();
    let (raw, queue, counted) = (place.raw(), place.queue(), AtomicBool::new(false));
    raw.pragma_update(None, "synchronous", "off").unwrap();
    let wrong: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let raw = raw;
            while !counted.load(Ordering::Relaxed) {
                for not_before in [1, 0] {
                    raw.execute("UPDATE millstream_messages SET not_before = ?1", [not_before])
                        .unwrap();
                }
            }
        });
        let counts = (0..3_000).map(|_| queue.counts());
        let wrong =
            counts.filter(|counts| !matches!(counts, Ok(counts) if counts.ready + counts.delayed == 1));
        let wrong = wrong.collect();
        counted.store(true, Ordering::Relaxed);
        wrong
    });
    assert!(wrong.is_empty(), "{} times, such as {:?}", wrong.len(), wrong[0]);
}
