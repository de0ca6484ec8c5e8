//! A breaker that is open, as the store sees it: it hands out nothing, and after the outage all is done (P1).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_core::{
    BreakerSpec, BreakerState, Context, DeadLetter, Failure, Flow, Host, PipelineSpec, Processor,
};
use millstream_tests::{QUEUE, Work};

use crate::alone;
use crate::place::{SOON, until};
use crate::stores::{HandsOut, OnKafka, OnRabbitMq, OnSqlite, OnSqs, publish};

const MESSAGES: u32 = 300;
const IN_FLIGHT: u32 = 50;
/// How many more there are while it is open.
const MORE: u32 = 20;
/// Longer than a poll of SQS that is under way.
const STEADY: Duration = Duration::from_millis(1_500);
const OPEN_FOR: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(200);

#[test]
fn p1_while_a_breaker_is_open_nothing_is_leased_from_sqlite() {
    nothing_is_handed_out_while_a_breaker_is_open::<OnSqlite>();
}

#[test]
fn p1_while_a_breaker_is_open_rabbitmq_delivers_nothing() {
    nothing_is_handed_out_while_a_breaker_is_open::<OnRabbitMq>();
}

#[test]
fn p1_while_a_breaker_is_open_nothing_is_received_from_sqs() {
    nothing_is_handed_out_while_a_breaker_is_open::<OnSqs>();
}

/// What is counted is how often Kafka is asked for messages, answered with some or with none. A member reads ahead of what
/// the pipeline takes, up to 4 MiB, and there are more than that; once it has them it asks no more.
#[test]
fn p1_while_a_breaker_is_open_nothing_is_fetched_from_kafka() {
    nothing_is_handed_out_while_a_breaker_is_open::<OnKafka<true>>();
}

/// Fails while what it needs is down.
#[derive(Clone, Default)]
struct Dependent {
    down: Arc<AtomicBool>,
    most_attempts: Arc<AtomicU32>,
}

impl Processor for Dependent {
    type Input = ();
    type Output = ();

    async fn process(&self, (): (), cx: &mut Context<'_>) -> Result<(), Failure> {
        self.most_attempts.fetch_max(cx.attempt(), Ordering::Relaxed);
        match self.down.load(Ordering::Relaxed) {
            true => Err("down".into()),
            false => Ok(()),
        }
    }
}

fn nothing_is_handed_out_while_a_breaker_is_open<S: HandsOut>() {
    let _machine = alone();
    let store = S::start();
    let work = Work {
        seed: 1,
        keys: 0,
        bytes: S::BYTES,
    };
    publish(&store, QUEUE, &work, MESSAGES);
    let dependent = Dependent::default();
    dependent.down.store(true, Ordering::Relaxed);
    let mut spec = PipelineSpec::new(QUEUE, store.inlet(QUEUE), Flow::process(dependent.clone()));
    spec.dead_letter = DeadLetter::Discard;
    spec.limits.in_flight = (IN_FLIGHT as usize).try_into().unwrap();
    spec.breaker = Some(BreakerSpec {
        minimum: NonZeroU32::new(4).unwrap(),
        open_for: OPEN_FOR,
        ..BreakerSpec::default()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let host = {
        let _entered = runtime.enter();
        Host::start([spec]).unwrap()
    };
    let pipeline = host.pipeline(QUEUE).unwrap();
    let status = || pipeline.status();
    until("the breaker is open", || {
        status().breaker == Some(BreakerState::Open)
    });

    publish(&store, QUEUE, &work, MORE);
    // What was on its way when it opened has come.
    let (mut out, mut since) = (store.handed_out(QUEUE), Instant::now());
    let opened = Instant::now();
    while since.elapsed() < STEADY {
        assert!(opened.elapsed() < OPEN_FOR, "it hands out more and more");
        std::thread::sleep(LOOK);
        let now = store.handed_out(QUEUE);
        if now != out {
            (out, since) = (now, Instant::now());
        }
    }
    let before = status().counts;
    let since = Instant::now();
    while since.elapsed() < STEADY {
        assert_eq!(store.handed_out(QUEUE), out, "it handed out more");
        std::thread::sleep(LOOK);
    }
    let after = status();
    assert_eq!(
        (after.breaker, after.counts.breaker_opened),
        (Some(BreakerState::Open), 1),
        "it was open all the time"
    );
    assert!(out > 0);
    let left = store.remaining(QUEUE);
    assert!(left > IN_FLIGHT, "it had none to hand out: {left} are left");
    assert_eq!(
        (after.counts.received, after.counts.retried),
        (before.received, before.retried)
    );

    dependent.down.store(false, Ordering::Relaxed);
    until("all is done", || store.remaining(QUEUE) == 0);
    let status = status();
    assert_eq!(status.counts.given_up, 0);
    assert_eq!(status.breaker, Some(BreakerState::Closed));
    assert!(dependent.most_attempts.load(Ordering::Relaxed) <= 2);
    let report = runtime.block_on(host.drain(SOON));
    assert!(report.iter().all(|(_, report)| report.left == 0));
}
