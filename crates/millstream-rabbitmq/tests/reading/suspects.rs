//! Messages that were delivered often, on quorum queues.

use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Settlement, rt};
use millstream_rabbitmq::lapin::message::Delivery;
use millstream_rabbitmq::lapin::options::{BasicGetOptions, BasicNackOptions};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};

use crate::tools::{Client, PLENTY, Reading, numbers, settings, start, tickets};

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
