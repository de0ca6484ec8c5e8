//! Concurrency that changes while a pipeline runs: nothing is broken off, lost or done twice.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream_core::Flow;

use crate::support::{Rig, Scripted, What, non_zero, until};

fn start(concurrency: usize) -> (Rig, Scripted) {
    let processor = Scripted::default();
    let rig = Rig::start(Flow::process(processor.clone()), |spec| {
        spec.processor.concurrency = non_zero(concurrency);
    });
    (rig, processor)
}

#[tokio::test(start_paused = true)]
async fn more_workers_take_up_work_at_once() {
    let (rig, processor) = start(1);
    rig.publish(&["sleep=10000"; 8]);
    until(|| processor.running.load(SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(processor.most_running.load(SeqCst), 1);
    rig.resize(5);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(processor.running.load(SeqCst), 5);
    assert_eq!(rig.pipeline().status().concurrency, 5);
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn p2_too_many_workers_end_with_their_message_and_break_nothing_off() {
    let (rig, processor) = start(8);
    rig.publish(&["sleep=1000"; 40]);
    until(|| processor.running.load(SeqCst) == 8).await;
    rig.resize(2);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    processor.most_running.store(0, SeqCst);
    rig.settled().await;
    assert_eq!(processor.most_running.load(SeqCst), 2);
    assert_eq!(processor.log.count(What::Ended, "sleep=1000"), 40);
    assert_eq!(
        processor.log.count(What::Began, "sleep=1000"),
        40,
        "a run was broken off"
    );
}

#[tokio::test(start_paused = true)]
async fn idle_workers_that_are_too_many_leave_what_comes_to_the_others() {
    let (rig, processor) = start(8);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for workers in [1, 3, 1, 8, 2, 1] {
        rig.resize(workers);
        rig.publish(&["sleep=1"; 9]);
        rig.settled().await;
    }
    processor.most_running.store(0, SeqCst);
    rig.publish(&["sleep=1"; 9]);
    rig.settled().await;
    assert_eq!(processor.most_running.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_seat_that_is_wanted_again_before_its_worker_has_left_is_filled() {
    let (rig, processor) = start(4);
    rig.publish(&["sleep=1000"; 4]);
    until(|| processor.running.load(SeqCst) == 4).await;
    rig.resize(1);
    rig.resize(6);
    rig.resize(1);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    rig.resize(6);
    rig.publish(&["sleep=1000"; 12]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(processor.running.load(SeqCst), 6);
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn p2_resized_all_the_time_every_message_is_processed_once() {
    let (rig, processor) = start(3);
    rig.publish(&["sleep=3", "a", "sleep=7", "b"].repeat(500));
    let mut sizes = [1, 7, 2, 30, 1, 4, 16].into_iter().cycle();
    while !rig.queue.is_empty() {
        rig.resize(sizes.next().unwrap());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(processor.log.ended().len(), 2_000);
    let status = rig.pipeline().status();
    assert_eq!((status.counts.acked, status.counts.restarts), (2_000, 0));
}

#[tokio::test(start_paused = true)]
async fn p6_a_pipeline_that_is_resized_while_it_drains_drains_and_ends() {
    let (rig, processor) = start(1);
    rig.publish(&["sleep=500"; 12]);
    until(|| processor.running.load(SeqCst) == 1).await;
    let pipeline = rig.pipeline();
    let (report, ()) = tokio::join!(pipeline.drain(Duration::from_secs(5)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.resize(12);
    });
    assert_eq!((report.done, report.left), (12, 0), "{report}");
    rig.resize(3);
    assert_eq!(rig.pipeline().status().concurrency, 0);
}
