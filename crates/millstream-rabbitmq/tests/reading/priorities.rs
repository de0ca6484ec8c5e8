//! Dead letters in queues that hand out some of them first.
//!
//! What a visit has put back comes again before what has a lower priority.

use std::collections::BTreeMap;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{LetterError, Letters, SinkConnector as _, Visit};
use millstream_rabbitmq::lapin::BasicProperties;
use millstream_rabbitmq::lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions,
};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::{Declare, Dial, RabbitSink, Topology};

use crate::tools::{BROKER, Client, start};

/// What a letter of a high priority has, so that few of them fill the room that there is for them: 32 MiB.
const LARGE: usize = 4 << 20;
const ROOM: usize = 8;

fn kind(name: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(name.into()));
    arguments
}

/// Publishes letters of this length and priority, each with a beginning of its own.
async fn publish(client: &Client, queue: &str, letters: std::ops::Range<usize>, bytes: usize, priority: u8) {
    for number in letters {
        let mut body = format!("{number}.").into_bytes();
        body.resize(bytes.max(body.len()), b'x');
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_priority(priority);
        let options = BasicPublishOptions::default();
        let published = client
            .channel
            .basic_publish("".into(), queue.into(), options, &body, properties);
        published.await.unwrap().await.unwrap();
    }
}

async fn look(broker: &RabbitMq, topology: Topology) -> Box<dyn Letters> {
    let dial = Dial::new([broker.url()]).unwrap().name("millstream tests");
    let letters = RabbitSink::queue(dial, topology).letters().unwrap();
    letters.open(Visit::Look).await.unwrap()
}

/// How many messages the queue has ready.
async fn ready(client: &Client, queue: &str) -> usize {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = client
        .channel
        .queue_declare(queue.into(), passive, FieldTable::default());
    declared.await.unwrap().message_count() as usize
}

/// Goes through all letters, at most so many at a time: how often each was given, by its number, and the most that were away
/// from the queue.
async fn all(
    visit: &mut dyn Letters,
    client: &Client,
    queue: &str,
    most: usize,
) -> Result<(BTreeMap<usize, usize>, usize), LetterError> {
    let (mut given, mut away) = (BTreeMap::new(), 0);
    let before = ready(client, queue).await;
    loop {
        let letters = visit.next(most).await?;
        if letters.is_empty() {
            return Ok((given, away));
        }
        let large = letters.iter().filter(|letter| letter.payload.len() == LARGE);
        assert!(
            large.count() <= ROOM,
            "more are handed on at once than there is room for"
        );
        for letter in letters {
            let number = letter.payload.split(|byte| *byte == b'.').next().unwrap();
            let number: usize = std::str::from_utf8(number).unwrap().parse().unwrap();
            *given.entry(number).or_default() += 1;
        }
        away = away.max(before - ready(client, queue).await);
    }
}

fn once(numbers: std::ops::Range<usize>) -> BTreeMap<usize, usize> {
    numbers.map(|number| (number, 1)).collect()
}

/// P4: what was put back and comes again is kept away within bounds, and all others are reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_queue_with_priorities_is_gone_through_once_within_bounds() {
    let (broker, queue) = (start(Series::V4), "priorities");
    let client = Client::of(&broker).await;
    client.declare(queue, kind("quorum")).await;
    publish(&client, queue, 0..12, LARGE, 9).await;
    publish(&client, queue, 12..52, 0, 0).await;
    // Asked for all at once, those of no size may all be away too.
    for (most, bound) in [(2, ROOM + 2), (500, usize::MAX), (2, ROOM + 2)] {
        let mut visit = look(&broker, Topology::new(queue)).await;
        let (given, away) = all(&mut *visit, &client, queue, most).await.unwrap();
        assert_eq!(given, once(0..52));
        assert!(away <= bound, "{away} were away");
        visit.close().await.unwrap();
    }
}

/// P4, P8: where letters of higher priorities are all that comes, and more than there is room for, a visit says so; they stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_classic_queue_whose_first_letters_are_too_many_says_so_and_what_to_do() {
    let queue = "strict-priorities";
    let client = Client::of(&BROKER).await;
    let mut arguments = kind("classic");
    arguments.insert("x-max-priority".into(), AMQPValue::ShortShortInt(9));
    client.declare(queue, arguments.clone()).await;
    publish(&client, queue, 0..ROOM + 1, LARGE, 9).await;
    publish(&client, queue, ROOM + 1..ROOM + 4, 0, 0).await;

    let mut visit = look(&BROKER, Topology::new(queue)).await;
    let said = all(&mut *visit, &client, queue, 2).await.unwrap_err().to_string();
    assert!(
        said.contains("higher priorities") && said.contains("`declare`"),
        "{said}"
    );
    visit.close().await.unwrap();

    let mut declare = Declare::default();
    declare.arguments = arguments;
    let mut visit = look(&BROKER, Topology::new(queue).declare(declare)).await;
    let (given, _) = all(&mut *visit, &client, queue, 2).await.unwrap();
    assert_eq!(given, once(0..ROOM + 4));
    visit.close().await.unwrap();
}

/// Where others have taken letters meanwhile, a visit ends with those that there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_visit_ends_when_only_what_it_has_put_back_is_left() {
    let queue = "taken-meanwhile";
    let client = Client::of(&BROKER).await;
    client.declare(queue, kind("quorum")).await;
    publish(&client, queue, 0..ROOM + 2, LARGE, 0).await;
    let mut visit = look(&BROKER, Topology::new(queue)).await;
    let got = client.channel.basic_get(queue.into(), BasicGetOptions::default());
    let taken = got.await.unwrap().unwrap().delivery;
    let acked = client
        .channel
        .basic_ack(taken.delivery_tag, BasicAckOptions::default());
    acked.await.unwrap();
    let (given, _) = all(&mut *visit, &client, queue, 2).await.unwrap();
    assert_eq!(given, once(1..ROOM + 2));
    visit.close().await.unwrap();
}
