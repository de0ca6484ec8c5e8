//! The cases: [`Case`], and the list of all of them.

mod bounds;
mod ending;
mod faults;
mod order;
mod publishing;
mod settling;
mod subscribing;

use std::fmt;
use std::future::Future;

use millstream_core::BoxFuture;

use super::features::Feature::{
    self, Backlog, ComesOften, Consumers, CountsDeliveries, Cuts, Delay, Faults, Groups, Headers,
    KeepsRejected, Keys, Ordered, OrdersKeys, Retries,
};
use super::trial::Trial;

/// One case of the suite.
pub struct Case {
    /// What it is called, in reports and by [`run_one`](super::run_one).
    pub name: &'static str,
    /// Whose case it was first.
    pub from: &'static str,
    /// The promise that it guards, of those in `ARCHITECTURE.md`.
    pub guards: &'static str,
    /// What it shows.
    pub claim: &'static str,
    /// What a subject has to declare for it to be run.
    pub needs: &'static [Feature],
    pub(crate) run: fn(Trial) -> BoxFuture<'static, ()>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn boxed(run: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    Box::pin(run)
}

macro_rules! case {
    ($module:ident::$name:ident, $from:literal, $guards:literal, [$($needs:ident),*], $claim:literal) => {
        Case {
            name: stringify!($name),
            from: $from,
            guards: $guards,
            claim: $claim,
            needs: &[$($needs),*],
            run: |trial| boxed($module::$name(trial)),
        }
    };
}

/// All of them, in the order in which they run.
#[rustfmt::skip]
pub(crate) static ALL: &[Case] = &[
    case!(publishing::publish_subscribe, "Watermill 1", "P1", [],
        "what is published arrives, once, and a drained source ends"),
    case!(publishing::headers, "Watermill 1", "P1", [Headers],
        "headers arrive as they were published"),
    case!(publishing::keys, "Watermill 1", "P3", [Keys],
        "keys arrive as they were published, and no key stays none"),
    case!(subscribing::concurrent_subscribe, "Watermill 2", "P1 P2", [Consumers],
        "many consumers share a place: each message goes to one of them"),
    case!(subscribing::concurrent_subscribe_multiple_topics, "Watermill 3", "P1", [],
        "many places at once, each with its own consumer"),
    case!(order::publish_subscribe_in_order, "Watermill 4", "P3", [Keys, Ordered],
        "a pipeline ordered by key runs each key in the order of publishing"),
    case!(settling::resend_on_error, "Watermill 5", "P1", [],
        "two released messages of a hundred come again"),
    case!(settling::no_ack, "Watermill 6", "P1 P4", [],
        "with one place in flight, nothing comes while a message is unsettled, and it does not come again"),
    case!(subscribing::continue_after_subscribe_close, "Watermill 7", "P1", [ComesOften],
        "consumers that come and go with messages unsettled lose none"),
    case!(subscribing::concurrent_close, "Watermill 8", "P1", [Consumers, ComesOften],
        "consumers that open and close at once leave the place as it was"),
    case!(settling::continue_after_errors, "Watermill 9", "P1", [ComesOften],
        "three hundred releases later, every message still comes"),
    case!(subscribing::consumer_groups, "Watermill 10", "P1", [Groups],
        "each of two groups sees every message"),
    case!(publishing::publisher_close, "Watermill 11", "P1", [],
        "what publishers had confirmed before they closed arrives"),
    case!(publishing::topic, "Watermill 12", "P1", [],
        "a place gives what was published to it and nothing else"),
    case!(ending::message_ctx, "Watermill 13", "P2 P6", [],
        "a pipeline that is stopped cancels the run, and its message comes again"),
    case!(subscribing::subscribe_ctx, "Watermill 14", "P2", [],
        "reads dropped at any moment lose nothing, and another consumer gets all that was not settled"),
    case!(faults::reconnect, "Watermill 15", "P1 P2", [Faults],
        "a pipeline with its publishers loses nothing while its broker goes away twice"),
    case!(publishing::new_subscriber_receives_old_messages, "Watermill 16", "P1", [Backlog],
        "what was published before the first consumer came is kept for it"),
    case!(settling::checkpoint_capture, "Benthos", "P1 P2", [],
        "of five messages, two released among three acknowledged: another consumer gets the two"),
    case!(bounds::saturated_unacked, "Benthos", "P2 P4", [],
        "a pipeline saturated with unsettled messages waits, and goes on where it was"),
    case!(settling::at_least_once_delivery, "Benthos", "P1 P2", [],
        "of five messages, two left unsettled by a consumer that ended: another gets the two"),
    case!(settling::parallel_lossy, "Benthos", "P1", [],
        "a tenth of all messages is released once; every message is acknowledged in the end"),
    case!(settling::parallel_lossy_through_reconnect, "Benthos", "P1 P2", [],
        "the same with consumers that end half-way"),
    case!(publishing::send_batch_count_isolated, "Benthos", "P1", [],
        "a batch of ten is confirmed as ten and arrives as ten"),
    case!(settling::says_what_it_declares, "Millstream", "P8", [],
        "the connector says of itself what its author declares"),
    case!(ending::drain, "Millstream", "P1 P6", [],
        "a drain keeps its deadline, its report adds up, and what it did not finish comes again"),
    case!(settling::stale_generation, "Millstream", "P2", [],
        "a settlement for what a closed consumer held is stale, and touches nothing"),
    case!(faults::cut_connection, "Millstream", "P2", [Cuts],
        "a cut connection is told, makes its settlements stale, and its messages come again"),
    case!(settling::redelivery_count, "Millstream", "P1", [CountsDeliveries],
        "a message that is handed out again says so"),
    case!(settling::rejected_are_kept, "Millstream", "P1 P8", [KeepsRejected],
        "a rejected message is kept, and does not come again"),
    case!(settling::retry_delay, "Millstream", "P1", [Retries],
        "a retry comes not before its time, and carries the failures"),
    case!(settling::redelivered_attempts, "Millstream", "P1", [Retries],
        "a pipeline that redelivers runs a message again not before its time, and as often as it may fail"),
    case!(order::keys_across_consumers, "Millstream", "P3", [Keys, OrdersKeys, Consumers],
        "pipelines that share a place run each key one message at a time and in order"),
    case!(order::keys_while_delayed, "Millstream", "P3", [Keys, OrdersKeys, Delay],
        "a delayed message holds back what follows it in its key, and nothing else"),
    case!(bounds::credit, "Millstream", "P4", [],
        "a read keeps to its credit: in messages exactly, in bytes but for the last message"),
    case!(bounds::messages_in_flight, "Millstream", "P4", [],
        "a pipeline never has more messages in flight than it may"),
    case!(bounds::bytes_in_flight, "Millstream", "P4", [],
        "a pipeline never has more bytes in flight than it may, but for one message"),
];
