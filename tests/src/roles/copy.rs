//! Runs a host with one pipeline from a topic to another, exactly once.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    BatcherSpec, Context, DeadLetter, Failure, Flow, Host, Message, Outgoing, PipelineSpec, Processor,
};
use millstream_kafka::KafkaConnector;

use super::consume::dismissed;
use super::handler::busy;
use crate::Arguments;

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let brokers: String = arguments.get("brokers");
    let topic: String = arguments.get("topic");
    let id: String = arguments.get("id");
    let source = KafkaConnector::new(&brokers, &topic, [&topic])
        .commit_interval(Duration::from_millis(500))
        .property("session.timeout.ms", "3000")
        .and_then(|source| source.property("heartbeat.interval.ms", "300"))
        .expect("properties of a consumer")
        .transactional(&id);
    let out: String = arguments.get("out");
    let batcher = BatcherSpec {
        max_age: Duration::from_millis(5),
        concurrency: NonZero::new(2).expect("two is not zero"),
        sink: Some(Arc::new(source.sink(&out).expect("it is transactional"))),
        ..BatcherSpec::default()
    };
    let copy = Copy {
        longest: Duration::from_micros(arguments.get("longest_us")),
    };
    let mut spec = PipelineSpec::new("copies", Arc::new(source), Flow::process(copy).sink("out"));
    spec.batchers.insert("out".to_owned(), batcher);
    spec.dead_letter = DeadLetter::Discard;
    spec.limits.in_flight = arguments.get("in_flight");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let host = Host::start([spec]).expect("the pipeline starts");
        tokio::select! {
            biased;
            () = dismissed() => {}
            () = host.ended() => {
                eprintln!("the pipeline ended by itself");
                return ExitCode::FAILURE;
            }
        }
        let reports = host.drain(Duration::from_secs(10)).await;
        if reports.iter().all(|(_, report)| report.left == 0) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    })
}

/// Writes what it reads, some of it later than the rest.
struct Copy {
    longest: Duration,
}

impl Processor for Copy {
    type Input = Message;
    type Output = Outgoing;

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<Outgoing, Failure> {
        busy(self.longest).await;
        Ok(Outgoing::new(message.payload))
    }
}
