//! A batch that fails as a whole is split until the message at fault stands alone, and nobody pays for its neighbour.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::{
    Batch, BatchHandler, BatcherSpec, BreakerSpec, BreakerState, Context, Failure, Flow, Ordering,
    PipelineSpec, Processor, Reason,
};
use parking_lot::Mutex;

use crate::support::{Bomb, Rig, keyed, non_zero, until};

/// Passes on what it gets.
struct Pass;

impl Processor for Pass {
    type Input = String;
    type Output = String;

    async fn process(&self, payload: String, _: &mut Context<'_>) -> Result<String, Failure> {
        Ok(payload)
    }
}

/// Fails every batch with a poison in it, in the way that the poison says: `err`, `reject`, `panic`, `hang`, `bomb` (its
/// worker dies of the timeout), and `once` in the first run that it is in. Ends the others.
#[derive(Clone, Default)]
struct Poisonable {
    runs: Arc<Mutex<Vec<Vec<String>>>>,
    succeeded: Arc<Mutex<Vec<String>>>,
    running: Arc<Mutex<Vec<String>>>,
    overlaps: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
}

/// The first word of an item, its key in tests that have one.
fn key_of(item: &str) -> String {
    item.split(' ').next().unwrap_or_default().to_owned()
}

struct Leaves<'a>(&'a Mutex<Vec<String>>, Vec<String>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.lock().retain(|item| !self.1.contains(item));
    }
}

impl BatchHandler for Poisonable {
    type Input = String;

    async fn handle(&self, batch: &mut Batch<String>) -> Result<(), Failure> {
        let items = batch.items().to_vec();
        let known = |item: &String| self.runs.lock().iter().flatten().any(|ran| ran == item);
        let first_runs: Vec<_> = items.iter().map(|item| !known(item)).collect();
        self.runs.lock().push(items.clone());
        let keys: Vec<_> = items.iter().map(|item| key_of(item)).collect();
        {
            let mut running = self.running.lock();
            let twice = running.iter().any(|item| keys.contains(&key_of(item)));
            self.overlaps.fetch_add(usize::from(twice), SeqCst);
            running.extend(items.iter().cloned());
        }
        let _leaves = Leaves(&self.running, items.clone());
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.down.load(SeqCst) {
            return Err("down".into());
        }
        for (item, is_first_run) in items.iter().zip(first_runs) {
            match item.rsplit(' ').next().unwrap_or_default() {
                "err" => return Err("poison".into()),
                "once" if is_first_run => return Err("poison once".into()),
                "reject" => return Err(Failure::reject("poison")),
                "panic" => panic!("poison"),
                "hang" => std::future::pending().await,
                "bomb" => {
                    let _bomb = Bomb;
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
        }
        self.succeeded.lock().extend(items);
        Ok(())
    }
}

struct Bisecting {
    rig: Rig,
    handler: Poisonable,
}

impl Bisecting {
    fn start(size: usize, set: impl FnOnce(&mut PipelineSpec, &mut BatcherSpec)) -> Self {
        let handler = Poisonable::default();
        let rig = Rig::start(Flow::process(Pass).batch("out", handler.clone()), |spec| {
            spec.processor.concurrency = non_zero(1);
            let mut batcher = BatcherSpec {
                size: non_zero(size),
                bisect: true,
                ..BatcherSpec::default()
            };
            set(spec, &mut batcher);
            spec.batchers.insert("out".to_owned(), batcher);
        });
        Self { rig, handler }
    }

    /// So many messages, with these in the places of some.
    fn publish(&self, messages: usize, poisons: &[(usize, &str)]) {
        let payloads: Vec<_> = (0..messages)
            .map(|number| {
                let poison = poisons.iter().find(|(at, _)| *at == number);
                poison.map_or_else(|| number.to_string(), |(at, how)| format!("{at} {how}"))
            })
            .collect();
        let payloads: Vec<_> = payloads.iter().map(String::as_str).collect();
        self.rig.publish(&payloads);
    }

    /// Runs in which there was something that is no poison.
    fn shared_runs(&self) -> usize {
        let runs = self.handler.runs.lock();
        runs.iter().filter(|items| items.len() > 1).count()
    }

    fn runs(&self) -> usize {
        self.handler.runs.lock().len()
    }

    /// What was given up: the payload, the attempts, why.
    fn dead(&self) -> Vec<(String, u32, Reason)> {
        let dead = self.rig.queue.dead();
        dead.iter()
            .map(|(message, why)| {
                let payload = String::from_utf8_lossy(&message.payload).into_owned();
                (payload, why.attempts, why.reason)
            })
            .collect()
    }

    /// Asserts that all but these succeeded, each once and in order.
    fn assert_all_but(&self, messages: usize, poisons: &[usize]) {
        let succeeded = self.handler.succeeded.lock().clone();
        let innocents: Vec<_> = (0..messages)
            .filter(|number| !poisons.contains(number))
            .map(|number| number.to_string())
            .collect();
        assert_eq!(succeeded, innocents);
    }
}

#[tokio::test(start_paused = true)]
async fn p5_of_a_hundred_with_one_poison_the_others_succeed_wherever_it_stands() {
    for at in [0, 1, 37, 50, 98, 99] {
        let bisecting = Bisecting::start(100, |_, _| {});
        bisecting.publish(100, &[(at, "err")]);
        bisecting.rig.settled().await;
        bisecting.assert_all_but(100, &[at]);
        assert_eq!(
            bisecting.dead(),
            [(format!("{at} err"), 5, Reason::Attempts)],
            "the poison alone, after its attempts"
        );
        // The whole, two halves at each of seven levels, and the further attempts of the poison.
        assert!(
            bisecting.runs() <= 1 + 2 * 7 + 4,
            "{at}: {} runs",
            bisecting.runs()
        );
        let counts = bisecting.rig.pipeline().status().counts;
        assert_eq!(
            (counts.batch_failed, counts.retried, counts.acked),
            (5, 4, 99),
            "{at}: failures were counted for others"
        );
        assert!(
            (6..=7).contains(&counts.batches_split),
            "{}",
            counts.batches_split
        );
    }
}

#[tokio::test(start_paused = true)]
async fn where_one_attempt_is_all_there_is_only_the_poison_has_had_it() {
    for how in ["err", "reject", "panic"] {
        let bisecting = Bisecting::start(64, |spec, _| spec.retry.attempts = NonZeroU32::MIN);
        bisecting.publish(64, &[(41, how)]);
        bisecting.rig.settled().await;
        bisecting.assert_all_but(64, &[41]);
        assert_eq!(bisecting.dead().len(), 1, "{how}");
        assert!(bisecting.runs() <= 1 + 2 * 6, "{how}: {} runs", bisecting.runs());
    }
}

#[tokio::test(start_paused = true)]
async fn two_poisons_are_both_found_near_each_other_or_far_apart() {
    for (one, two) in [(0, 1), (0, 99), (49, 50), (20, 70)] {
        let bisecting = Bisecting::start(100, |_, _| {});
        bisecting.publish(100, &[(one, "err"), (two, "reject")]);
        bisecting.rig.settled().await;
        bisecting.assert_all_but(100, &[one, two]);
        assert_eq!(bisecting.dead().len(), 2);
        assert!(bisecting.runs() <= 1 + 2 * 2 * 7 + 4, "{} runs", bisecting.runs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_that_hangs_is_found_by_the_timeout() {
    let bisecting = Bisecting::start(16, |spec, batcher| {
        spec.retry.attempts = NonZeroU32::MIN;
        batcher.timeout = Duration::from_secs(2);
    });
    bisecting.publish(16, &[(5, "hang")]);
    bisecting.rig.settled().await;
    bisecting.assert_all_but(16, &[5]);
    let counts = bisecting.rig.pipeline().status().counts;
    assert_eq!((counts.timed_out, counts.restarts), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn p5_a_poison_that_ends_its_worker_is_found_too() {
    let bisecting = Bisecting::start(8, |spec, _| spec.retry.attempts = NonZeroU32::MIN);
    bisecting.publish(8, &[(5, "bomb")]);
    bisecting.rig.settled().await;
    bisecting.assert_all_but(8, &[5]);
    assert_eq!(bisecting.dead(), [("5 bomb".to_owned(), 1, Reason::Attempts)]);
    assert_eq!(bisecting.rig.pipeline().status().counts.restarts, 4);
}

#[tokio::test(start_paused = true)]
async fn what_failed_once_for_no_fault_of_a_message_costs_no_attempt() {
    let bisecting = Bisecting::start(8, |spec, _| spec.retry.attempts = NonZeroU32::MIN);
    bisecting.publish(8, &[(3, "once")]);
    bisecting.rig.settled().await;
    assert!(bisecting.dead().is_empty());
    assert_eq!(bisecting.runs(), 3, "the whole and both halves");
}

#[tokio::test(start_paused = true)]
async fn without_it_a_poison_takes_its_batch_with_it() {
    let bisecting = Bisecting::start(8, |_, batcher| batcher.bisect = false);
    bisecting.publish(8, &[(3, "err")]);
    bisecting.rig.settled().await;
    assert_eq!(bisecting.dead().len(), 8);
}

#[tokio::test(start_paused = true)]
async fn an_outage_counts_one_attempt_for_each_and_ends_the_search() {
    let bisecting = Bisecting::start(100, |spec, _| {
        spec.retry.backoff = Duration::from_secs(10);
    });
    bisecting.handler.down.store(true, SeqCst);
    bisecting.publish(100, &[]);
    until(|| bisecting.runs() > 0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(
        bisecting.runs() <= 7 + 4,
        "{} runs in an outage",
        bisecting.runs()
    );
    let counts = bisecting.rig.pipeline().status().counts;
    assert_eq!(
        (counts.retried, counts.batch_failed),
        (100, 100),
        "an attempt for each"
    );
    bisecting.handler.down.store(false, SeqCst);
    bisecting.rig.settled().await;
    assert!(bisecting.dead().is_empty());
    assert_eq!(bisecting.handler.succeeded.lock().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn of_an_outage_that_lasts_each_is_given_up_for_its_own_failure_and_no_attempt_is_burnt() {
    let bisecting = Bisecting::start(100, |_, _| {});
    bisecting.handler.down.store(true, SeqCst);
    bisecting.publish(100, &[]);
    bisecting.rig.settled().await;
    assert_eq!(bisecting.dead().len(), 100);
    assert!(bisecting.dead().iter().all(|(_, attempts, _)| *attempts == 5));
    let runs = bisecting.handler.runs.lock().clone();
    for number in 0..100 {
        let item = number.to_string();
        let last = runs.iter().rev().find(|items| items.contains(&item)).unwrap();
        assert_eq!(last.len(), 1, "{item} was given up for a run that it shared");
    }
    assert!(bisecting.shared_runs() < 5 * 11, "{}", bisecting.shared_runs());
}

#[tokio::test(start_paused = true)]
async fn innocents_among_many_poisons_are_not_given_up() {
    let poisons: Vec<_> = (0..40).chain([60, 62, 64]).map(|at| (at, "err")).collect();
    let bisecting = Bisecting::start(100, |_, _| {});
    bisecting.publish(100, &poisons);
    bisecting.rig.settled().await;
    assert_eq!(bisecting.dead().len(), poisons.len());
    assert_eq!(
        bisecting.handler.succeeded.lock().len(),
        100 - poisons.len(),
        "innocents were given up"
    );
}

#[tokio::test(start_paused = true)]
async fn one_poison_does_not_open_the_breaker_and_while_it_is_open_nothing_is_split() {
    let breaker = BreakerSpec {
        minimum: NonZeroU32::new(10).unwrap(),
        ..BreakerSpec::default()
    };
    let bisecting = Bisecting::start(100, |spec, _| spec.breaker = Some(breaker));
    bisecting.publish(100, &[(37, "reject")]);
    bisecting.rig.settled().await;
    let counts = bisecting.rig.pipeline().status().counts;
    assert_eq!((counts.breaker_opened, counts.acked), (0, 99));

    let bisecting = Bisecting::start(100, |spec, _| spec.breaker = Some(breaker));
    bisecting.handler.down.store(true, SeqCst);
    bisecting.publish(100, &[]);
    until(|| bisecting.rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    let split = bisecting.rig.pipeline().status().counts.batches_split;
    let runs = bisecting.runs();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bisecting.rig.pipeline().status().counts.batches_split, split);
    assert!(bisecting.runs() <= runs + 13, "a probe each five seconds at most");
    bisecting.handler.down.store(false, SeqCst);
    bisecting.rig.settled().await;
    assert!(bisecting.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn p3_what_follows_a_poison_in_its_key_waits_and_other_keys_do_not() {
    for concurrency in [1, 3] {
        let bisecting = Bisecting::start(20, |spec, batcher| {
            spec.ordering = Ordering::Key;
            spec.retry.backoff = Duration::from_secs(60);
            spec.retry.max_backoff = Duration::from_secs(60);
            batcher.concurrency = non_zero(concurrency);
        });
        let messages: Vec<_> = (0..60)
            .map(|number| {
                let key = ["a", "b", "c", "d", "e"][number % 5];
                let how = if number == 7 { " err" } else { "" };
                (key, format!("{key} {number}{how}"))
            })
            .collect();
        bisecting
            .rig
            .queue
            .publish_all(messages.iter().map(|(key, payload)| keyed(key, payload)));
        until(|| bisecting.handler.succeeded.lock().len() == 48 + 1).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let early = bisecting.handler.succeeded.lock().clone();
        assert_eq!(
            early.len(),
            48 + 1,
            "only what stands before the poison in its key"
        );
        bisecting.rig.settled().await;
        let succeeded = bisecting.handler.succeeded.lock().clone();
        for key in ["a", "b", "c", "d", "e"] {
            let of_key = |items: &mut dyn Iterator<Item = String>| -> Vec<_> {
                items.filter(|item| key_of(item) == key).collect()
            };
            let published = of_key(&mut messages.iter().map(|(_, payload)| payload.clone()));
            let expected: Vec<_> = published
                .into_iter()
                .filter(|item| !item.ends_with("err"))
                .collect();
            assert_eq!(of_key(&mut succeeded.iter().cloned()), expected, "{concurrency}");
        }
        assert_eq!(
            bisecting.handler.overlaps.load(SeqCst),
            0,
            "a key ran twice at once"
        );
        assert_eq!(bisecting.dead().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn p3_keys_of_two_poisons_stay_in_order_while_one_comes_again() {
    let bisecting = Bisecting::start(12, |spec, _| {
        spec.ordering = Ordering::Key;
        spec.retry.backoff = Duration::from_millis(3);
    });
    let messages: Vec<_> = (0..48)
        .map(|number| {
            let key = ["a", "b", "c"][number % 3];
            let how = match number {
                4 | 17 => " err",
                7 | 18 => " once",
                _ => "",
            };
            (key, format!("{key} {number}{how}"))
        })
        .collect();
    let queue = &bisecting.rig.queue;
    queue.publish_all(messages.iter().map(|(key, payload)| keyed(key, payload)));
    bisecting.rig.settled().await;
    let succeeded = bisecting.handler.succeeded.lock().clone();
    for key in ["a", "b", "c"] {
        let numbers: Vec<usize> = succeeded
            .iter()
            .filter(|item| key_of(item) == key)
            .map(|item| item.split(' ').nth(1).unwrap().parse().unwrap())
            .collect();
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
        assert_eq!(
            numbers.len(),
            if key == "b" { 15 } else { 16 } - usize::from(key == "c")
        );
    }
    assert_eq!(bisecting.handler.overlaps.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_in_the_middle_of_a_search_loses_nothing() {
    let bisecting = Bisecting::start(32, |_, batcher| batcher.timeout = Duration::from_secs(10));
    bisecting.publish(32, &[(9, "hang")]);
    until(|| bisecting.runs() >= 3).await;
    bisecting.rig.host.drain(Duration::from_secs(4)).await;
    let Bisecting { rig, handler } = bisecting;
    let succeeded = handler.succeeded.lock().len();
    assert_eq!(
        rig.queue.len() + succeeded,
        32,
        "what had not succeeded went back"
    );
    assert!(rig.queue.dead().is_empty());
}
