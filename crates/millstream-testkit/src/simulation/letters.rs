//! Where messages go that are given up or put off: sinks that may be slow, fail and refuse.

use std::sync::Arc;

use millstream_core::rt;
use millstream_core::{
    Delivered, Message, OpenError, Outgoing, SharedSinkConnector, Sink, SinkConnector, SinkError,
};

use super::plan::ms;
use super::world::{Event, World};

/// A sink of the simulated broker.
#[derive(Clone, Debug)]
pub(super) struct Mailbox {
    world: World,
    process: u32,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    DeadLetters,
    Retries,
    /// What a flow writes: of no interest but for its troubles.
    Outputs,
}

impl Mailbox {
    pub(super) fn dead_letters(world: &World, process: u32) -> SharedSinkConnector {
        Self::shared(world, process, What::DeadLetters)
    }

    pub(super) fn retries(world: &World, process: u32) -> SharedSinkConnector {
        Self::shared(world, process, What::Retries)
    }

    pub(super) fn outputs(world: &World, process: u32) -> SharedSinkConnector {
        Self::shared(world, process, What::Outputs)
    }

    fn shared(world: &World, process: u32, what: What) -> SharedSinkConnector {
        Arc::new(Self {
            world: world.clone(),
            process,
            what,
        })
    }

    /// The broker's answer for one message.
    fn take(&self, outgoing: &Outgoing) -> Option<Delivered> {
        let mut state = self.world.of(self.process)?;
        let failing = state.now() < state.broker.trouble.failing_letters && !state.calm;
        let answer = match if failing { state.rng.u8(..3) } else { 2 } {
            0 => Delivered::Failed("told to fail".to_owned()),
            1 => Delivered::Refused("told to refuse".to_owned()),
            _ => Delivered::Confirmed,
        };
        let delivery = outgoing.ticket.and_then(|ticket| state.model.find(&ticket));
        let Some(delivery) = delivery else {
            return Some(answer);
        };
        state.note(Event::Letter(
            delivery,
            match &answer {
                Delivered::Confirmed => "confirmed",
                Delivered::Refused(_) => "refused",
                Delivered::Failed(_) => "failed",
            },
        ));
        if answer != Delivered::Confirmed {
            state.met(if failing { "letter not taken" } else { "letter" });
            return Some(answer);
        }
        let number = state.model.post(delivery);
        let written = state.broker.posts.get(number).map(|post| post.written);
        match self.what {
            What::DeadLetters => {
                state.model.tally.dead_lettered += 1;
                if let Some(found) = state.model.get(delivery) {
                    found.written = true;
                }
            }
            What::Retries => {
                state.model.tally.put_off += 1;
                if let Some(found) = state.model.get(delivery) {
                    found.written = true;
                    found.put_off = true;
                }
                let message = Message {
                    payload: outgoing.payload.clone(),
                    key: outgoing.key.clone(),
                    headers: outgoing.headers.clone(),
                    ..Message::default()
                };
                state.post(written.unwrap_or_default(), message, outgoing.delay);
            }
            What::Outputs => {}
        }
        drop(state);
        self.world.wake_readers();
        Some(answer)
    }
}

impl SinkConnector for Mailbox {
    type Sink = Self;

    async fn open(&self) -> Result<Self, OpenError> {
        let Some(mut state) = self.world.of(self.process) else {
            return std::future::pending().await;
        };
        let failing = state.now() < state.broker.trouble.failing_letters && !state.calm;
        if failing && state.rng.u8(..4) == 0 {
            return Err(OpenError::Unavailable("told not to be there".to_owned()));
        }
        Ok(self.clone())
    }
}

impl Sink for Mailbox {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let (slow, breaks) = {
            let Some(mut state) = self.world.of(self.process) else {
                return std::future::pending().await;
            };
            let now = state.now();
            let slow = now < state.broker.trouble.slow_letters && !state.calm;
            let failing = now < state.broker.trouble.failing_letters && !state.calm;
            if slow {
                state.met("slow letter");
            }
            let wait = slow.then(|| ms(state.rng.u64(1..400)));
            (wait, failing && state.rng.u8(..5) == 0)
        };
        if let Some(slow) = slow {
            rt::sleep(slow).await;
        }
        if breaks {
            return Err(SinkError("told to break".to_owned()));
        }
        for outgoing in messages {
            match self.take(outgoing) {
                Some(answer) => results.push(answer),
                None => return std::future::pending().await,
            }
        }
        Ok(())
    }
}
