//! Messages that end the process that runs them.

use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{DeadLetter, Message, Rejection, rt};
use millstream_kafka::KafkaSink;
use parking_lot::Mutex;

use crate::support::{Done, Member, SOON, Topic, keyed};

/// Set for the process that is to end: where its Kafka is.
const VICTIM: &str = "MILLSTREAM_KAFKA_CULPRIT";

const INNOCENTS: usize = 120;
const CULPRIT: &str = "key61-0";

fn topic_at(brokers: String) -> Topic {
    Topic {
        brokers,
        name: "culprit".to_owned(),
        partitions: 2,
    }
}

/// Runs until the process ends, or is killed. The culprit aborts it.
async fn victim(brokers: String) {
    let topic = topic_at(brokers);
    let sink = KafkaSink::new(&topic.brokers, "culprit.dead");
    let _member = Member::start(
        topic.reads(),
        |spec| spec.dead_letter = DeadLetter::Sink(Arc::new(sink)),
        |message| async move {
            rt::sleep(Duration::from_millis(2)).await;
            if message.payload == CULPRIT {
                std::process::abort();
            }
            Ok(())
        },
    );
    std::future::pending::<()>().await;
}

/// P2 P8, "innocents dead-lettered unrun: none": a message that ends its process again and again becomes a suspect, runs
/// alone, and is dead-lettered unrun; the others are done.
#[test]
fn a_message_that_ends_its_process_is_dead_lettered_alone() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let Ok(brokers) = std::env::var(VICTIM) {
        runtime.block_on(victim(brokers));
    }
    runtime.block_on(async {
        let topic = Topic::make("culprit", 2).await;
        let dead = Topic::with(&topic.brokers, "culprit.dead", 1, &[]).await;
        topic.publish(&keyed(0..INNOCENTS + 1, INNOCENTS + 1)).await;
        let mut deaths = 0;
        while let Some(status) = dies(&topic).await {
            use std::os::unix::process::ExitStatusExt;
            assert!(
                status.signal().is_some(),
                "it ended without being aborted: {status}"
            );
            deaths += 1;
            assert!(deaths <= 30, "it ends one process after another");
        }
        // Three among all, and each time alone until `max_deliveries`.
        assert_eq!(deaths, 16);
        let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
        let (all, done) = (Arc::clone(&seen), Done::default());
        let counted = done.clone();
        let reader = Member::start(
            dead.reads(),
            |_| {},
            move |message| {
                all.lock().push(message.clone());
                counted.add(&message);
                async { Ok(()) }
            },
        );
        done.reaches(1).await;
        reader.drain().await;
        let letters = seen.lock().clone();
        let [letter] = &letters[..] else {
            panic!(
                "{} messages were dead-lettered, not the culprit alone",
                letters.len()
            );
        };
        assert_eq!(letter.payload, CULPRIT);
        let [_, _, reason, _, _, deliveries, ..] = Rejection::HEADERS;
        assert_eq!(letter.headers.get(reason), Some("deliveries"));
        assert_eq!(letter.headers.get(deliveries), Some("17"));
    });
}

async fn dead_letters(topic: &Topic) -> u64 {
    let dead = Topic {
        name: "culprit.dead".to_owned(),
        partitions: 1,
        ..topic.clone()
    };
    dead.ends().await.iter().sum()
}

/// Starts a process and waits until it has died; none if it has done all there is instead.
async fn dies(topic: &Topic) -> Option<ExitStatus> {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "ends::a_message_that_ends_its_process_is_dead_lettered_alone",
        ])
        .env(VICTIM, &topic.brokers)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let waits = async {
        loop {
            if let Some(status) = victim.try_wait().unwrap() {
                return Some(status);
            }
            if dead_letters(topic).await == 1 && topic.total_committed().await == INNOCENTS as u64 + 1 {
                return None;
            }
            rt::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(SOON, waits)
        .await
        .expect("it ends, or does everything");
    victim.kill().ok();
    victim.wait().unwrap();
    ended
}
