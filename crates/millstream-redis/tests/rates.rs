//! A rate limit in a real Redis.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use millstream_brokers::Redis;
use millstream_core::rt::{self, Instant};
use millstream_core::{Ask, Pace, RateStore as _, Turns};
use millstream_redis::RedisRates;
use tokio::task::spawn_blocking;

async fn start() -> Redis {
    spawn_blocking(Redis::start).await.unwrap().unwrap()
}

fn ask(key: &str, each: Duration, burst: u32, number: u32) -> Ask {
    Ask {
        key: key.to_owned().into(),
        pace: Pace {
            each,
            burst: NonZeroU32::new(burst).unwrap(),
        },
        number,
        returns: false,
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// Redis' own word on its clock, in microseconds.
async fn time(redis: &redis::Client) -> u64 {
    let mut connection = redis.get_multiplexed_async_connection().await.unwrap();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await.unwrap();
    seconds * 1_000_000 + micros
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pipeline_has_one_limit_for_each_key_however_many_ask() {
    let redis = start().await;
    let [one, two] = [(); 2].map(|()| RedisRates::new(&redis.url(), "orders").unwrap());
    let asks = [ask("a", HOUR, 5, 3), ask("", HOUR, 5, 5)];
    let turns = one.take(&asks).await.unwrap();
    assert_eq!((turns[0].now, turns[1].now), (3, 5));
    let asks = [ask("\0 \n", HOUR, 5, 1), ask("a", HOUR, 5, 4)];
    let turns = two.take(&asks).await.unwrap();
    assert_eq!((turns[0].now, turns[1].now), (1, 2));
    assert!(turns[1].wait <= HOUR && turns[1].wait > HOUR - Duration::from_secs(60));
    let other = RedisRates::new(&redis.url(), "audit").unwrap();
    assert_eq!(other.take(&asks).await.unwrap()[1].now, 4);
    assert_eq!(one.take(&[]).await.unwrap(), []);
    // More keys than go together.
    let many: Vec<_> = (0..1_000).map(|key| ask(&key.to_string(), HOUR, 2, 3)).collect();
    let turns = one.take(&many).await.unwrap();
    assert!(turns.len() == 1_000 && turns.iter().all(|turns| turns.now == 2));
}

/// Four connections take what they can while Redis is killed and started again; the time is Redis' own.
#[tokio::test(flavor = "multi_thread")]
async fn p4_four_at_once_take_what_the_limit_allows_and_no_more_though_redis_is_killed() {
    const RATE: u32 = 2_000;
    // Ten seconds' worth: what nobody can ask for while Redis is away is there when it is back.
    const BURST: u32 = 20_000;
    const NUMBER: u32 = 80;
    let each = Duration::from_secs(1) / RATE;
    let mut redis = start().await;
    let client = redis::Client::open(redis.url()).unwrap();
    let before = time(&client).await;
    let failures = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let rates = RedisRates::new(&redis.url(), "orders").unwrap();
            let failures = Arc::clone(&failures);
            rt::spawn(async move {
                let mut had = 0;
                let until = Instant::now() + Duration::from_secs(120);
                while had < 85 * NUMBER {
                    assert!(Instant::now() < until, "{had} turns");
                    let Ok(turns) = rates.take(&[ask("a", each, BURST, NUMBER)]).await else {
                        failures.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    had += NUMBER;
                    let others = (NUMBER - turns[0].now).saturating_sub(1);
                    tokio::time::sleep(turns[0].wait + each * others).await;
                }
                had
            })
        })
        .collect();
    let probe = RedisRates::new(&redis.url(), "orders").unwrap();
    // The burst is spent.
    let mut had = 1;
    while probe.take(&[ask("a", each, BURST, 1)]).await.unwrap()[0].now > 0 {
        had += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let redis = spawn_blocking(move || {
        redis.kill();
        redis.start_again().unwrap();
        redis
    });
    let _redis = redis.await.unwrap();
    for task in tasks {
        had += task.await.unwrap();
    }
    let after = time(&client).await;
    let allowed = f64::from(BURST) + f64::from(RATE) * (after - before) as f64 / 1e6;
    assert!(f64::from(had) <= allowed + 1.0, "{had} of {allowed}");
    assert!(f64::from(had) >= allowed * 0.9, "{had} of {allowed}");
    assert!(failures.load(Ordering::SeqCst) > 0, "Redis was away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_killed_says_so_and_knows_what_was_taken_when_it_is_back() {
    let mut redis = start().await;
    let rates = RedisRates::new(&redis.url(), "orders").unwrap();
    assert_eq!(rates.take(&[ask("a", HOUR, 5, 3)]).await.unwrap()[0].now, 3);
    let redis = spawn_blocking(move || {
        redis.kill();
        redis
    });
    let mut redis = redis.await.unwrap();
    let error = rates.take(&[ask("a", HOUR, 5, 1)]).await.unwrap_err().to_string();
    assert!(error.starts_with("Redis: "), "{error}");
    let redis = spawn_blocking(move || {
        redis.start_again().unwrap();
        redis
    });
    let _redis = redis.await.unwrap();
    let turns: Turns = loop {
        if let Ok(turns) = rates.take(&[ask("a", HOUR, 5, 5)]).await {
            break turns[0];
        }
    };
    assert_eq!(turns.now, 2);
}

/// P4: Redis itself forgets what is idle.
#[tokio::test(flavor = "multi_thread")]
async fn idle_keys_go() {
    let redis = start().await;
    let rates = RedisRates::new(&redis.url(), "orders").unwrap();
    let many: Vec<_> = (0..500)
        .map(|key| ask(&key.to_string(), Duration::from_millis(20), 5, 5))
        .collect();
    rates.take(&many).await.unwrap();
    let mut connection = redis::Client::open(redis.url())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let keys: u32 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
        if keys == 0 {
            break;
        }
        assert!(Instant::now() < until, "{keys} keys");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where Redis is reached over connections of which the first passes nothing on once `silent` is set.
fn way_with_one_silence(redis: u16, silent: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let mut redis = TcpStream::connect(("127.0.0.1", redis)).unwrap();
            let (mut back, mut to) = (redis.try_clone().unwrap(), client.try_clone().unwrap());
            let silent = Arc::clone(&silent);
            std::thread::spawn(move || std::io::copy(&mut back, &mut to));
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = client.read(&mut bytes) {
                    if number > 0 || !silent.load(Ordering::SeqCst) {
                        redis.write_all(&bytes[..read]).unwrap();
                    }
                }
            });
        }
    });
    port
}

/// Who waits no longer for an answer leaves a connection that owes one: the next call has another.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_owes_an_answer_is_not_asked_again() {
    let redis = start().await;
    let silent = Arc::new(AtomicBool::new(false));
    let way = way_with_one_silence(redis.port(), Arc::clone(&silent));
    let rates = RedisRates::new(&format!("redis://127.0.0.1:{way}"), "orders").unwrap();
    assert_eq!(rates.take(&[ask("a", HOUR, 5, 1)]).await.unwrap()[0].now, 1);
    silent.store(true, Ordering::SeqCst);
    let asks = [ask("a", HOUR, 5, 1)];
    let given_up = tokio::time::timeout(Duration::from_millis(50), rates.take(&asks)).await;
    assert!(given_up.is_err(), "it was answered");
    assert_eq!(rates.take(&asks).await.unwrap()[0].now, 1);
}
