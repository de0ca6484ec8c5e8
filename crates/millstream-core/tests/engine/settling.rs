//! The settlement stage: retried, and away from everything else.

use std::time::Duration;

use crate::support::{Rig, scripted, until};

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_fails_is_tried_again_and_holds_back_no_other() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.queue.fail_settlements(1);
    rig.publish(&["a"]);
    until(|| log.ended().len() == 1).await;
    rig.publish(&["b", "c"]);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(rig.queue.len(), 1, "those behind it were acknowledged");
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.settle_retries, counts.acked), (1, 3));
    assert_eq!(log.ended().len(), 3, "nothing ran twice for it");
}

#[tokio::test(start_paused = true)]
async fn p2_every_delivery_is_settled_exactly_once_whatever_becomes_of_it() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.processor.timeout = Duration::from_millis(50);
        spec.supervisor.max_restarts = 10_000;
    });
    let fates = [
        "ok",
        "fail",
        "fail-once",
        "panic",
        "reject",
        "hang",
        "bomb",
        "settle",
        "settle fail",
        "sleep=3",
    ];
    for round in 0..20 {
        rig.publish(&fates);
        rig.queue.fail_settlements(round % 3);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    rig.settled().await;
    let status = rig.pipeline().status();
    assert_eq!(status.in_flight, 0);
    let counts = status.counts;
    assert_eq!(counts.received, 200);
    assert_eq!(counts.acked + counts.rejected, 200);
    assert_eq!(counts.stale, 0, "a delivery was settled twice");
    assert_eq!(rig.queue.settlements(), 200);
}
