//! The age beyond which nothing is tried again, and the budget that keeps retries from becoming a storm.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Capabilities, Context, Failure, Flow, Message, Processor, Reason, RetrySpec, RetryStrategy,
};

use crate::support::{Rig, scripted, until};

const SECOND: Duration = Duration::from_secs(1);

/// Fails while what it needs is down.
#[derive(Clone, Default)]
struct Flaky {
    down: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
}

impl Processor for Flaky {
    type Input = ();
    type Output = ();

    async fn process(&self, (): (), _: &mut Context<'_>) -> Result<(), Failure> {
        self.runs.fetch_add(1, SeqCst);
        if self.down.load(SeqCst) {
            Err("down".into())
        } else {
            Ok(())
        }
    }
}

fn patient(budget: Option<f64>) -> RetrySpec {
    RetrySpec {
        attempts: NonZeroU32::new(1_000).unwrap(),
        max_backoff: Duration::from_millis(100),
        jitter: false,
        budget,
        ..RetrySpec::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_published_too_long_ago_gets_no_further_attempt() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.retry.max_age = Some(Duration::from_secs(3_600));
    });
    let at = |ago: u64, payload: &str| Message {
        timestamp: SystemTime::now().checked_sub(Duration::from_secs(ago)),
        ..Message::new(payload.to_owned())
    };
    rig.queue
        .publish_all([at(3_601, "old fail"), at(3_601, "old ok"), at(60, "young fail")]);
    rig.settled().await;
    use crate::support::What;
    assert_eq!(log.count(What::Began, "old fail"), 1);
    assert_eq!(
        log.count(What::Ended, "old ok"),
        1,
        "its first attempt is its right"
    );
    assert_eq!(log.count(What::Began, "young fail"), 5);
    let mut reasons: Vec<_> = rig.queue.dead().iter().map(|(_, why)| why.reason).collect();
    reasons.sort_by_key(|reason| reason.as_str());
    assert_eq!(reasons, [Reason::Age, Reason::Attempts]);
    let dead = rig.queue.dead();
    let (_, why) = dead.iter().find(|(_, why)| why.reason == Reason::Age).unwrap();
    assert_eq!((why.error.as_str(), why.attempts), ("scripted", 1));
}

#[tokio::test(start_paused = true)]
async fn without_a_time_of_its_own_a_message_ages_from_its_receipt() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.retry = RetrySpec {
            max_age: Some(10 * SECOND),
            backoff: SECOND,
            max_backoff: SECOND,
            ..patient(None)
        };
    });
    rig.publish(&["fail"]);
    rig.settled().await;
    let dead = rig.queue.dead();
    assert_eq!((dead[0].1.reason, dead[0].1.attempts), (Reason::Age, 11));
}

#[tokio::test]
async fn without_a_time_of_its_own_a_message_ages_also_on_its_way_through_a_retry_sink() {
    let (_, flow) = scripted();
    let queue = MemoryQueue::with_capabilities(Capabilities {
        keeps_rejected: true,
        ..Capabilities::default()
    });
    let rig = Rig::on(queue, flow, |spec| {
        spec.retry = RetrySpec {
            max_age: Some(Duration::from_millis(250)),
            strategy: RetryStrategy::Redeliver,
            ..patient(None)
        };
    });
    rig.publish(&["fail"]);
    let dead = async {
        while rig.queue.dead().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(30 * SECOND, dead).await.unwrap();
    let dead = rig.queue.dead();
    assert_eq!(dead[0].1.reason, Reason::Age);
    assert!((2..=3).contains(&dead[0].1.attempts), "{}", dead[0].1.attempts);
    assert!(dead[0].0.headers.get(Message::FIRST_RECEIVED).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_storm_and_the_budget_gives_nothing_up() {
    let flaky = Flaky::default();
    let rig = Rig::start(Flow::process(flaky.clone()), |spec| {
        spec.retry = patient(Some(0.2));
    });
    flaky.down.store(true, SeqCst);
    rig.publish(&["a"; 2_000]);
    until(|| flaky.runs.load(SeqCst) >= 2_000).await;
    tokio::time::sleep(600 * SECOND).await;
    let runs = flaky.runs.load(SeqCst);
    // Without it each message would run ten times a second. Ten a second and a fifth of all runs make 12.5 a second,
    // after what a window allows at once.
    let most = 2_000 + 1_000 + 600 * 13;
    assert!((7_000..=most).contains(&runs), "{runs} runs");
    assert!(rig.pipeline().status().counts.over_budget > 0);
    flaky.down.store(false, SeqCst);
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn with_much_that_succeeds_retries_are_a_share_of_it() {
    #[derive(Clone, Default)]
    struct Half(Arc<AtomicUsize>, Arc<AtomicUsize>);
    impl Processor for Half {
        type Input = String;
        type Output = ();
        async fn process(&self, payload: String, cx: &mut Context<'_>) -> Result<(), Failure> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.0.fetch_add(1, SeqCst);
            self.1.fetch_add(usize::from(cx.attempt() > 1), SeqCst);
            if payload == "bad" {
                Err("bad".into())
            } else {
                Ok(())
            }
        }
    }
    let half = Half::default();
    let rig = Rig::start(Flow::process(half.clone()), |spec| {
        spec.retry = patient(Some(0.2));
    });
    rig.publish(&["bad"; 2_000]);
    for _ in 0..60 {
        rig.publish(&["good"; 500]);
        tokio::time::sleep(SECOND).await;
    }
    let (runs, retries) = (half.0.load(SeqCst), half.1.load(SeqCst));
    let most = runs / 5 + 10 * 70;
    assert!(
        retries <= most && retries > runs / 6,
        "{retries} retries in {runs} runs"
    );
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_set_while_it_runs_judges_what_fails_from_then_on() {
    let flaky = Flaky::default();
    let rig = Rig::start(Flow::process(flaky.clone()), |spec| spec.retry = patient(None));
    flaky.down.store(true, SeqCst);
    rig.publish(&["a"]);
    until(|| flaky.runs.load(SeqCst) >= 10).await;
    let redeliver = RetrySpec {
        strategy: RetryStrategy::Redeliver,
        ..RetrySpec::default()
    };
    rig.pipeline().change(|spec| spec.retry = redeliver).unwrap();
    rig.settled().await;
    let runs = flaky.runs.load(SeqCst);
    assert!((10..=12).contains(&runs), "{runs} runs");
    assert_eq!(rig.queue.dead()[0].1.reason, Reason::Attempts);
}
