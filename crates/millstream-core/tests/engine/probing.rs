//! What probes while a breaker is half open: what has not failed goes before what has, so that what fails for ever is not
//! all that the breaker hears of.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::{
    Batch, BatchHandler, BatcherSpec, BreakerSpec, BreakerState, Context, Failure, Flow, Message, Ordering,
    Processor,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::support::{Rig, non_zero, until};

const SECOND: Duration = Duration::from_secs(1);

/// Takes a while, and fails what says so, for ever.
#[derive(Clone, Default)]
struct Slow {
    takes: Duration,
    began: Arc<Mutex<Vec<String>>>,
}

impl Processor for Slow {
    type Input = String;
    type Output = String;

    async fn process(&self, text: String, _: &mut Context<'_>) -> Result<String, Failure> {
        self.began.lock().push(text.clone());
        tokio::time::sleep(self.takes).await;
        match text.starts_with("fails") {
            true => Err("for ever".into()),
            false => Ok(text),
        }
    }
}

/// Batches that fail while what they need is down, and what succeeded in them.
#[derive(Clone, Default)]
struct Dependent {
    takes: Duration,
    down: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<String>>>,
}

impl BatchHandler for Dependent {
    type Input = String;

    async fn handle(&self, batch: &mut Batch<String>) -> Result<(), Failure> {
        tokio::time::sleep(self.takes).await;
        if self.down.load(SeqCst) {
            return Err("down".into());
        }
        self.done.lock().extend(batch.items().iter().cloned());
        Ok(())
    }
}

fn breaker(minimum: u32) -> Option<BreakerSpec> {
    Some(BreakerSpec {
        minimum: NonZeroU32::new(minimum).unwrap(),
        ..BreakerSpec::default()
    })
}

fn by_key(ordered: bool) -> Ordering {
    match ordered {
        true => Ordering::Key,
        false => Ordering::None,
    }
}

fn breaker_of(rig: &Rig) -> Option<BreakerState> {
    rig.pipeline().status().breaker
}

/// Waits until the breaker has closed, and says for how long. What fails for ever may open it again at once.
async fn until_closed(rig: &Rig) -> Duration {
    let since = Instant::now();
    let closed = || rig.pipeline().measures().breakers[0].closed > 0;
    until(|| closed() || since.elapsed() > 3_600 * SECOND).await;
    since.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_probe_does_not_wait_in_its_batcher_behind_batches_that_do_not_run() {
    for ordered in [false, true] {
        let batches = Dependent {
            takes: 150 * SECOND / 1_000,
            ..Dependent::default()
        };
        let (down, done) = (Arc::clone(&batches.down), Arc::clone(&batches.done));
        let slow = Slow {
            takes: SECOND / 10,
            ..Slow::default()
        };
        let rig = Rig::start(Flow::process(slow).batch("out", batches), |spec| {
            spec.breaker = breaker(4);
            spec.ordering = by_key(ordered);
            spec.processor.concurrency = non_zero(4);
            let size = non_zero(1);
            let batcher = BatcherSpec {
                size,
                ..BatcherSpec::default()
            };
            spec.batchers.insert("out".to_owned(), batcher);
        });
        down.store(true, SeqCst);
        for number in 0..200 {
            let key = (number % 50).to_string();
            rig.queue
                .publish(Message::new(format!("{number:03}")).with_key(key));
        }
        until(|| breaker_of(&rig) == Some(BreakerState::Open)).await;
        tokio::time::sleep(60 * SECOND).await;
        down.store(false, SeqCst);
        let took = until_closed(&rig).await;
        assert!(took < 20 * SECOND, "it closed after {took:?}");
        rig.settled().await;
        rig.assert_sound();
        assert!(rig.queue.dead().is_empty());
        if ordered {
            let mut keys: BTreeMap<u32, Vec<String>> = BTreeMap::new();
            for text in done.lock().iter() {
                let number: u32 = text.parse().unwrap();
                keys.entry(number % 50).or_default().push(text.clone());
            }
            assert!(keys.values().all(|texts| texts.is_sorted()), "{keys:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_for_ever_does_not_keep_those_from_being_fetched_that_succeed() {
    for ordered in [false, true] {
        let rig = Rig::start(Flow::process(Slow::default()), |spec| {
            spec.breaker = breaker(2);
            spec.ordering = by_key(ordered);
        });
        for number in 0..3 {
            rig.queue
                .publish(Message::new("fails").with_key(number.to_string()));
        }
        until(|| breaker_of(&rig) == Some(BreakerState::Open)).await;
        tokio::time::sleep(60 * SECOND).await;
        for number in 10..20 {
            rig.queue
                .publish(Message::new("succeeds").with_key(number.to_string()));
        }
        let took = until_closed(&rig).await;
        assert!(took < 40 * SECOND, "it closed after {took:?}");
        until(|| rig.pipeline().status().counts.acked == 10).await;
    }
}

/// And one at a time, once all that are there have failed again: what is down gets no more than a probe.
#[tokio::test(start_paused = true)]
async fn an_outage_fetches_at_most_one_each_time_that_the_breaker_is_half_open() {
    let rig = Rig::start(Flow::process(Slow::default()), |spec| {
        spec.breaker = breaker(4);
        spec.limits.in_flight = non_zero(50);
    });
    rig.publish(&["fails"; 20]);
    until(|| breaker_of(&rig) == Some(BreakerState::Open)).await;
    let received = rig.pipeline().status().counts.received;
    rig.publish(&["fails"; 200]);
    for _ in 0..720 {
        tokio::time::sleep(5 * SECOND).await;
        let now = rig.pipeline().status().counts;
        assert!(now.received <= received + now.breaker_opened, "{now:?}");
    }
    let counts = rig.pipeline().status().counts;
    let fetched = counts.received - received;
    assert!(
        (20..=30).contains(&fetched),
        "{fetched}: one for each time that all had failed"
    );
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_not_failed_probes_before_what_comes_back_from_its_backoff() {
    for ordered in [false, true] {
        let slow = Slow {
            takes: SECOND / 100,
            ..Slow::default()
        };
        let rig = Rig::start(Flow::process(slow), |spec| {
            spec.breaker = breaker(3);
            spec.ordering = by_key(ordered);
            spec.processor.concurrency = non_zero(1);
        });
        for number in 0..20 {
            let text = if number < 3 { "fails" } else { "succeeds" };
            rig.queue.publish(Message::new(text).with_key(number.to_string()));
        }
        until(|| breaker_of(&rig) == Some(BreakerState::Open)).await;
        let took = until_closed(&rig).await;
        assert!(took < 6 * SECOND, "it closed after {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_has_its_turn_beside_keys_where_one_is_taken_at_a_time() {
    let slow = Slow {
        takes: SECOND / 100,
        ..Slow::default()
    };
    let began = Arc::clone(&slow.began);
    let rig = Rig::start(Flow::process(slow), |spec| {
        spec.ordering = Ordering::Key;
        spec.processor.concurrency = non_zero(1);
        spec.processor.max_demand = non_zero(1);
    });
    let keyed = (0..100).map(|number| Message::new("keyed").with_key(number.to_string()));
    let messages: Vec<_> = keyed.chain([Message::new("none")]).collect();
    rig.queue.publish_all(messages);
    rig.settled().await;
    let turn = began.lock().iter().position(|text| text == "none");
    assert!(turn < Some(60), "it came as number {turn:?}");
}
