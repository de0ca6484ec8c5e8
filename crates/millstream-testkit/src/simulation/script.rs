//! Handlers that do what a seed says: succeed, fail so often, reject, hang, panic, end their process.

use std::collections::BTreeMap;
use std::error::Error;

use bytes::Bytes;
use fastrand::Rng;
use millstream_core::rt;
use millstream_core::{
    Batch, BatchHandler, Context, Decode, Failure, Flow, Message, Processor, Settlement, SharedFlow,
};

use super::plan::{Order, Plan, Rate, ms, one_of};
use super::twins::ID;
use super::world::{State, World, Written};

/// What becomes of a message in the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Succeeds,
    /// The first so many runs fail.
    Fails(u32),
    Rejects,
    Hangs(u32),
    Panics(u32),
    /// It ends its process so often.
    Kills(u32),
    /// Dropping what comes of it panics, once, and takes the worker along.
    Bomb,
    Undecodable,
    SettlesNow,
    /// Every batch that it is in fails.
    Poisons,
    /// The user's own handler decides.
    Own,
}

/// The header by which messages are ordered where it is not by their key.
const GROUP: &str = "group";
/// The header of which each value has a rate of its own.
pub(super) const TENANT: &str = "tenant";

/// The header with the number that a message has in its key.
pub(super) const NUMBER: &str = "number";

/// The number that a message has in its key, if it has one.
pub(super) fn sequence_number(message: &Message) -> Option<u64> {
    message.headers.get(NUMBER)?.parse().ok()
}

/// What a message is ordered by, if it is in order.
pub(super) fn group(message: &Message) -> Option<&[u8]> {
    let header = message.headers.get(GROUP).map(str::as_bytes);
    header.or(message.key.as_deref())
}

/// The messages of a run: written as the plan's spice has it.
pub(super) fn messages(plan: &Plan, rng: &mut Rng) -> Vec<Written> {
    let mut written: Vec<_> = (0..plan.messages)
        .map(|number| {
            let deed = deed(plan, rng, number);
            let mut payload = Vec::with_capacity(44);
            let mut fill = 1;
            if deed != Deed::Undecodable {
                payload.extend(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
                fill = rng.usize(..40);
            }
            payload.resize(payload.len() + fill, b' ');
            let mut message = Message::new(payload);
            // A few have no key, and no order.
            if rng.u8(..20) > 0 {
                // Some keys are hot.
                let key = if rng.u8(..4) == 0 {
                    rng.u32(..3)
                } else {
                    rng.u32(..plan.keys)
                };
                message = match plan.ordering {
                    Order::Header => message.with_header(GROUP, &key.to_string()),
                    Order::None | Order::Key | Order::Partition => {
                        message.with_key(key.to_be_bytes().to_vec())
                    }
                };
            }
            if plan.rate == Rate::Keys {
                message = message.with_header(TENANT, one_of(["a", "b", "c"], rng));
            }
            if plan.features.deduplicates.is_some() {
                message = message.with_header(ID, &number.to_string());
            }
            Written {
                message,
                deed,
                runs: 0,
                done: false,
                dead: false,
                failed_in_batch: false,
            }
        })
        .collect();
    if plan.features.sequence.is_some() {
        self::number(&mut written, rng);
    }
    written
}

/// Gives messages their numbers in their keys, leaves out some of these, and puts some before their turn.
fn number(written: &mut [Written], rng: &mut Rng) {
    let mut keys: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for (place, written) in written.iter().enumerate() {
        if let Some(key) = group(&written.message) {
            keys.entry(key.to_vec()).or_default().push(place);
        }
    }
    for places in keys.into_values() {
        let mut last = 0;
        let mut numbers = Vec::with_capacity(places.len());
        for _ in &places {
            last += if rng.u8(..40) == 0 { 2 } else { 1 };
            numbers.push(last);
        }
        for later in 1..numbers.len() {
            if rng.u8(..8) == 0 {
                numbers.swap(later - 1, later);
            }
        }
        for (place, number) in places.into_iter().zip(numbers) {
            if let Some(written) = written.get_mut(place) {
                let message = std::mem::take(&mut written.message);
                written.message = message.with_header(NUMBER, &number.to_string());
            }
        }
    }
}

fn deed(plan: &Plan, rng: &mut Rng, number: usize) -> Deed {
    let spice = plan.spice;
    if number == plan.messages / 2 && spice.kills > 0 {
        // Where nothing counts its deliveries it has to stop some day.
        let most = if plan.broker.counts() { 100 } else { 3 };
        return Deed::Kills(most);
    }
    let mut rest = rng.u32(..1_000);
    let kinds = [
        (spice.fails, Deed::Fails(rng.u32(1..6))),
        (spice.rejects, Deed::Rejects),
        (spice.hangs, Deed::Hangs(rng.u32(1..4))),
        (spice.panics, Deed::Panics(rng.u32(1..4))),
        (spice.undecodable, Deed::Undecodable),
        (spice.bombs, Deed::Bomb),
        (spice.settles_now, Deed::SettlesNow),
        (plan.features.poison, Deed::Poisons),
    ];
    for (share, deed) in kinds {
        if rest < share {
            return deed;
        }
        rest -= share;
    }
    Deed::Succeeds
}

/// A message's number; those that are too short have none.
#[derive(Debug)]
pub(super) struct Number(usize);

impl Decode for Number {
    fn decode(message: &Message) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let number = message.payload.first_chunk().ok_or("no number")?;
        Ok(Self(u32::from_be_bytes(*number) as usize))
    }
}

/// What comes of a run: dropped in a task of its process while it is armed, it panics.
#[derive(Debug)]
pub(super) struct Output {
    number: usize,
    armed: Option<(World, u32)>,
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some((world, process)) = self.armed.take() else {
            return;
        };
        let lives = world.of(process).is_some() && tokio::task::try_id().is_some();
        if lives && !std::thread::panicking() {
            panic_quietly();
        }
    }
}

/// No hook writes about it: thousands of runs panic on purpose.
fn panic_quietly() {
    std::panic::resume_unwind(Box::new("told to panic"));
}

/// The flow of a plan.
pub(super) fn flow(world: &World, process: u32, plan: &Plan) -> SharedFlow {
    let script = Script {
        world: world.clone(),
        process,
        batchers: plan.batchers.len(),
        ordering: plan.ordering,
    };
    let mut flow = Flow::process(script);
    for (name, _) in NAMES.into_iter().zip(&plan.batchers) {
        flow = flow.batch(
            name,
            Collects {
                world: world.clone(),
                process,
                ordered: plan.ordering != Order::None,
            },
        );
    }
    flow.into()
}

/// Names of batchers.
pub(super) const NAMES: [&str; 2] = ["first", "second"];

struct Script {
    world: World,
    process: u32,
    batchers: usize,
    ordering: Order,
}

impl Processor for Script {
    type Input = Number;
    type Output = Output;

    async fn process(&self, Number(number): Number, cx: &mut Context<'_>) -> Result<Output, Failure> {
        let (wait, deed, runs, bare) = {
            let Some(mut state) = self.world.of(self.process) else {
                return std::future::pending().await;
            };
            let slow = state.plan.spice.slow;
            let wait = state.chance(slow).then(|| ms(state.rng.u64(..40)));
            let bare = state.rng.u8(..10) == 0;
            let Some(written) = state.broker.written.get_mut(number) else {
                return Err(Failure::reject("no such message"));
            };
            written.runs += 1;
            let (deed, runs) = (written.deed, written.runs);
            (wait, deed, runs, bare)
        };
        if let Some(wait) = wait {
            rt::sleep(wait).await;
        }
        let mut armed = None;
        match deed {
            Deed::Fails(most) if runs <= most => {
                self.met("failure");
                return Err(Failure::retry("told to fail"));
            }
            Deed::Rejects => {
                self.met("reject");
                return Err(Failure::reject("told to reject"));
            }
            Deed::Hangs(most) if runs <= most => {
                self.met("hang");
                return std::future::pending().await;
            }
            Deed::Panics(most) if runs <= most => {
                self.met("panic");
                panic_quietly();
            }
            Deed::Kills(most) if runs <= most => {
                self.met("kill");
                self.world.crash();
                return std::future::pending().await;
            }
            Deed::Bomb if runs == 1 => {
                self.met("dead worker");
                armed = Some((self.world.clone(), self.process));
            }
            Deed::SettlesNow => {
                self.met("settled by the handler");
                cx.settle_now(Settlement::Ack);
            }
            _ => {}
        }
        self.choose(number, bare, cx);
        Ok(Output { number, armed })
    }
}

impl Script {
    fn met(&self, fault: &'static str) {
        if let Some(mut state) = self.world.of(self.process) {
            state.met(fault);
        }
    }

    /// Where the output goes: always the same way for one key, so that its order can be told.
    fn choose(&self, number: usize, bare: bool, cx: &mut Context<'_>) {
        let key = match self.ordering {
            Order::Partition => 0,
            Order::Key | Order::Header | Order::None => cx
                .headers()
                .get(GROUP)
                .map(str::as_bytes)
                .or(cx.key().map(AsRef::as_ref))
                .map_or(number, |key| key.iter().map(|byte| usize::from(*byte)).sum()),
        };
        match self.batchers {
            0 => {}
            batchers => {
                if bare {
                    cx.done();
                } else if let Some(name) = NAMES.get(key % batchers) {
                    cx.batch_to(name);
                }
                if key % 3 == 0 {
                    cx.batch_key(if key % 2 == 0 { "even" } else { "odd" });
                }
                if number.is_multiple_of(17) {
                    cx.flush_batch();
                }
            }
        }
    }
}

impl State {
    /// Whether this one fails every batch that it is in.
    fn poisons(&self, number: usize) -> bool {
        let written = self.broker.written.get(number);
        written.is_some_and(|written| written.deed == Deed::Poisons)
    }
}

struct Collects {
    world: World,
    process: u32,
    ordered: bool,
}

impl BatchHandler for Collects {
    type Input = Output;

    async fn handle(&self, batch: &mut Batch<Output>) -> Result<(), Failure> {
        let (wait, way, one) = {
            let Some(mut state) = self.world.of(self.process) else {
                return std::future::pending().await;
            };
            let (slow, spice) = (state.plan.spice.slow, state.plan.spice.batches);
            let wait = state.chance(slow).then(|| ms(state.rng.u64(..60)));
            let fails = !state.calm && state.chance(spice);
            let poison = batch.items().iter().find(|output| state.poisons(output.number));
            let way = match poison {
                Some(output) => match output.number % 3 {
                    0 => 3,
                    1 => 4,
                    _ => 7,
                },
                None if fails => 1 + state.rng.u8(..6),
                None => 0,
            };
            let one = batch.items().first().map_or(0, |output| output.number) % batch.len();
            let ordered = self.ordered;
            for (index, output) in batch.items().iter().enumerate() {
                if matches!(way, 1 | 2) && index == one || way == 6 && !ordered {
                    state.names(output.number);
                }
            }
            state.met(match way {
                1 => "failed item",
                2 => "rejected item",
                3 => "failed batch",
                4 => "panic in a batch",
                5 => "hanging batch",
                6 => "batch taken apart",
                7 => "rejected batch",
                _ => "batch",
            });
            (wait, way, one)
        };
        if let Some(wait) = wait {
            rt::sleep(wait).await;
        }
        match way {
            1 => batch.fail(one, Failure::retry("told to fail")),
            2 => batch.fail(one, Failure::reject("told to reject")),
            3 => return Err(Failure::retry("told to fail")),
            4 => panic_quietly(),
            5 => return std::future::pending().await,
            7 => return Err(Failure::reject("told to reject")),
            6 if !self.ordered => {
                drop(batch.take_items());
                return Err(Failure::retry("told to fail"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The payload that the user's own messages have by default: their number.
pub(super) fn numbered(number: usize) -> Message {
    Message::new(Bytes::from(number.to_string())).with_key(format!("key-{}", number % 20))
}
