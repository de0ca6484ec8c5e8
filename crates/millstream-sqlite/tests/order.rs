//! Order across sessions (P3): no message of a key goes out while an earlier one is elsewhere or waits.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use millstream_core::{Chunk, Connector as _, Credit, Outcome, Settle, Settlement, Source as _};
use parking_lot::Mutex;

async fn ordered(place: &Place) -> Reader {
    Reader::open(&place.connector().ordered(true)).await
}

/// The engine gives the tails of long lanes back to a store that says so, and counts on their order.
#[test]
fn p3_a_connector_says_that_it_orders_keys_only_where_it_does() {
    let place = Place::new();
    for ordered in [false, true] {
        assert_eq!(
            place.connector().ordered(ordered).capabilities().orders_keys,
            ordered
        );
    }
}

#[tokio::test]
async fn p3_a_key_that_another_session_has_is_passed_over() {
    let place = Place::new();
    place
        .publish(&[
            keyed("a", "a1"),
            keyed("a", "a2"),
            keyed("b", "b1"),
            message("free"),
            keyed("a", "a3"),
        ])
        .await;
    let (mut one, mut two) = (ordered(&place).await, ordered(&place).await);
    let first = one.one().await;
    assert_eq!(payloads(std::slice::from_ref(&first)), ["a1"]);
    let theirs = two.read(10).await;
    assert_eq!(payloads(&theirs), ["b1", "free"]);
    assert!(two.finds_nothing().await);
    let second = one.read(10).await;
    assert_eq!(
        payloads(&second),
        ["a2", "a3"],
        "a session may have more of its own keys"
    );
    one.ack(&[first]).await;
    assert!(two.finds_nothing().await);
    let release = |(ticket, _): &Delivery| Settle {
        ticket: *ticket,
        settlement: Settlement::Release,
    };
    one.settle_all(&second.iter().map(release).collect::<Vec<_>>())
        .await;
    assert_eq!(payloads(&two.collect(2).await), ["a2", "a3"]);
}

#[tokio::test]
async fn p3_a_delayed_message_holds_back_what_follows_it_and_nothing_else() {
    let place = Place::new();
    place
        .publish(&[keyed("a", "a1"), keyed("a", "a2"), keyed("b", "b1")])
        .await;
    let mut reader = ordered(&place).await;
    let (ticket, _) = reader.one().await;
    let not_before = now() + 300;
    let retry = Settlement::Retry {
        after: Duration::from_millis(300),
        failures: 1,
    };
    assert_eq!(reader.settle(ticket, retry).await, Outcome::Sent);
    assert_eq!(payloads(&reader.read(10).await), ["b1"]);
    assert_eq!(payloads(&reader.collect(2).await), ["a1", "a2"]);
    assert!(now() >= not_before);
}

#[tokio::test]
async fn p3_a_later_delayed_message_does_not_hold_back_an_earlier_one() {
    let place = Place::new();
    let mut later = keyed("a", "a2");
    later.delay = Duration::from_secs(3600);
    place.publish(&[keyed("a", "a1"), later, keyed("a", "a3")]).await;
    let mut reader = ordered(&place).await;
    assert_eq!(payloads(&reader.read(10).await), ["a1"]);
    assert!(reader.finds_nothing().await);
}

#[tokio::test]
async fn p3_the_keys_of_a_session_that_ends_are_free_at_once() {
    let place = Place::new();
    place.publish(&[keyed("a", "a1"), keyed("a", "a2")]).await;
    let (mut one, mut two) = (ordered(&place).await, ordered(&place).await);
    one.one().await;
    assert!(two.finds_nothing().await);
    drop(one);
    assert_eq!(payloads(&two.collect(2).await), ["a1", "a2"]);
}

/// A fetch may bring more than is then read, as when demand has fallen meanwhile.
#[tokio::test]
async fn p3_what_was_fetched_and_not_read_is_not_read_before_what_has_gone_back() {
    let place = Place::new();
    let names = ["a1", "a2", "a3", "a4", "a5"];
    place.publish(&names.map(|name| keyed("a", name))).await;
    let after = Duration::from_millis(50);
    let retry = Settlement::Retry { after, failures: 0 };
    for settlement in [retry, Settlement::Release] {
        let mut reader = ordered(&place).await;
        loop {
            let mut chunk = Chunk::new();
            let credit = Credit {
                messages: names.len(),
                bytes: usize::MAX,
            };
            {
                // Asked once, and dropped when it has been fetched: it is the fetch that is wanted, not its messages.
                let mut read = std::pin::pin!(reader.source.read(credit, &mut chunk));
                let was_quick = tokio::select! {
                    biased;
                    _ = &mut read => true,
                    () = std::future::ready(()) => false,
                };
                if !was_quick {
                    until("a fetch", || place.queue().counts().unwrap().leased == 5).await;
                    break;
                }
            }
            for (ticket, _) in chunk.drain() {
                assert_eq!(reader.settle(ticket, Settlement::Release).await, Outcome::Sent);
            }
        }
        let (ticket, _) = reader.one().await;
        assert_eq!(reader.settle(ticket, settlement).await, Outcome::Sent);
        assert_eq!(payloads(&reader.collect(5).await), names);
    }
}

/// A key of which there are more messages than a sweep passes over anew each time.
#[tokio::test]
async fn p5_a_blocked_hot_key_does_not_keep_a_session_from_the_keys_behind_it() {
    let place = Place::new();
    let hot: Vec<_> = (0..30_000)
        .map(|number| keyed("hot", &number.to_string()))
        .collect();
    place.publish(&hot).await;
    place.publish(&[keyed("b", "b1"), message("free")]).await;
    let (mut one, mut two) = (ordered(&place).await, ordered(&place).await);
    let first = one.one().await;
    assert_eq!(payloads(&two.collect(2).await), ["b1", "free"]);
    place.publish(&[keyed("hot", "last"), keyed("c", "c1")]).await;
    assert_eq!(payloads(&two.read(10).await), ["c1"]);
    // What comes back lies before everything that was passed over, and must come first again.
    assert_eq!(one.settle(first.0, Settlement::Release).await, Outcome::Sent);
    assert_eq!(payloads(&two.collect(3).await), ["0", "1", "2"]);
}

/// Nothing tells a session that another has acknowledged the last message that it had of a key.
#[tokio::test]
async fn p3_a_hot_key_that_was_passed_over_is_found_once_it_is_free() {
    let place = Place::new();
    let hot: Vec<_> = (0..5_000)
        .map(|number| keyed("hot", &number.to_string()))
        .collect();
    place.publish(&hot).await;
    let (mut one, mut two) = (ordered(&place).await, ordered(&place).await);
    let first = one.one().await;
    assert!(two.finds_nothing().await);
    one.ack(&[first]).await;
    assert_eq!(payloads(&two.collect(2).await), ["1", "2"]);
}

/// Two sessions and a publisher at once: for no key do two messages run at the same time, and each key's
/// messages end in the order in which they were published.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p3_two_sessions_never_have_the_same_key_and_each_key_keeps_its_order() {
    const KEYS: usize = 7;
    const EACH: usize = 120;
    let place = Arc::new(Place::new());
    drop(place.reader().await);
    let running: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let ended: Arc<Mutex<BTreeMap<String, Vec<usize>>>> = Arc::default();
    let mut tasks = Vec::new();
    for session in 1..=3 {
        let (place, running, ended) = (Arc::clone(&place), Arc::clone(&running), Arc::clone(&ended));
        tasks.push(millstream_core::rt::spawn(async move {
            let mut reader = ordered(&place).await;
            let mut turn = session;
            loop {
                let read = tokio::time::timeout(Duration::from_millis(50), reader.read(turn % 5 + 1)).await;
                if ended.lock().values().map(Vec::len).sum::<usize>() == KEYS * EACH {
                    return;
                }
                let Ok(got) = read else { continue };
                for (_, message) in &got {
                    let key = String::from_utf8(message.key.clone().unwrap().to_vec()).unwrap();
                    let owner = *running.lock().entry(key).or_insert(session);
                    assert_eq!(owner, session, "a key is with one session at a time");
                }
                tokio::task::yield_now().await;
                let mut settlements = Vec::new();
                let mut given_back = false;
                for (ticket, message) in &got {
                    let key = String::from_utf8(message.key.clone().unwrap().to_vec()).unwrap();
                    turn += 1;
                    given_back |= turn % 11 == 0;
                    let after = Duration::from_millis(turn as u64 % 3);
                    let settlement = match () {
                        () if !given_back => {
                            let number = String::from_utf8(message.payload.to_vec())
                                .unwrap()
                                .parse()
                                .unwrap();
                            ended.lock().entry(key).or_default().push(number);
                            Settlement::Ack
                        }
                        () if turn % 2 == 0 => Settlement::Retry { after, failures: 1 },
                        () => Settlement::Release,
                    };
                    settlements.push(Settle {
                        ticket: *ticket,
                        settlement,
                    });
                }
                for (_, message) in &got {
                    running
                        .lock()
                        .remove(std::str::from_utf8(message.key.as_ref().unwrap()).unwrap());
                }
                for outcome in reader.settle_all(&settlements).await {
                    assert_eq!(outcome, Outcome::Sent);
                }
            }
        }));
    }
    for number in 0..EACH {
        let all: Vec<_> = (0..KEYS)
            .map(|key| keyed(&key.to_string(), &number.to_string()))
            .collect();
        place.publish(&all).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    for (key, numbers) in ended.lock().iter() {
        assert_eq!(*numbers, (0..EACH).collect::<Vec<_>>(), "key {key}");
    }
}
