//! Messages that were delivered often, on quorum queues.

use std::sync::Arc;
use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{
    Batch, BatchHandler, BatcherSpec, Context, DeadLetter, Failure, Flow, Host, PipelineSpec, Processor,
    Settlement, rt,
};
use millstream_rabbitmq::RabbitConnector;
use millstream_rabbitmq::lapin::message::Delivery;
use millstream_rabbitmq::lapin::options::{BasicGetOptions, BasicNackOptions};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};

use crate::tools::{Client, PLENTY, Reading, counts, numbers, settings, start, tickets, until};

async fn quorum(broker: &RabbitMq, queue: &str, messages: usize) -> Client {
    let client = Client::of(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(100));
    client.declare(queue, arguments).await;
    client.publish(queue, 0..messages).await;
    client
}

/// The first message that is there. A quorum queue answers that it is empty until what was given back is in its log.
async fn first(client: &Client, queue: &str) -> Delivery {
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let got = client
                .channel
                .basic_get(queue.into(), BasicGetOptions::default())
                .await
                .unwrap();
            match got {
                Some(got) => return got.delivery,
                None => rt::sleep(Duration::from_millis(2)).await,
            }
        }
    });
    found.await.expect("nothing is in the queue")
}

/// Takes the first message and gives it back, so often.
async fn deliver_in_vain(client: &Client, queue: &str, times: usize) {
    for _ in 0..times {
        let options = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        first(client, queue).await.nack(options).await.unwrap();
    }
}

async fn a_suspect_comes_alone(series: Series) {
    let broker = start(series);
    let queue = "suspects";
    let client = quorum(&broker, queue, 1).await;
    deliver_in_vain(&client, queue, 4).await;
    client.publish(queue, 1..50).await;
    let mut reading = Reading::open(settings(&broker, queue)).await;
    let suspect = reading.read(PLENTY).await;
    assert_eq!(numbers(&suspect), [0]);
    assert_eq!(suspect[0].1.deliveries, 5);
    // All others are back: whoever else asks gets the first of them.
    let other = first(&client, queue).await;
    assert_eq!(other.data, b"1");
    let requeue = BasicNackOptions {
        requeue: true,
        multiple: false,
    };
    other.nack(requeue).await.unwrap();
    reading.settle_now(&tickets(&suspect), &Settlement::Ack).await;
    // And each of them was given back once at most.
    let mut seen = Vec::new();
    while seen.len() < 49 {
        let messages = reading.read(PLENTY).await;
        assert!(messages.iter().all(|(_, message)| message.deliveries <= 3));
        seen.extend(numbers(&messages));
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..50).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_comes_alone_on_3() {
    a_suspect_comes_alone(Series::V3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_comes_alone_on_4() {
    a_suspect_comes_alone(Series::V4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_suspects_raise_nobodys_count_more_than_once() {
    let broker = start(Series::V3);
    let queue = "many-suspects";
    let client = quorum(&broker, queue, 10).await;
    // All of them, five times.
    for _ in 0..5 {
        let mut last = None;
        for _ in 0..10 {
            last = Some(first(&client, queue).await);
        }
        let options = BasicNackOptions {
            requeue: true,
            multiple: true,
        };
        last.unwrap().nack(options).await.unwrap();
    }
    client.publish(queue, 10..40).await;
    let mut reading = Reading::open(settings(&broker, queue)).await;
    let mut seen = Vec::new();
    while seen.len() < 40 {
        let messages = reading.read(PLENTY).await;
        for (_, message) in &messages {
            assert!(message.deliveries <= 7, "{message:?}");
            assert!(message.deliveries <= 3 || messages.len() == 1);
        }
        seen.extend(numbers(&messages));
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_back_for_the_last_suspect_comes_as_everything_does() {
    let broker = start(Series::V4);
    let queue = "last-suspect";
    let client = quorum(&broker, queue, 1).await;
    deliver_in_vain(&client, queue, 4).await;
    client.publish(queue, 1..50).await;
    let mut reading = Reading::open(settings(&broker, queue)).await;
    let suspect = reading.read(PLENTY).await;
    assert_eq!(numbers(&suspect), [0]);
    reading.settle_now(&tickets(&suspect), &Settlement::Ack).await;
    // One at a time, the second would wait for the settlement of the first.
    assert_eq!(reading.take(49).await.len(), 49);
}

/// Hands everything on.
struct Pass;

impl Processor for Pass {
    type Input = String;
    type Output = ();

    async fn process(&self, _: String, _: &mut Context<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

impl BatchHandler for Pass {
    type Input = ();

    async fn handle(&self, _: &mut Batch<()>) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_one_at_a_time_between_suspects_does_not_wait_for_its_batch_to_fill() {
    let broker = start(Series::V3);
    let queue = "between-suspects";
    let client = quorum(&broker, queue, 5).await;
    let requeue = BasicNackOptions {
        requeue: true,
        multiple: false,
    };
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(first(&client, queue).await);
    }
    // The first and the last are suspects, and what is between them was given back once.
    for _ in 0..4 {
        for suspect in [0, 4] {
            got[suspect].nack(requeue).await.unwrap();
            got[suspect] = first(&client, queue).await;
        }
    }
    for delivery in got {
        delivery.nack(requeue).await.unwrap();
    }
    let connector = Arc::new(RabbitConnector::new(settings(&broker, queue)));
    let flow = Flow::process(Pass).batch("keep", Pass);
    let mut spec = PipelineSpec::new("between", connector, flow);
    spec.dead_letter = DeadLetter::Discard;
    let batcher = BatcherSpec {
        max_age: Duration::from_hours(1),
        ..BatcherSpec::default()
    };
    spec.batchers.insert("keep".to_owned(), batcher);
    let host = Host::start([spec]).unwrap();
    until("all are done", || {
        let (ready, underway, _) = counts(&broker, queue);
        ready + underway == 0
    })
    .await;
    host.drain(Duration::from_secs(10)).await;
}
