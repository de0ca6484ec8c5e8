//! The simulated broker as the engine sees it.

use millstream_core::rt;
use millstream_core::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, EngineHandle, OpenError, Outcome, Read, Settle,
    SharedSinkConnector, Source, SourceError,
};

use super::letters::Mailbox;
use super::plan::ms;
use super::world::World;

/// Opens the simulated broker for one process.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) world: World,
    pub(super) process: u32,
    pub(super) capabilities: Capabilities,
    pub(super) puts_off: bool,
}

impl Connector for Door {
    type Source = Reader;
    type Acknowledger = Settler;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        self.puts_off.then(|| Mailbox::retries(&self.world, self.process))
    }

    async fn open(&self, engine: EngineHandle) -> Result<(Reader, Settler), OpenError> {
        let (world, process) = (self.world.clone(), self.process);
        {
            let Some(mut state) = world.of(process) else {
                return Err(OpenError::Unavailable("the process is dead".to_owned()));
            };
            if state.broker.trouble.opens_fail > 0 && !state.calm {
                state.broker.trouble.opens_fail -= 1;
                state.met("broker not there");
                return Err(OpenError::Unavailable("told not to be there".to_owned()));
            }
            let places = state.broker.partitions.len().max(1);
            let origins = (0..places)
                .map(|number| engine.origin(&format!("place-{number}")))
                .collect();
            state.engine = Some(engine);
            state.open(origins);
        }
        let reader = Reader {
            world: world.clone(),
            process,
            draining: false,
        };
        let settler = Settler {
            world,
            process,
            kept: Vec::new(),
        };
        Ok((reader, settler))
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    world: World,
    process: u32,
    draining: bool,
}

impl Source for Reader {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        if self.draining {
            return Ok(Read::Ended);
        }
        let late = {
            let Some(mut state) = self.world.of(self.process) else {
                return std::future::pending().await;
            };
            state.asked(credit.messages, credit.bytes);
            // A broker that answers after a while, a broker that answers at once.
            state.chance(100).then(|| ms(state.rng.u64(1..20)))
        };
        self.world.look();
        if let Some(late) = late {
            rt::sleep(late).await;
        }
        loop {
            let mut changed = std::pin::pin!(self.world.changed());
            changed.as_mut().enable();
            let due = {
                let Some(mut state) = self.world.of(self.process) else {
                    return std::future::pending().await;
                };
                if std::mem::take(&mut state.broker.trouble.read_fails) {
                    state.met("failed read");
                    state.broker.trouble.read_failed = true;
                    // What it has given by then is nobody's but the engine's.
                    if state.rng.bool() {
                        state.met("failed read with messages");
                        state.hand_out(credit.messages.min(3), credit.bytes, chunk);
                    }
                    return Err(SourceError("told to fail".to_owned()));
                }
                let most = state.rng.usize(1..=credit.messages.min(100));
                state.hand_out(most, credit.bytes, chunk)
            };
            if !chunk.is_empty() {
                return Ok(Read::Messages);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = rt::sleep_until(due.unwrap_or_else(rt::now)), if due.is_some() => {}
            }
        }
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

#[derive(Debug)]
pub(super) struct Settler {
    world: World,
    process: u32,
    /// Kept back, to be sent with others.
    kept: Vec<Settle>,
}

impl Settler {
    async fn slowly(&self) {
        let wait = {
            let Some(mut state) = self.world.of(self.process) else {
                return std::future::pending().await;
            };
            let slow = state.now() < state.broker.trouble.slow_acks && !state.calm;
            if slow {
                state.met("slow settlement");
            }
            slow.then(|| ms(state.rng.u64(1..200)))
        };
        if let Some(wait) = wait {
            rt::sleep(wait).await;
        }
    }

    fn send(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        let Some(mut state) = self.world.of(self.process) else {
            return;
        };
        for settle in settlements {
            let failing = state.now() < state.broker.trouble.failing_acks && !state.calm;
            let fails = failing && state.rng.bool();
            let outcome = state.settle(settle, fails);
            outcomes.push((settle.clone(), outcome));
        }
        for number in 0..state.broker.partitions.len() {
            if state.rng.bool() {
                state.commit(number);
            }
        }
        drop(state);
        self.world.wake_readers();
        self.world.look();
    }
}

impl Acknowledger for Settler {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        self.slowly().await;
        let keeps = self.world.lock().chance(200);
        if keeps {
            self.kept.extend_from_slice(settlements);
        } else {
            self.send(settlements, outcomes);
        }
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        self.slowly().await;
        let kept = std::mem::take(&mut self.kept);
        self.send(&kept, outcomes);
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        if let Some(mut state) = self.world.of(self.process) {
            state.left_behind = Some((state.model.outstanding().0, state.model.unheard()));
            for number in 0..state.broker.partitions.len() {
                state.commit(number);
            }
            state.close();
        }
        self.world.wake_readers();
    }
}
