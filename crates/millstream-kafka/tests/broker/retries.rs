//! Messages that wait for their next attempt in retry topics.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millstream_core::rt::{self, Instant};
use millstream_core::{
    Condition, Connector, EngineHandle, Failure, Message, OpenError, Outgoing, PipelineSpec, RetrySpec,
    RetryStrategy,
};
use parking_lot::Mutex;

use crate::support::{Done, Member, OwnKafka, Topic, keyed, until};

pub(crate) fn policy(backoff: u64, attempts: u32) -> RetrySpec {
    RetrySpec {
        attempts: attempts.try_into().unwrap(),
        backoff: Duration::from_millis(backoff),
        max_backoff: Duration::from_millis(backoff),
        jitter: false,
        strategy: RetryStrategy::Redeliver,
        ..RetrySpec::default()
    }
}

fn redelivers(
    topic: &Topic,
    policy: RetrySpec,
) -> (millstream_kafka::KafkaConnector, impl FnOnce(&mut PipelineSpec)) {
    (
        topic.reads().retry_topics(&policy),
        move |spec: &mut PipelineSpec| {
            spec.retry = policy;
        },
    )
}

/// The retry topic of this name, to be looked at.
fn waits(topic: &Topic, wait: &str) -> Topic {
    Topic {
        name: format!("{}.retry.{wait}", topic.name),
        ..topic.clone()
    }
}

/// P1: each attempt comes not before its time and as the message that it was, its failures are counted, whoever waits
/// holds up nobody, and all of it is committed in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_message_comes_again_not_before_its_time_and_as_what_it_was() {
    let topic = Topic::make("put-off", 3).await;
    let before = SystemTime::now();
    let mut sent = keyed(0..30, 30);
    sent[7] = sent[7].clone().with_header("tenant", "acme");
    topic.publish(&sent).await;
    let published = SystemTime::now();
    let runs: Arc<Mutex<Vec<(Instant, Message)>>> = Arc::default();
    let done = Done::default();
    let (seen, counted) = (Arc::clone(&runs), done.clone());
    let (source, set) = redelivers(&topic, policy(1_000, 5));
    let member = Member::start(source, set, move |message| {
        let (seen, counted) = (Arc::clone(&seen), counted.clone());
        async move {
            if message.key.as_deref() == Some(b"key7") {
                seen.lock().push((rt::now(), message.clone()));
                if message.failures < 2 {
                    return Err(Failure::from("not yet"));
                }
            }
            counted.add(&message);
            Ok(())
        }
    });
    done.reaches(29).await;
    done.reaches(30).await;
    topic.all_committed(30).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(done.total(), 30);
    let runs = runs.lock().clone();
    assert_eq!(runs.len(), 3);
    let (_, first) = &runs[0];
    for (pair, failures) in runs.windows(2).zip(1..) {
        let [(earlier, _), (later, message)] = pair else {
            unreachable!()
        };
        let waited = later.duration_since(*earlier) + Duration::from_millis(2);
        assert!(waited >= Duration::from_secs(1), "{waited:?}");
        assert_eq!(message.failures, failures);
        assert_eq!(message.payload, first.payload);
        assert_eq!(message.key, first.key);
        assert_eq!(message.headers, first.headers);
        assert_eq!((message.origin, message.position), (first.origin, first.position));
        let at = message.timestamp.unwrap();
        assert!(at + Duration::from_secs(1) > before && at < published, "{at:?}");
    }
    // Both times, and where it came from.
    let ends = waits(&topic, "1s").ends().await;
    assert_eq!(ends.iter().sum::<u64>(), 2, "{ends:?}");
    let source: Vec<_> = topic
        .committed()
        .await
        .into_iter()
        .map(|(offset, _)| offset)
        .collect();
    let home = source.iter().position(|offset| offset.unwrap() > first.position);
    assert!(home.is_some());
    assert_eq!(
        ends.iter().filter(|end| **end > 0).count(),
        1,
        "one partition has both"
    );
}

/// P5: a retry topic in which the first message is not due keeps nothing else waiting, and the member stays in its
/// group beyond `max.poll.interval.ms`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_holds_up_nobody_and_keeps_its_member_in_the_group() {
    let topic = Topic::make("waits-long", 1).await;
    // More than are kept in memory while they wait.
    topic.publish(&keyed(0..700, 700)).await;
    let (runs, done) = (Done::default(), Done::default());
    let (ran, counted) = (runs.clone(), done.clone());
    let policy = policy(10_000, 5);
    let source = topic
        .reads()
        .retry_topics(&policy)
        .property("max.poll.interval.ms", "6000")
        .unwrap();
    let member = Member::start(
        source,
        |spec| spec.retry = policy,
        move |message| {
            let (ran, counted) = (ran.clone(), counted.clone());
            async move {
                ran.add(&message);
                if message.failures == 0 && message.key.as_deref() != Some(b"later") {
                    return Err(Failure::from("not yet"));
                }
                counted.add(&message);
                Ok(())
            }
        },
    );
    until("all of them wait", || async {
        waits(&topic, "10s").ends().await == [700]
    })
    .await;
    topic.publish(&[Outgoing::new("later").with_key("later")]).await;
    until("what came later is done", || async { done.times("later") == 1 }).await;
    assert_eq!(done.distinct(), 1, "the others wait");
    done.reaches(701).await;
    until("all is committed", || async {
        topic.total_committed().await == 701
            && waits(&topic, "10s").total_committed_by(&topic.name).await == 700
    })
    .await;
    assert_eq!(member.pipeline().status().counts.lost, 0, "its group let it go");
    member.drain().await;
    assert_eq!(runs.total(), 1_401);
}

/// P1 P8: while nothing can be written to the retry topic, what was to go there stays unsettled; it goes once it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_confirmed_before_its_message_is_settled() {
    let kafka = OwnKafka::start().await;
    let topic = Topic::with(&kafka.brokers(), "retry-outage", 1, &[]).await;
    topic.publish(&keyed(0..5, 5)).await;
    let (runs, done) = (Done::default(), Done::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (ran, counted, waiting) = (runs.clone(), done.clone(), Arc::clone(&gate));
    let (source, set) = redelivers(&topic, policy(100, 5));
    let member = Member::start(source, set, move |message| {
        let (ran, counted, waiting) = (ran.clone(), counted.clone(), Arc::clone(&waiting));
        async move {
            if message.failures == 0 {
                ran.add(&message);
                waiting.acquire().await?.forget();
                return Err(Failure::from("not yet"));
            }
            counted.add(&message);
            Ok(())
        }
    });
    runs.reaches(5).await;
    kafka.kill().await;
    gate.add_permits(100);
    until("the pipeline says so", || async {
        matches!(member.pipeline().status().condition, Condition::Degraded(_))
    })
    .await;
    assert_eq!((done.total(), member.pipeline().status().counts.put_off), (0, 0));
    kafka.start_again().await;
    done.reaches(5).await;
    topic.all_committed(5).await;
    member.drain().await;
}

/// Topics that an earlier policy has left are read on, also where nothing is redelivered any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_policy_strands_nothing() {
    let topic = Topic::make("policies", 2).await;
    let left = Topic::with(&topic.brokers, "policies.retry.5s", 2, &[]).await;
    left.publish(&keyed(0..4, 4)).await;
    let done = Done::default();
    let member = Member::counts(topic.reads(), &done);
    done.reaches(4).await;
    member.drain().await;
}

/// The topics are made like those that are read; where they cannot be, the error says what to make.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_made_or_the_error_says_which_to_make() {
    let topic = Topic::make("makes", 5).await;
    let (engine, _) = EngineHandle::detached();
    let connector = topic.reads().retry_topics(&RetrySpec::default());
    let opened = connector.open(engine.clone()).await.unwrap();
    assert_eq!(waits(&topic, "1s").ends().await, [0; 5]);
    drop(opened);

    let named = millstream_kafka::KafkaConnector::new(&topic.brokers, "its group", [&topic.name]);
    let Err(OpenError::Refused(why)) = named.retry_topics(&RetrySpec::default()).open(engine).await else {
        panic!("no topic can have that name");
    };
    assert!(why.contains("its group.retry.100ms"), "{why}");
}

/// P8: a wait beyond the longest that there is a topic for is cut, and that is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_no_topic_has_is_cut_and_counted() {
    let topic = Topic::make("cut", 1).await;
    topic.publish(&keyed(0..1, 1)).await;
    let done = Done::default();
    let counted = done.clone();
    let (source, set) = redelivers(&topic, policy(100, 3));
    let member = Member::start(source, set, move |message| {
        let counted = counted.clone();
        async move {
            if message.failures == 0 {
                return Err(Failure::retry_after(Duration::from_secs(3_600), "not now"));
            }
            counted.add(&message);
            Ok(())
        }
    });
    done.reaches(1).await;
    assert_eq!(member.pipeline().status().counts.waits_cut, 1);
    member.drain().await;
}
