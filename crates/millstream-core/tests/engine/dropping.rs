//! Outputs that panic when they are dropped: what is the user's must not take along what is the engine's (P2).

use std::time::Duration;

use millstream_core::{Batch, BatchHandler, BatcherSpec, Context, Failure, Flow, Processor};

use crate::support::{Rig, non_zero, until};

struct Makes;

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        // The last one is dropped with the pipeline, by whoever does that.
        if tokio::task::try_id().is_some() && !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

impl Processor for Makes {
    type Input = String;
    type Output = Option<Bomb>;

    async fn process(&self, payload: String, _: &mut Context<'_>) -> Result<Option<Bomb>, Failure> {
        Ok((payload == "bomb").then(|| Bomb))
    }
}

/// Rejects the first item.
struct Rejects;

impl BatchHandler for Rejects {
    type Input = Option<Bomb>;

    async fn handle(&self, batch: &mut Batch<Option<Bomb>>) -> Result<(), Failure> {
        batch.fail(0, Failure::reject("the first"));
        Ok(())
    }
}

fn rig(size: usize) -> Rig {
    Rig::start(Flow::process(Makes).batch("out", Rejects), |spec| {
        spec.processor.concurrency = non_zero(1);
        let batcher = BatcherSpec {
            size: non_zero(size),
            max_age: Duration::from_secs(60),
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    })
}

#[tokio::test(start_paused = true)]
async fn p2_a_batch_is_settled_whatever_its_items_do_when_they_are_dropped() {
    let rig = rig(3);
    rig.publish(&["bomb", "ok", "ok"]);
    until(|| rig.queue.is_empty()).await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.acked, counts.rejected), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn p2_what_a_cut_takes_out_of_a_batcher_is_released_whatever_it_does_when_it_is_dropped() {
    let rig = rig(4);
    rig.publish(&["ok", "bomb", "ok"]);
    until(|| {
        rig.pipeline()
            .status()
            .batchers
            .iter()
            .any(|(_, held)| *held == 3)
    })
    .await;
    let report = rig.pipeline().stop().await;
    assert_eq!((report.released, report.left), (3, 0), "{report}");
}
