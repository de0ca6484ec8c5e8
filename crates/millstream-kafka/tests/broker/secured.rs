//! A broker that speaks TLS and has its clients log in, and messages compressed with zstd.

use std::path::PathBuf;

use millstream_brokers::Kafka;
use millstream_core::{Delivered, Failure, Sink, SinkConnector};
use millstream_kafka::{KafkaConnector, KafkaSink};

use crate::retries::policy;
use crate::support::{Done, Member, Topic, keyed, until};

struct Secured {
    kafka: Kafka,
    authority: PathBuf,
}

impl Secured {
    async fn start() -> Self {
        let start = || Kafka::builder().secured(true).start().unwrap();
        let kafka = tokio::task::spawn_blocking(start).await.unwrap();
        let authority = kafka.authority().unwrap();
        Self { kafka, authority }
    }

    fn properties(&self, password: &str) -> Vec<(&'static str, String)> {
        vec![
            ("security.protocol", "sasl_ssl".to_owned()),
            ("ssl.ca.location", self.authority.display().to_string()),
            ("sasl.mechanisms", "PLAIN".to_owned()),
            ("sasl.username", Kafka::USER.to_owned()),
            ("sasl.password", password.to_owned()),
        ]
    }

    fn reads(&self, topic: &Topic, properties: &[(&'static str, String)]) -> KafkaConnector {
        let topic = Topic {
            brokers: self.kafka.secured(),
            ..topic.clone()
        };
        properties.iter().fold(topic.reads(), |source, (name, value)| {
            source.property(name, value).unwrap()
        })
    }

    fn writes(&self, topic: &Topic, properties: &[(&'static str, String)]) -> KafkaSink {
        let sink = KafkaSink::new(&self.kafka.secured(), &topic.name);
        properties
            .iter()
            .fold(sink, |sink, (name, value)| sink.property(name, value).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_with_tls_a_login_and_zstd_is_read_so() {
    let secured = Secured::start().await;
    let topic = Topic::with(&secured.kafka.brokers(), "secured", 2, &[]).await;
    let properties = secured.properties(Kafka::PASSWORD);
    let sink = secured
        .writes(&topic, &properties)
        .property("compression.type", "zstd")
        .unwrap();
    let mut sink = SinkConnector::open(&sink).await.unwrap();
    let sent = keyed(0..1000, 10);
    let mut results = Vec::new();
    sink.send(&sent, &mut results).await.unwrap();
    assert_eq!(results, vec![Delivered::Confirmed; sent.len()]);

    // Retry topics are made and written by clients of their own.
    let done = Done::default();
    let counted = done.clone();
    let retry = policy(100, 2);
    let source = secured.reads(&topic, &properties).retry_topics(&retry);
    let member = Member::start(
        source,
        |spec| spec.retry = retry,
        move |message| {
            let fails = message.key.as_deref() == Some(b"key7") && message.failures == 0;
            if !fails {
                counted.add(&message);
            }
            async move {
                if fails {
                    Err(Failure::from("not yet"))
                } else {
                    Ok(())
                }
            }
        },
    );
    done.reaches(sent.len()).await;
    topic.all_committed(sent.len()).await;
    let report = member.drain().await;
    assert_eq!((report.left, done.total()), (0, sent.len()), "{report}");
}

/// Neither ends anything: who is turned away tries again, and says why it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_turned_away_is_degraded_and_says_why() {
    let secured = Secured::start().await;
    let topic = Topic::with(&secured.kafka.brokers(), "turned-away", 1, &[]).await;
    let stranger = secured.properties("not the password");
    // Without the authority nobody knows the certificate.
    let mut trustless = secured.properties(Kafka::PASSWORD);
    trustless.retain(|(name, _)| *name != "ssl.ca.location");
    for (properties, words) in [(stranger, "uthentication"), (trustless, "certificate")] {
        let member = Member::counts(secured.reads(&topic, &properties), &Done::default());
        until(words, || async {
            let condition = format!("{:?}", member.pipeline().status().condition);
            condition.contains(words) && !condition.contains("not the password")
        })
        .await;
        member.drain().await;
    }
}
