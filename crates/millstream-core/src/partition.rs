//! What a source says of the partitions that it reads: [`Partition`], [`Rebalance`].

use std::sync::Arc;

/// A partition that a source reads, as it was when the source last said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The topic or stream that it is a part of.
    pub topic: Arc<str>,
    /// Its number there.
    pub number: u32,
    /// Its messages from the first one that is not settled on, in flight or not; none where that is not known yet.
    pub lag: Option<u64>,
    /// Nothing is fetched from it, because too much has come since its first unsettled message.
    pub held: bool,
}

/// How the partitions of a source changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rebalance {
    /// Some were given to it.
    Assigned,
    /// Some were taken from it in good order.
    Revoked,
    /// Some went to others before it could settle what it had of them.
    Lost,
}

impl Rebalance {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Assigned, Self::Revoked, Self::Lost];

    /// The word that metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Revoked => "revoked",
            Self::Lost => "lost",
        }
    }
}
