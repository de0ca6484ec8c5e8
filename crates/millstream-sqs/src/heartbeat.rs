//! The heartbeat: what is queued or runs stays hidden from others. [`run`], and [`watch`] for how much waits.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use millstream_core::rt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

use crate::desk::{Desk, Stage};
use crate::leases::Beat;
use crate::service::BATCH;

/// No two looks at the clock come sooner than this one after the other.
const SHORTEST: Duration = Duration::from_millis(20);
/// So many calls one after another put off all that is due at once: no more than a part in so many is in a call at a time.
const ROUND: usize = 16;
/// Calls under way at a time where there are few.
const FEWEST: usize = 4;
/// How often to ask how many messages wait.
const DEPTH: Duration = Duration::from_secs(15);

/// Puts off the time of all that is held, until the desk is closed. What cannot be put off in time is lost.
pub(crate) async fn run(desk: Arc<Desk>) {
    let mut calls = JoinSet::new();
    loop {
        let next = desk.next_beat().max(rt::now() + SHORTEST);
        tokio::select! {
            biased;
            () = desk.past(Stage::Draining) => break,
            Some(_) = calls.join_next() => continue,
            () = rt::sleep_until(next) => {}
        }
        let due = desk.due();
        if !due.expired.is_empty() {
            desk.lose(due.expired);
        }
        // A call that has begun holds up what is given back meanwhile, so few of them are under way at a time.
        let number = due.beats.len().div_ceil(BATCH);
        let places = Arc::new(Semaphore::new((number / ROUND).max(FEWEST)));
        for some in due.beats.chunks(BATCH) {
            calls.spawn(put_off(Arc::clone(&desk), Arc::clone(&places), some.to_vec()));
        }
    }
    // What is given back waits for those that are under way.
    calls.detach_all();
}

/// Puts these off when there is a place for the call.
async fn put_off(desk: Arc<Desk>, places: Arc<Semaphore>, mut beats: Vec<Beat>) {
    // It is never closed.
    let _place = places.acquire().await;
    desk.beat(&mut beats);
    if beats.is_empty() {
        return;
    }
    let from = rt::now();
    let entries: Vec<_> = beats
        .iter()
        .map(|(_, receipt, time)| (Arc::clone(receipt), *time))
        .collect();
    let taken = desk.service.hide(&entries).await;
    let lost = desk.beaten(from, &beats, &taken);
    if !lost.is_empty() {
        desk.lose(lost);
    }
}

/// Says every some seconds how many messages wait, until the desk is closed.
pub(crate) async fn watch(desk: Arc<Desk>) {
    let name = QueueAttributeName::ApproximateNumberOfMessages;
    loop {
        match desk.service.attributes(std::slice::from_ref(&name)).await {
            Ok(attributes) => {
                if let Some(depth) = attributes.get(&name).and_then(|depth| depth.parse().ok()) {
                    desk.engine.depth(depth);
                }
            }
            // That the queue cannot be reached is for the polls to say.
            Err(trouble) => debug!(trouble.text, "the number of messages is not known"),
        }
        tokio::select! {
            biased;
            () = desk.past(Stage::Draining) => return,
            () = rt::sleep(DEPTH) => {}
        }
    }
}
