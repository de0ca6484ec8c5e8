//! A rate limit that pipelines share through a store: together they keep it, and what the store does holds up nothing else.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Ask, BoxFuture, Bucket, Capabilities, Condition, Context, DeduplicateSpec, Failure, Flow, Message,
    OnStoreFailure, Ordering, PipelineSpec, Processor, RateError, RateLimit, RateStore, SharedRateSpec,
    Turns,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::support::{Rig, non_zero, until};

const SECOND: Duration = Duration::from_secs(1);

/// What a store does.
#[derive(Clone, Copy, Default, PartialEq)]
enum Conduct {
    #[default]
    Answers,
    Fails,
    Hangs,
}

/// A store with a clock of its own, which is tokio's.
#[derive(Clone)]
pub(crate) struct Store {
    began: Instant,
    buckets: Arc<Mutex<BTreeMap<Bytes, Bucket>>>,
    conduct: Arc<Mutex<Conduct>>,
    calls: Arc<AtomicUsize>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            buckets: Arc::default(),
            conduct: Arc::default(),
            calls: Arc::default(),
        }
    }

    fn is(&self, conduct: Conduct) {
        *self.conduct.lock() = conduct;
    }

    pub(crate) fn spec(&self, on_store_failure: OnStoreFailure) -> SharedRateSpec {
        SharedRateSpec {
            store: Arc::new(self.clone()),
            on_store_failure,
        }
    }

    fn turns(&self, asks: &[Ask]) -> Vec<Turns> {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap();
        let mut buckets = self.buckets.lock();
        let take = |ask: &Ask| buckets.entry(ask.key.clone()).or_default().take(ask, now);
        asks.iter().map(take).collect()
    }
}

impl RateStore for Store {
    fn take<'a>(&'a self, asks: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Turns>, RateError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            let conduct = *self.conduct.lock();
            match conduct {
                Conduct::Answers => Ok(self.turns(asks)),
                Conduct::Fails => Err(RateError("it is away".to_owned())),
                Conduct::Hangs => std::future::pending().await,
            }
        })
    }
}

/// When each message was run, in the order in which that was, by its tenant.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<Mutex<Vec<(String, Instant)>>>);

impl Runs {
    fn len(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn of(&self, tenant: &str) -> Vec<Instant> {
        let runs = self.0.lock();
        let of_tenant = runs.iter().filter(|(of, _)| of == tenant);
        of_tenant.map(|(_, at)| *at).collect()
    }
}

impl Processor for Runs {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, _: Bytes, cx: &mut Context<'_>) -> Result<(), Failure> {
        assert_eq!(cx.attempt(), 1, "a limit burns no attempt");
        let tenant = cx.headers().get("tenant").unwrap_or_default().to_owned();
        self.0.lock().push((tenant, Instant::now()));
        Ok(())
    }
}

fn limit(messages: u32, burst: u32) -> RateLimit {
    RateLimit {
        messages: NonZeroU32::new(messages).unwrap(),
        per: SECOND,
        burst: NonZeroU32::new(burst).unwrap(),
        key: None,
        weights: BTreeMap::new(),
    }
}

pub(crate) fn by_tenant(messages: u32, burst: u32) -> RateLimit {
    RateLimit {
        key: Some("tenant".to_owned()),
        ..limit(messages, burst)
    }
}

fn of(tenant: &str, messages: usize) -> impl Iterator<Item = Message> {
    (0..messages).map(move |_| Message::new("m").with_header("tenant", tenant))
}

/// What is over its limit waits in the process: the queue in memory keeps no order of keys when it holds messages back.
fn waits_here(spec: &mut PipelineSpec) {
    spec.ordering = Ordering::Key;
}

/// That no moment since `from` saw more than the limit allows, and how much of it was used by the end.
fn kept(runs: &[Instant], from: Instant, rate: f64, burst: f64) -> f64 {
    for (number, at) in runs.iter().enumerate() {
        // What waits for a timer may be a millisecond late, and never early.
        let allowed = burst + rate * (*at - from).as_secs_f64() + 1e-3;
        assert!(
            (number + 1) as f64 <= allowed,
            "{} by {:?}",
            number + 1,
            *at - from
        );
    }
    runs.len() as f64 / (burst + rate * from.elapsed().as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn four_pipelines_keep_one_limit_together_and_use_it() {
    for messages in [3, 100, 2_000] {
        let store = Store::new();
        let all = Runs::default();
        let each: Vec<_> = (0..4)
            .map(|_| {
                let rig = Rig::start(Flow::process(all.clone()), |spec| {
                    spec.rate_limit = Some(limit(messages, messages));
                    spec.shared_rate = Some(store.spec(OnStoreFailure::Wait));
                });
                rig.queue.publish_all(of("a", messages as usize * 40));
                rig
            })
            .collect();
        tokio::time::sleep(30 * SECOND).await;
        let rate = f64::from(messages);
        let used = kept(&all.of("a"), store.began, rate, rate);
        assert!(used > 0.95, "{used} of {messages} a second");
        for rig in &each {
            let done = rig.pipeline().status().counts.processed as f64;
            assert!(done > rate * 30.0 / 4.0 * 0.7, "{done} is no fair share");
            rig.assert_sound();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p5_pipelines_share_each_keys_limit_and_a_greedy_one_takes_nothing_from_the_others() {
    for here in [false, true] {
        let (store, queue) = (Store::new(), MemoryQueue::new());
        let all = Runs::default();
        let begin = |_| {
            Rig::on(queue.clone(), Flow::process(all.clone()), |spec| {
                spec.rate_limit = Some(by_tenant(100, 20));
                spec.shared_rate = Some(store.spec(OnStoreFailure::Wait));
                spec.limits.in_flight = non_zero(200);
                if here {
                    waits_here(spec);
                }
            })
        };
        let rigs: Vec<_> = (0..2).map(begin).collect();
        for _ in 0..300 {
            queue.publish_all(of("modest", 9).chain(of("greedy", 50)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let greedy = kept(&all.of("greedy"), store.began, 100.0, 20.0);
        assert!(greedy > 0.9, "{greedy} of its limit");
        let modest = all.of("modest").len();
        let returned = |rig: &Rig| rig.pipeline().status().counts.returned;
        assert!(rigs.iter().all(|rig| (returned(rig) == 0) == here));
        if !here {
            assert!(modest > 300 * 9 * 95 / 100, "{modest} of {}", 300 * 9);
            let received: u64 = rigs
                .iter()
                .map(|rig| rig.pipeline().status().counts.received)
                .sum();
            assert!(
                received < 300 * 59 * 3 / 2,
                "{received}: what is over the limit spins"
            );
        }
    }
}

/// What is over a limit and waits in the process starts when it has its turn, and not all at once at the end.
#[tokio::test(start_paused = true)]
async fn what_waits_in_the_process_runs_turn_by_turn() {
    for shared in [false, true] {
        let store = Store::new();
        let all = Runs::default();
        let rig = Rig::start(Flow::process(all.clone()), |spec| {
            waits_here(spec);
            spec.rate_limit = Some(by_tenant(10, 2));
            spec.shared_rate = shared.then(|| store.spec(OnStoreFailure::Wait));
        });
        rig.queue.publish_all(of("a", 40));
        rig.settled().await;
        kept(&all.of("a"), store.began, 10.0, 2.0);
        let took = store.began.elapsed();
        assert!(took < 4 * SECOND, "{took:?} with shared: {shared}");
        assert_eq!(store.calls.load(SeqCst), if shared { 20 } else { 0 });
    }
}

/// P3
#[tokio::test(start_paused = true)]
async fn p3_an_ordering_holds_under_a_shared_limit() {
    let store = Store::new();
    let (log, flow) = crate::support::scripted();
    let rig = Rig::start(flow, |spec| {
        spec.rate_limit = Some(by_tenant(20, 3));
        spec.shared_rate = Some(store.spec(OnStoreFailure::Wait));
        spec.ordering = Ordering::Key;
    });
    let numbers: Vec<_> = (0..60).map(|number| number.to_string()).collect();
    rig.queue.publish_all(numbers.iter().map(|number| {
        Message::new(number.clone())
            .with_key("k")
            .with_header("tenant", if number.len() > 1 { "a" } else { "b" })
    }));
    rig.settled().await;
    assert_eq!(log.ended(), numbers);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_each_process_keeps_the_limit_for_itself_and_says_so() {
    for keyed in [false, true] {
        let store = Store::new();
        store.is(Conduct::Fails);
        let all = Runs::default();
        let rig = Rig::start(Flow::process(all.clone()), |spec| {
            spec.rate_limit = Some(match keyed {
                true => by_tenant(10, 2),
                false => limit(10, 2),
            });
            spec.shared_rate = Some(store.spec(OnStoreFailure::Run));
        });
        rig.queue.publish_all(of("a", 600));
        tokio::time::sleep(20 * SECOND).await;
        let used = kept(&all.of("a"), store.began, 10.0, 2.0);
        assert!(used > 0.9, "{used}");
        let status = rig.pipeline().status();
        let Condition::Degraded(causes) = &status.condition else {
            panic!("{:?}", status.condition);
        };
        assert_eq!(causes, "rate_limit: it is away");
        assert!(status.counts.rate_store_failures > 0);
        assert!(status.counts.unshared >= all.len() as u64);
        let calls = store.calls.load(SeqCst);
        assert!(calls < 20, "{calls} calls of a store that is away");

        store.is(Conduct::Answers);
        until(|| rig.pipeline().status().condition == Condition::Running).await;
        let unshared = rig.pipeline().status().counts.unshared;
        let measured = rig.pipeline().measures().rate_store.unwrap().count;
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(rig.pipeline().status().counts.unshared, unshared);
        assert!(rig.pipeline().measures().rate_store.unwrap().count > measured);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_wait_for_a_store_that_is_away_where_that_is_said() {
    let store = Store::new();
    store.is(Conduct::Fails);
    let all = Runs::default();
    let rig = Rig::start(Flow::process(all.clone()), |spec| {
        spec.rate_limit = Some(by_tenant(100, 100));
        spec.shared_rate = Some(store.spec(OnStoreFailure::Wait));
    });
    rig.queue.publish_all(of("a", 50));
    tokio::time::sleep(300 * SECOND).await;
    assert_eq!(all.len(), 0);
    store.is(Conduct::Answers);
    rig.settled().await;
    assert_eq!(all.len(), 50);
    assert_eq!(rig.pipeline().status().counts.unshared, 0);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn p6_a_store_that_hangs_does_not_hold_up_a_drain() {
    for conduct in [Conduct::Hangs, Conduct::Fails, Conduct::Answers] {
        let store = Store::new();
        store.is(conduct);
        let all = Runs::default();
        let rig = Rig::start(Flow::process(all.clone()), |spec| {
            waits_here(spec);
            spec.rate_limit = Some(RateLimit {
                per: Duration::from_secs(3_600),
                ..by_tenant(10, 10)
            });
            spec.shared_rate = Some(store.spec(OnStoreFailure::Wait));
        });
        rig.queue.publish_all(of("a", 50));
        until(|| store.calls.load(SeqCst) > 0).await;
        if conduct == Conduct::Answers {
            until(|| all.len() == 10).await;
        }
        assert!(rig.queue.leased() > 0, "what was read waits");
        let report = rig.pipeline().drain(Duration::from_secs(25)).await;
        assert!(report.took < SECOND, "{report}");
        assert_eq!((rig.queue.len(), rig.queue.leased()), (50 - all.len(), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_holds_at_once_for_what_waits_under_the_one_before() {
    for (shared, keyed) in [(false, true), (true, false), (true, true)] {
        let store = Store::new();
        let all = Runs::default();
        let hourly = |limit| RateLimit {
            per: Duration::from_secs(3_600),
            ..limit
        };
        let of_kind = |messages, burst| match keyed {
            true => by_tenant(messages, burst),
            false => limit(messages, burst),
        };
        let rig = Rig::start(Flow::process(all.clone()), |spec| {
            waits_here(spec);
            spec.rate_limit = Some(hourly(of_kind(1, 1)));
            spec.shared_rate = shared.then(|| store.spec(OnStoreFailure::Wait));
        });
        rig.queue.publish_all(of("a", 2_000));
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(all.len(), 1);
        let from = Instant::now();
        rig.pipeline()
            .change(|spec| spec.rate_limit = Some(of_kind(100, 10)))
            .unwrap();
        tokio::time::sleep(2 * SECOND).await;
        let used = kept(&all.of("a")[1..], from, 100.0, 10.0);
        assert!(used > 0.9, "{used} with shared: {shared}, keyed: {keyed}");

        store.is(Conduct::Fails);
        tokio::time::sleep(SECOND).await;
        assert_eq!(rig.pipeline().status().condition != Condition::Running, shared);
        let from = Instant::now();
        rig.pipeline().change(|spec| spec.rate_limit = None).unwrap();
        rig.settled().await;
        assert!(from.elapsed() < SECOND, "{:?}", from.elapsed());
        let condition = rig.pipeline().status().condition;
        assert_eq!(condition, Condition::Running, "no store is needed any more");
    }
}

/// Those that are acknowledged unrun, or given back unrun, have spent nothing of the limit.
#[tokio::test(start_paused = true)]
async fn only_what_is_to_run_spends_the_limit() {
    for shared in [false, true] {
        let store = Store::new();
        let all = Runs::default();
        let set = |spec: &mut PipelineSpec| {
            spec.rate_limit = Some(RateLimit {
                per: Duration::from_secs(3_600),
                ..limit(60, 60)
            });
            spec.shared_rate = shared.then(|| store.spec(OnStoreFailure::Wait));
            let Ordering::By(by) = Ordering::by_header("id") else {
                unreachable!()
            };
            spec.deduplicate = Some(DeduplicateSpec {
                by: millstream_core::IdBy::By(by),
                ..DeduplicateSpec::new()
            });
        };
        let rig = Rig::start(Flow::process(all.clone()), set);
        rig.queue.publish(Message::new("m").with_header("id", "the same"));
        rig.settled().await;
        let twins = (0..30).map(|_| Message::new("m").with_header("id", "the same"));
        rig.queue.publish_all(twins);
        rig.settled().await;
        assert_eq!((all.len(), rig.pipeline().status().counts.duplicates), (1, 30));
        let others = (0..59).map(|id| Message::new("m").with_header("id", &format!("{id}")));
        rig.queue.publish_all(others);
        let from = Instant::now();
        rig.settled().await;
        assert!(
            from.elapsed() < SECOND,
            "{:?}: twins had spent it",
            from.elapsed()
        );
        assert_eq!(all.len(), 60);
    }
}

/// Of a key of which too much waits, the tail goes back to the source again and again.
#[tokio::test(start_paused = true)]
async fn what_goes_back_for_a_long_lane_has_spent_nothing() {
    let queue = MemoryQueue::with_capabilities(Capabilities {
        delay: true,
        keeps_rejected: true,
        orders_keys: true,
        ..Capabilities::default()
    });
    let (log, flow) = crate::support::scripted();
    let rig = Rig::on(queue, flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(2);
        spec.rate_limit = Some(RateLimit {
            per: Duration::from_secs(3_600),
            ..limit(60, 60)
        });
    });
    let slow = (0..50).map(|_| crate::support::keyed("k", "sleep=200"));
    rig.queue.publish_all(slow);
    let from = Instant::now();
    rig.settled().await;
    let returned = rig.pipeline().status().counts.returned;
    assert!(returned > 60, "{returned} would have spent all of it");
    assert_eq!(log.ended().len(), 50);
    assert!(from.elapsed() < 60 * SECOND, "{:?}", from.elapsed());
}
