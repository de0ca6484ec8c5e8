//! Breakers of named dependencies, and slow runs: an outage of something that handlers call pauses the source, burns no
//! attempt, and is over soon after it ends.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::{
    Batch, BatchHandler, BatcherSpec, BreakerSpec, BreakerState, Context, Failure, Flow, OpenedBy, Processor,
};

use crate::support::{Rig, non_zero, until};

const SECOND: Duration = Duration::from_secs(1);

/// What is called: it may be down, hang, or take a while.
#[derive(Debug, Default)]
struct Database {
    down: AtomicBool,
    hangs: AtomicBool,
    takes_ms: AtomicU64,
    calls: AtomicUsize,
}

impl Database {
    async fn query(&self) -> Result<(), &'static str> {
        self.calls.fetch_add(1, SeqCst);
        if self.hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        let takes = self.takes_ms.load(SeqCst);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        if self.down.load(SeqCst) {
            Err("down")
        } else {
            Ok(())
        }
    }
}

/// Calls the database for each message but those that say `none`.
#[derive(Clone, Default)]
struct Caller {
    database: Arc<Database>,
    most_attempts: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
}

impl Processor for Caller {
    type Input = String;
    type Output = String;

    async fn process(&self, payload: String, cx: &mut Context<'_>) -> Result<String, Failure> {
        self.runs.fetch_add(1, SeqCst);
        self.most_attempts.fetch_max(cx.attempt() as usize, SeqCst);
        match payload.as_str() {
            "none" => {}
            "unknown" => {
                for _ in 0..3 {
                    let cache = cx.dependency("cache");
                    assert!(cache.is_available());
                    let _: Failure = cache.call(async { Err::<(), _>("down") }).await.unwrap_err();
                }
            }
            "reject" => {
                let call = async { Err::<(), _>(Failure::reject("no such row")) };
                cx.dependency("db").call(call).await?;
            }
            _ => cx.dependency("db").call(self.database.query()).await?,
        }
        Ok(payload)
    }
}

fn rig(caller: &Caller, db: BreakerSpec) -> Rig {
    Rig::start(Flow::process(caller.clone()), |spec| {
        spec.dependencies.insert("db".to_owned(), db);
    })
}

fn soon() -> BreakerSpec {
    BreakerSpec {
        minimum: NonZeroU32::new(4).unwrap(),
        ..BreakerSpec::default()
    }
}

fn state(rig: &Rig) -> BreakerState {
    rig.pipeline().measures().breakers[0].state
}

fn opened(rig: &Rig, by: OpenedBy) -> u64 {
    let breakers = rig.pipeline().measures().breakers;
    let opened = &breakers[0].opened;
    opened.iter().find(|(found, _)| *found == by).unwrap().1
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_dependency_for_an_hour_fetches_probes_and_counts_and_dead_letters_nothing() {
    let caller = Caller::default();
    let rig = rig(&caller, BreakerSpec::default());
    caller.database.down.store(true, SeqCst);
    rig.publish(&["a"; 100]);
    until(|| state(&rig) == BreakerState::Open).await;
    let counts = rig.pipeline().status().counts;
    let calls = caller.database.calls.load(SeqCst);
    rig.publish(&["b"; 100]);
    tokio::time::sleep(3_600 * SECOND).await;
    let after = rig.pipeline().status().counts;
    let fetched = after.received - counts.received;
    assert!(
        fetched <= 7,
        "{fetched}: one each time that all have failed again is enough"
    );
    assert_eq!(after.retried, counts.retried, "attempts were counted");
    let probes = caller.database.calls.load(SeqCst) - calls;
    assert!(
        (700..=721).contains(&probes),
        "{probes} calls in an hour, of one each five seconds"
    );
    caller.database.down.store(false, SeqCst);
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
    assert!(caller.most_attempts.load(SeqCst) <= 2);
    let measures = rig.pipeline().measures();
    let [db] = &measures.breakers[..] else {
        panic!("one breaker: {:?}", measures.breakers)
    };
    assert_eq!(db.dependency.as_deref(), Some("db"));
    assert_eq!((db.state, db.closed), (BreakerState::Closed, 1));
    assert_eq!(opened(&rig, OpenedBy::Failures), 1);
    assert!(opened(&rig, OpenedBy::Probe) >= 700);
}

#[tokio::test(start_paused = true)]
async fn throughput_is_back_within_two_windows_after_the_dependency_is() {
    let caller = Caller::default();
    caller.database.takes_ms.store(100, SeqCst);
    let rig = rig(&caller, BreakerSpec::default());
    let database = Arc::clone(&caller.database);
    // Sixteen workers at a hundred milliseconds a message: 160 in a second, with always more to do.
    rig.publish(&["a"; 20_000]);
    let done = || rig.pipeline().status().counts.acked;
    tokio::time::sleep(10 * SECOND).await;
    let before = done();
    tokio::time::sleep(10 * SECOND).await;
    let normal = done() - before;
    assert!(normal > 1_500, "{normal} in ten seconds");
    database.down.store(true, SeqCst);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(state(&rig), BreakerState::Open);
    database.down.store(false, SeqCst);
    until(|| state(&rig) == BreakerState::Closed).await;
    tokio::time::sleep(10 * SECOND).await;
    let before = done();
    tokio::time::sleep(10 * SECOND).await;
    let again = done() - before;
    assert!(
        again as f64 >= normal as f64 * 0.95,
        "{again} in ten seconds, and {normal} before"
    );
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_slow_open_it_although_they_succeed() {
    let caller = Caller::default();
    let rig = rig(
        &caller,
        BreakerSpec {
            slow_after: Some(2 * SECOND),
            ..soon()
        },
    );
    caller.database.takes_ms.store(2_000, SeqCst);
    rig.publish(&["a"; 4]);
    until(|| opened(&rig, OpenedBy::Slow) == 1).await;
    rig.publish(&["b"; 4]);
    tokio::time::sleep(60 * SECOND).await;
    assert!(opened(&rig, OpenedBy::Probe) >= 3, "a slow probe opens it again");
    caller.database.takes_ms.store(1_999, SeqCst);
    rig.publish(&["c"; 4]);
    rig.settled().await;
    assert_eq!(state(&rig), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn runs_that_are_slow_open_the_pipelines_own() {
    let (_, flow) = crate::support::scripted();
    let rig = Rig::start(flow, |spec| {
        spec.breaker = Some(BreakerSpec {
            slow_after: Some(SECOND),
            ..soon()
        });
    });
    rig.publish(&["sleep=999"; 100]);
    rig.settled().await;
    assert_eq!(state(&rig), BreakerState::Closed);
    rig.publish(&["sleep=1000"; 100]);
    until(|| state(&rig) == BreakerState::Open).await;
    assert_eq!(opened(&rig, OpenedBy::Slow), 1);
}

#[tokio::test(start_paused = true)]
async fn batches_that_are_slow_open_the_pipelines_own() {
    use crate::support::{Scripted, ScriptedBatches};
    let flow = Flow::process(Scripted::default()).batch("out", ScriptedBatches::default());
    let rig = Rig::start(flow, |spec| {
        spec.breaker = Some(BreakerSpec {
            slow_after: Some(SECOND),
            ..soon()
        });
    });
    rig.publish(&["batch-sleep=250"; 4]);
    until(|| opened(&rig, OpenedBy::Slow) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_counts_as_failed_once_the_run_times_out() {
    let caller = Caller::default();
    let rig = rig(&caller, soon());
    caller.database.hangs.store(true, SeqCst);
    rig.publish(&["a"; 4]);
    until(|| state(&rig) == BreakerState::Open).await;
    assert_eq!(opened(&rig, OpenedBy::Failures), 1);
    caller.database.hangs.store(false, SeqCst);
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_pipeline_cancels_says_nothing_of_its_dependency() {
    let caller = Caller::default();
    let rig = rig(&caller, soon());
    caller.database.hangs.store(true, SeqCst);
    rig.publish(&["a"; 16]);
    until(|| caller.database.calls.load(SeqCst) == 16).await;
    rig.queue.break_connection();
    caller.database.hangs.store(false, SeqCst);
    rig.settled().await;
    assert_eq!(opened(&rig, OpenedBy::Failures), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reject_within_a_call_is_not_counted_and_ends_a_probe() {
    let caller = Caller::default();
    let rig = rig(&caller, soon());
    rig.publish(&["reject"; 100]);
    rig.settled().await;
    assert_eq!(state(&rig), BreakerState::Closed);
    caller.database.down.store(true, SeqCst);
    rig.publish(&["a"; 4]);
    until(|| state(&rig) == BreakerState::Open).await;
    caller.database.down.store(false, SeqCst);
    let began = tokio::time::Instant::now();
    rig.publish(&["reject", "reject", "b", "c"]);
    rig.settled().await;
    assert!(
        began.elapsed() < 6 * SECOND,
        "a probe that was rejected held back the next one: {:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_dependency_passes_uncounted() {
    let caller = Caller::default();
    let rig = rig(&caller, soon());
    rig.publish(&["unknown"; 100]);
    rig.settled().await;
    let measures = rig.pipeline().measures();
    assert_eq!(measures.breakers.len(), 1);
    assert_eq!(state(&rig), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn messages_that_need_nothing_do_not_close_it_and_do_not_hold_it_half_open() {
    let caller = Caller::default();
    let rig = rig(&caller, soon());
    caller.database.down.store(true, SeqCst);
    rig.publish(&["a"; 4]);
    until(|| state(&rig) == BreakerState::Open).await;
    rig.publish(&["none"; 10]);
    caller.database.down.store(false, SeqCst);
    rig.settled().await;
    assert_eq!(state(&rig), BreakerState::Closed);
    let measures = rig.pipeline().measures();
    let failed = &measures.processor.failed;
    assert!(failed.iter().any(|(why, _)| why.as_str() == "not_permitted"));
}

#[tokio::test(start_paused = true)]
async fn two_dependencies_that_are_down_are_both_probed_by_one_message() {
    #[derive(Clone, Default)]
    struct Both(Arc<Database>, Arc<Database>);
    impl Processor for Both {
        type Input = ();
        type Output = ();
        async fn process(&self, (): (), cx: &mut Context<'_>) -> Result<(), Failure> {
            cx.dependency("a").call(self.0.query()).await?;
            cx.dependency("b").call(self.1.query()).await?;
            Ok(())
        }
    }
    let both = Both::default();
    let rig = Rig::start(Flow::process(both.clone()), |spec| {
        spec.dependencies.insert("a".to_owned(), soon());
        let longer = BreakerSpec {
            open_for: 17 * SECOND,
            ..soon()
        };
        spec.dependencies.insert("b".to_owned(), longer);
    });
    both.1.down.store(true, SeqCst);
    rig.publish(&["m"; 20]);
    tokio::time::sleep(60 * SECOND).await;
    both.0.down.store(true, SeqCst);
    tokio::time::sleep(60 * SECOND).await;
    both.0.down.store(false, SeqCst);
    both.1.down.store(false, SeqCst);
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
    let breakers = rig.pipeline().measures().breakers;
    assert!(
        breakers
            .iter()
            .all(|breaker| breaker.state == BreakerState::Closed)
    );
}

/// Calls the database once for each batch.
#[derive(Clone, Default)]
struct Inserts(Arc<Database>, Arc<AtomicUsize>);

impl BatchHandler for Inserts {
    type Input = String;

    async fn handle(&self, batch: &mut Batch<String>) -> Result<(), Failure> {
        self.1.fetch_add(1, SeqCst);
        batch.dependency("db").call(self.0.query()).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_dependency_of_a_batch_handler_burns_no_attempt_of_its_messages() {
    let inserts = Inserts::default();
    inserts.0.down.store(true, SeqCst);
    let flow = Flow::process(crate::support::Scripted::default()).batch("out", inserts.clone());
    let rig = Rig::start(flow, |spec| {
        spec.dependencies.insert("db".to_owned(), soon());
        let batcher = BatcherSpec {
            size: non_zero(2),
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
        spec.retry.attempts = NonZeroU32::new(6).unwrap();
    });
    rig.publish(&["a"; 40]);
    until(|| state(&rig) == BreakerState::Open).await;
    let runs = inserts.1.load(SeqCst);
    tokio::time::sleep(3_600 * SECOND).await;
    let probes = inserts.1.load(SeqCst) - runs;
    assert!((700..=721).contains(&probes), "{probes} batches in an hour");
    inserts.0.down.store(false, SeqCst);
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
    assert_eq!(state(&rig), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_is_taken_away_holds_nothing_back_any_more() {
    let caller = Caller::default();
    let rig = rig(&caller, soon());
    caller.database.down.store(true, SeqCst);
    rig.publish(&["a"; 20]);
    until(|| state(&rig) == BreakerState::Open).await;
    caller.database.down.store(false, SeqCst);
    let began = tokio::time::Instant::now();
    rig.pipeline().change(|spec| spec.dependencies.clear()).unwrap();
    rig.settled().await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert!(rig.pipeline().measures().breakers.is_empty());
}
