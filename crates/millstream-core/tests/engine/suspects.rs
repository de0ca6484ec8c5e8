//! Messages that may end their process run alone, and the culprit alone is given up.

use std::sync::Arc;

use millstream_core::{Message, Reason};

use crate::support::{Rig, What, scripted, until};

fn delivered(payload: &str, deliveries: u32) -> Message {
    Message {
        deliveries,
        ..Message::new(payload.to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_runs_alone_and_what_was_fetched_with_it_is_released() {
    let processor = crate::support::Scripted::default();
    let (log, running) = (processor.log.clone(), Arc::clone(&processor.running));
    let rig = Rig::start(millstream_core::Flow::process(processor), |_| {});
    let mut most_running = 0;
    rig.queue
        .publish_all((0..5).map(|_| delivered("sleep=100 innocent", 0)));
    rig.queue.publish(delivered("sleep=100 suspect", 3));
    rig.queue
        .publish_all((0..5).map(|_| delivered("sleep=100 innocent", 0)));
    until(|| log.count(What::Began, "sleep=100 suspect") == 1).await;
    while log.count(What::Ended, "sleep=100 suspect") == 0 {
        most_running = running
            .load(std::sync::atomic::Ordering::SeqCst)
            .max(most_running);
        assert!(
            rig.queue.leased() <= 1,
            "something else was held beside the suspect"
        );
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(most_running, 1);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.suspects, counts.released, counts.acked), (1, 10, 11));
}

#[tokio::test(start_paused = true)]
async fn only_the_culprit_is_given_up_unrun() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.queue.publish(delivered("innocent", 3));
    rig.queue.publish(delivered("culprit", 16));
    rig.queue.publish(delivered("innocent", 15));
    rig.settled().await;
    assert_eq!(log.count(What::Began, "culprit"), 0);
    assert_eq!(log.count(What::Ended, "innocent"), 2);
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].1.reason, Reason::Deliveries);
    assert_eq!(dead[0].0.payload, "culprit");
}

#[tokio::test(start_paused = true)]
async fn a_suspect_does_not_wait_for_its_batch_to_fill() {
    use crate::support::{Scripted, ScriptedBatches};
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(
        millstream_core::Flow::process(Scripted::default()).batch("out", batches),
        |spec| {
            let batcher = millstream_core::BatcherSpec {
                max_age: std::time::Duration::from_secs(3_600),
                ..Default::default()
            };
            spec.batchers.insert("out".to_owned(), batcher);
        },
    );
    let started = tokio::time::Instant::now();
    rig.queue.publish(delivered("suspect", 5));
    rig.settled().await;
    assert!(started.elapsed().as_secs() < 1);
    assert_eq!(seen.lock()[0].closed_by, millstream_core::ClosedBy::Flush);
}
