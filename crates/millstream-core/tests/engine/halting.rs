//! `dead_letter = "halt"`.

use millstream_core::memory::MemoryQueue;
use millstream_core::{Capabilities, DeadLetter, Host, Ordering, PipelineSpec, StartError};

use crate::support::{Rig, scripted, until};

#[tokio::test(start_paused = true)]
async fn p3_nothing_that_follows_what_is_given_up_starts_where_its_place_halts() {
    let queue = MemoryQueue::with_capabilities(Capabilities {
        halts: true,
        ..Capabilities::default()
    });
    let (log, flow) = scripted();
    let rig = Rig::on(queue, flow, |spec| {
        spec.dead_letter = DeadLetter::Halt;
        spec.ordering = Ordering::Partition;
    });
    rig.publish(&["a", "reject", "b", "c"]);
    until(|| {
        let status = rig.pipeline().status();
        status.counts.rejected == 1 && status.counts.lost == 2 && status.in_flight == 0
    })
    .await;
    assert_eq!(log.ended(), ["a"]);
    assert_eq!(log.events().len(), 3, "it began, and nothing after it");
}

#[tokio::test]
async fn a_source_that_cannot_halt_is_refused() {
    let (_, flow) = scripted();
    let mut spec = PipelineSpec::new("test", std::sync::Arc::new(MemoryQueue::new()), flow);
    spec.dead_letter = DeadLetter::Halt;
    match Host::start([spec]) {
        Err(StartError::Pipeline { cause, .. }) => assert_eq!(
            cause,
            "its source cannot stop at a message: name a dead letter, or discard"
        ),
        other => panic!("{other:?}"),
    }
}
