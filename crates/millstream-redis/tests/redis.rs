//! The store of ids against a real Redis.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::time::Duration;

use bytes::Bytes;
use millstream_brokers::Redis;
use millstream_core::{DedupError, DedupStore as _};
use millstream_redis::RedisStore;
use tokio::task::spawn_blocking;

const HOUR: Duration = Duration::from_secs(3_600);

fn ids(range: std::ops::Range<usize>) -> Vec<Bytes> {
    range.map(|number| Bytes::from(format!("id {number}"))).collect()
}

async fn start() -> Redis {
    spawn_blocking(Redis::start).await.unwrap().unwrap()
}

/// Asks until the store gives an answer that `good` takes, for half a minute at most.
async fn until(store: &RedisStore, id: usize, good: impl Fn(Result<Vec<bool>, DedupError>) -> bool) {
    for _ in 0..3_000 {
        if good(store.seen(&ids(id..id + 1)).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store never said so");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_has_entered_another_sees_and_another_pipeline_does_not() {
    let redis = start().await;
    let one = RedisStore::new(&redis.url(), "orders").unwrap();
    assert_eq!(one.enter(&ids(0..500), HOUR).await.unwrap(), 0);
    let two = RedisStore::new(&redis.url(), "orders").unwrap();
    let seen = two.seen(&ids(0..1_000)).await.unwrap();
    assert!(seen[..500].iter().all(|seen| *seen) && !seen[500..].contains(&true));
    let other = RedisStore::new(&redis.url(), "audit").unwrap();
    assert_eq!(other.seen(&ids(0..1)).await.unwrap(), [false]);
    assert_eq!(one.seen(&[]).await.unwrap(), [] as [bool; 0]);
    one.enter(&[], HOUR).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_any_bytes_and_goes_when_its_window_is_over() {
    let redis = start().await;
    let store = RedisStore::new(&redis.url(), "orders").unwrap();
    let odd = [Bytes::from_static(b"\0\r\n \xff")];
    store.enter(&odd, HOUR).await.unwrap();
    store.enter(&ids(0..1), Duration::from_millis(100)).await.unwrap();
    until(&store, 0, |seen| seen.unwrap() == [false]).await;
    assert_eq!(store.seen(&odd).await.unwrap(), [true]);
}

/// What Redis has confirmed outlives it, as it is told to write it first.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_redis_is_killed_says_so_and_knows_all_when_it_is_back() {
    let mut redis = start().await;
    let store = RedisStore::new(&redis.url(), "orders").unwrap();
    store.enter(&ids(0..100), HOUR).await.unwrap();
    let redis = spawn_blocking(move || {
        redis.kill();
        redis
    });
    let mut redis = redis.await.unwrap();
    let error = store.seen(&ids(0..1)).await.unwrap_err().to_string();
    assert!(error.starts_with("Redis: "), "{error}");
    let error = store.enter(&ids(0..1), HOUR).await.unwrap_err().to_string();
    assert!(error.starts_with("Redis: "), "{error}");
    let redis = spawn_blocking(move || {
        redis.start_again().unwrap();
        redis
    });
    let _redis = redis.await.unwrap();
    until(&store, 99, |seen| seen.is_ok_and(|seen| seen == [true])).await;
}

#[test]
fn what_is_no_url_of_redis_is_refused_without_a_word_of_it() {
    for url in ["http://:secret@host", "redis", "rediss://:secret@host"] {
        let error = RedisStore::new(url, "orders").unwrap_err().to_string();
        assert!(error.contains("Redis") && !error.contains("secret"), "{error}");
    }
}
