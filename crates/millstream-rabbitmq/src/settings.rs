//! What a reader is made from: [`ReaderSettings`].

use lapin::types::FieldTable;

use crate::dial::Dial;
use crate::topology::Topology;

/// What becomes of a message that the policies give up and no dead-letter sink takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// `basic.reject`: the queue's dead-letter exchange gets it.
    #[default]
    Reject,
    /// Back into the queue, for ever.
    Requeue,
    /// Back into the queue when it was delivered for the first time, to the dead-letter exchange after that.
    RequeueOnce,
}

/// Where a reader reads, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReaderSettings {
    /// The brokers, of which one is connected to at a time.
    pub dial: Dial,
    /// The queue or stream, and what is declared and bound at every connection.
    pub topology: Topology,
    /// Unacknowledged messages that the broker may have underway, over all connections; absent: as demand has it,
    /// and never more than that.
    pub prefetch: Option<u16>,
    /// How many connections read the queue at once.
    pub connections: usize,
    /// The management plugin's HTTP API, with user and password.
    pub management_url: Option<String>,
    /// What `Settlement::Reject` means.
    pub on_failure: OnFailure,
    /// The consumer's name in the management UI; absent: the broker makes one up.
    pub consumer_tag: Option<String>,
    /// Arguments of `basic.consume`, such as `x-priority` and `x-stream-offset`.
    pub arguments: FieldTable,
}

impl ReaderSettings {
    /// One connection to this queue, everything else by default.
    pub fn new(dial: Dial, topology: Topology) -> Self {
        Self {
            dial,
            topology,
            prefetch: None,
            connections: 1,
            management_url: None,
            on_failure: OnFailure::default(),
            consumer_tag: None,
            arguments: FieldTable::default(),
        }
    }
}
