//! What a connector's author declares: [`Features`].

use millstream_core::Capabilities;

/// What a connector can do, beyond what every connector must.
///
/// Every connector must hand out what was published to its place and to no other, at least once; take an
/// acknowledgement, a release and a close; and answer for every settlement. All else is declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// What the connector says of itself; the suite checks that it says the same.
    pub capabilities: Capabilities,
    /// Without [`Capabilities::delay`]: a sink brings messages back later,
    /// [`Connector::retry_sink`](millstream_core::Connector::retry_sink).
    pub retry_sink: bool,
    /// A published key is handed out with the message.
    pub keys: bool,
    /// Published headers are handed out with the message.
    pub headers: bool,
    /// One consumer is handed the messages of a key in the order in which they were published, until one goes back.
    pub ordered: bool,
    /// Several consumers may share a place; each message goes to one of them.
    pub consumers: bool,
    /// Groups of consumers each see every message: [`Place::group`](super::Place::group).
    pub groups: bool,
    /// What is published before anyone has consumed is kept for whoever comes first.
    pub backlog: bool,
    /// Each delivery is settled for itself: an acknowledged one never comes again because one before it was not.
    pub settles_singly: bool,
    /// A released delivery counts as not delivered.
    pub takes_back: bool,
    /// The broker can be restarted, and keeps what it has confirmed: [`Subject::restart`](super::Subject::restart).
    pub restarts: bool,
    /// Connections can be cut: [`Place::cut`](super::Place::cut).
    pub cuts: bool,
}

/// One thing that a connector may declare, and a case may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// [`Capabilities::delay`].
    Delay,
    /// [`Capabilities::delay`] or [`Features::retry_sink`].
    Retries,
    /// [`Capabilities::keeps_rejected`].
    KeepsRejected,
    /// [`Capabilities::counts_deliveries`].
    CountsDeliveries,
    /// [`Capabilities::orders_keys`].
    OrdersKeys,
    /// [`Features::keys`].
    Keys,
    /// [`Features::headers`].
    Headers,
    /// [`Features::ordered`].
    Ordered,
    /// [`Features::consumers`].
    Consumers,
    /// [`Features::groups`].
    Groups,
    /// [`Features::backlog`].
    Backlog,
    /// A message may come any number of times and still comes with others: deliveries are not counted, or
    /// [`Features::takes_back`]. Elsewhere one that came often comes alone.
    ComesOften,
    /// [`Features::restarts`] or [`Features::cuts`].
    Faults,
    /// [`Features::cuts`].
    Cuts,
}

impl Feature {
    /// The words that reports use for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Retries => "delay or retry sink",
            Self::KeepsRejected => "keeps rejected",
            Self::CountsDeliveries => "counts deliveries",
            Self::OrdersKeys => "orders keys",
            Self::Keys => "keys",
            Self::Headers => "headers",
            Self::Ordered => "ordered",
            Self::Consumers => "consumers",
            Self::Groups => "groups",
            Self::Backlog => "backlog",
            Self::ComesOften => "uncounted releases",
            Self::Faults => "restarts or cuts",
            Self::Cuts => "cuts",
        }
    }
}

impl Features {
    /// Whether this one is declared.
    pub const fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Delay => self.capabilities.delay,
            Feature::Retries => self.capabilities.delay || self.retry_sink,
            Feature::KeepsRejected => self.capabilities.keeps_rejected,
            Feature::CountsDeliveries => self.capabilities.counts_deliveries,
            Feature::OrdersKeys => self.capabilities.orders_keys,
            Feature::Keys => self.keys,
            Feature::Headers => self.headers,
            Feature::Ordered => self.ordered,
            Feature::Consumers => self.consumers,
            Feature::Groups => self.groups,
            Feature::Backlog => self.backlog,
            Feature::ComesOften => self.takes_back || !self.capabilities.counts_deliveries,
            Feature::Faults => self.restarts || self.cuts,
            Feature::Cuts => self.cuts,
        }
    }
}
