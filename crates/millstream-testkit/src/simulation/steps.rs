//! What is done to a pipeline and to its broker: one [`Step`] after the other.

use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Pipeline, Rebalance, Scope};

use super::drain::drain;
use super::plan::{Step, ms};
use super::world::World;

/// Does this to the pipeline or to its broker.
pub(super) async fn take(world: &World, pipeline: &Pipeline, step: Step) {
    let until = |lasts| world.lock().now() + lasts;
    match step {
        Step::Crash => {
            world.lock().met("crash");
            world.crash();
            std::future::pending::<()>().await;
        }
        Step::Disconnect => {
            let (generations, engine) = {
                let mut state = world.lock();
                state.met("disconnect");
                (state.disconnect(), state.engine.clone())
            };
            for generation in &generations {
                if let Some(engine) = &engine {
                    engine.lost(Scope::Generation(*generation));
                }
            }
            world.lock().model.tell(&generations);
            world.wake_readers();
        }
        Step::SourceFails => {
            let mut state = world.lock();
            state.broker.trouble.read_fails = true;
            state.broker.trouble.opens_fail = state.rng.u32(..3);
            drop(state);
            world.wake_readers();
        }
        Step::Revoke { within } => rebalance(world, None, Some(within)).await,
        Step::LosePartition => rebalance(world, None, None).await,
        Step::Pause { lasts } => {
            world.lock().met("pause");
            pipeline.pause();
            rt::sleep(lasts).await;
            pipeline.resume();
        }
        Step::Drain { within } => {
            world.lock().met("drain");
            drain(world, pipeline, within).await;
            start(world, pipeline);
        }
        Step::Stop => {
            world.lock().met("stop");
            drain(world, pipeline, Duration::ZERO).await;
            start(world, pipeline);
        }
        Step::SlowAcks { lasts } => world.lock().broker.trouble.slow_acks = until(lasts),
        Step::FailingAcks { lasts } => world.lock().broker.trouble.failing_acks = until(lasts),
        Step::SlowLetters { lasts } => world.lock().broker.trouble.slow_letters = until(lasts),
        Step::FailingLetters { lasts } => world.lock().broker.trouble.failing_letters = until(lasts),
    }
}

fn start(world: &World, pipeline: &Pipeline) {
    {
        let mut state = world.lock();
        state.model.reset();
        state.draining = false;
    }
    if let Err(error) = pipeline.start() {
        world
            .lock()
            .violate("P6", format!("a drained pipeline does not start again: {error}"));
    }
}

/// A partition goes to another member, in good order or without, and comes back.
async fn rebalance(world: &World, number: Option<usize>, within: Option<Duration>) {
    let (number, generation, origin, engine) = {
        let mut state = world.lock();
        let many = state.broker.partitions.len().max(1);
        let number = number.unwrap_or_else(|| state.rng.usize(..many));
        let origin = state.broker.origins.get(number).copied().unwrap_or_default();
        let Some(generation) = state
            .broker
            .partitions
            .get(number)
            .and_then(|partition| partition.assigned)
        else {
            return;
        };
        state.met(if within.is_some() {
            "revoked partition"
        } else {
            "lost partition"
        });
        let Some(engine) = state.engine.clone() else {
            return;
        };
        (number, generation, origin, engine)
    };
    let scope = Scope::Origin(origin, generation);
    let fence = || {
        let mut state = world.lock();
        // It may have been opened anew meanwhile.
        let same = state
            .broker
            .partitions
            .get(number)
            .is_some_and(|partition| partition.assigned == Some(generation));
        if same {
            state.commit(number);
            state.lose(|ticket| ticket.generation == generation);
            if let Some(partition) = state.broker.partitions.get_mut(number) {
                partition.assigned = None;
            }
        }
        same
    };
    let ours = match within {
        Some(within) => {
            // Nothing is fetched from a partition that is about to go.
            {
                let mut state = world.lock();
                state.broker.hold(number);
                // What has not started is dropped, and nothing of it is in flight any more.
                state.model.withdraw(generation);
            }
            engine.revoke(scope, rt::now() + within).await;
            engine.rebalanced(Rebalance::Revoked);
            fence()
        }
        None => {
            let ours = fence();
            engine.lost(scope);
            engine.rebalanced(Rebalance::Lost);
            ours
        }
    };
    world.lock().model.tell(&[generation]);
    world.look();
    let away = ms(world.lock().rng.u64(..300));
    rt::sleep(away).await;
    if ours {
        let mut state = world.lock();
        let gone = state
            .broker
            .partitions
            .get(number)
            .is_some_and(|partition| partition.assigned.is_none());
        if gone {
            state.assign(number);
            state.tell_halts();
        }
    }
    world.wake_readers();
}

/// Mends what partitions stand still at, and has them read anew.
pub(super) async fn mend(world: &World) {
    loop {
        let mended = world.lock().mend();
        let Some(number) = mended else { return };
        rebalance(world, Some(number), None).await;
    }
}
