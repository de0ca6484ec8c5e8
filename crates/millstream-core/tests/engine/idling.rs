//! When a pipeline is idle: nothing is left to do, as far as it can know.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use millstream_core::{Message, RateLimit};
use tokio::time::Instant;

use crate::support::{Rig, scripted};

const SECOND: Duration = Duration::from_secs(1);

/// What is over a limit is left to do, whether it waits to be fetched or was given back until its turn.
#[tokio::test(start_paused = true)]
async fn a_pipeline_is_not_idle_while_a_limit_holds_back_what_is_there_and_is_soon_after() {
    for key in [None, Some("tenant".to_owned())] {
        let (_, flow) = scripted();
        let rig = Rig::start(flow, |spec| {
            spec.rate_limit = Some(RateLimit {
                messages: NonZeroU32::MIN,
                per: 60 * SECOND,
                burst: NonZeroU32::MIN,
                key,
                weights: BTreeMap::new(),
            });
        });
        let began = Instant::now();
        rig.queue
            .publish_all((0..4).map(|_| Message::new("a").with_header("tenant", "a")));
        rig.host.idle(2 * SECOND).await;
        assert!(rig.queue.is_empty(), "{} are left to do", rig.queue.len());
        let took = began.elapsed();
        assert!((182 * SECOND..250 * SECOND).contains(&took), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_taken_back_keeps_a_pipeline_busy_no_longer() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.rate_limit = Some(RateLimit {
            messages: NonZeroU32::MIN,
            per: 3_600 * SECOND,
            burst: NonZeroU32::MIN,
            key: None,
            weights: BTreeMap::new(),
        });
    });
    rig.publish(&["a"]);
    rig.settled().await;
    rig.pipeline().change(|spec| spec.rate_limit = None).unwrap();
    let began = Instant::now();
    rig.host.idle(2 * SECOND).await;
    let took = began.elapsed();
    assert!(took < 5 * SECOND, "{took:?}");
}
