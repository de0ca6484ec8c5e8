//! What a broker has is damaged.

use std::fs;

use millstream_core::Condition;

use crate::support::{Done, Member, OwnKafka, Topic, keyed, until};

/// P1 P7: with `check.crcs` librdkafka leaves out messages whose checksum is wrong, which then look like a gap. Nothing
/// behind them is read or committed, and whoever looks is told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p7_nothing_is_read_past_damaged_messages() {
    let kafka = OwnKafka::start().await;
    let topic = Topic::with(&kafka.brokers(), "damaged", 1, &[]).await;
    for batch in [0..10, 10..20, 20..30] {
        topic.publish(&keyed(batch, 1)).await;
    }
    kafka
        .while_stopped(|folder| {
            let path = folder.join("data/damaged-0/00000000000000000000.log");
            let mut log = fs::read(&path).unwrap();
            let at = log.windows(7).position(|bytes| bytes == b"key0-15").unwrap();
            log[at + 5] = b'x';
            fs::write(&path, log).unwrap();
        })
        .await;
    let done = Done::default();
    let member = Member::start(
        topic.reads().property("check.crcs", "true").unwrap(),
        |spec| spec.supervisor.max_restarts = 1,
        {
            let done = done.clone();
            move |message| {
                done.add(&message);
                async { Ok(()) }
            }
        },
    );
    until("it gives up", || async {
        matches!(member.pipeline().status().condition, Condition::GaveUp(_))
    })
    .await;
    let Condition::GaveUp(why) = member.pipeline().status().condition else {
        unreachable!("it gave up");
    };
    assert!(why.contains("damaged"), "{why}");
    // P1: what came before the damage is done with first, or each start would read just that again.
    assert_eq!((done.distinct(), done.total()), (10, 10));
    assert_eq!(topic.total_committed().await, 10);
}
