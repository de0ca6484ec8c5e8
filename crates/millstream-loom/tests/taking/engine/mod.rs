//! The engine's file under test, and as little of what it needs as will do: there are no keys here, and no lanes.

#[path = "../../../../millstream-core/src/engine/ready.rs"]
pub(crate) mod ready;

mod budget {
    use crate::rt::{Duration, Instant};

    pub(super) const AGAIN: Duration = Duration::from_millis(100);

    #[derive(Debug)]
    pub(crate) struct Budget;

    impl Budget {
        pub(crate) fn is_set(&self) -> bool {
            false
        }

        pub(crate) fn take(&self, due: usize, _: Instant) -> usize {
            due
        }
    }
}

pub(crate) mod envelope {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Ticket;

    #[derive(Debug)]
    pub(crate) struct Envelope {
        pub(crate) ticket: Ticket,
        pub(crate) order: u64,
        pub(crate) lane: LaneId,
    }

    impl Envelope {
        pub(crate) fn new() -> Self {
            Self {
                ticket: Ticket,
                order: 0,
                lane: LaneId::NONE,
            }
        }

        pub(crate) fn is_doubtful(&self, _: u32) -> bool {
            false
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct LaneId(u32);

    impl LaneId {
        pub(crate) const NONE: Self = Self(u32::MAX);
    }
}

mod lanes {
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::envelope::{Envelope, LaneId};
    use crate::ordering::Ordering;

    /// Why a message is in no lane.
    #[derive(Debug)]
    pub(crate) enum Outside {
        Unordered(Envelope),
        Follows(Envelope),
        Full(Envelope),
    }

    #[derive(Debug, Default)]
    pub(crate) struct Lanes;

    impl Lanes {
        pub(crate) fn admit(
            &self,
            _: &Ordering,
            envelope: Envelope,
            _: usize,
            _: impl Fn(u64) -> bool,
        ) -> Result<(), Outside> {
            Err(Outside::Unordered(envelope))
        }

        pub(crate) fn take(&self, _: usize, _: &mut VecDeque<Envelope>) {}

        pub(crate) fn inverted(&self) -> Option<(usize, u64)> {
            None
        }

        pub(crate) fn key(&self, _: LaneId) -> Option<Bytes> {
            None
        }

        pub(crate) fn firsts(&self) -> impl Iterator<Item = &Envelope> {
            None.into_iter()
        }

        pub(crate) fn first(&self) -> Option<&Envelope> {
            None
        }

        pub(crate) fn has_undoubted(&self, _: u32) -> bool {
            false
        }

        pub(crate) fn bring_undoubted_forward(&self, _: u32) -> bool {
            false
        }

        pub(crate) fn advance(&self, _: LaneId) {}

        pub(crate) fn put_back(&self, _: Envelope) {}

        pub(crate) fn put_behind(&self, _: Envelope) {}

        pub(crate) fn ready(&self) -> usize {
            0
        }

        pub(crate) fn messages(&self) -> usize {
            0
        }

        pub(crate) fn len(&self) -> usize {
            0
        }

        pub(crate) fn remove(&self, _: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
            Vec::new()
        }

        pub(crate) fn take_followers(&self, _: LaneId) -> VecDeque<Envelope> {
            VecDeque::new()
        }
    }
}

mod returning {
    #[derive(Debug)]
    pub(crate) struct Returning;

    impl Returning {
        pub(crate) fn has_followed(&self) -> bool {
            false
        }

        pub(crate) fn is_followed(&self, _: u64) -> bool {
            false
        }

        pub(crate) fn add_followed(&self, _: super::envelope::Ticket, _: u64) {}
    }
}

pub(crate) mod sentinels {
    use std::fmt;

    pub(crate) enum Sentinel {
        KeyInversion,
    }

    #[derive(Debug)]
    pub(crate) struct Sentinels;

    impl Sentinels {
        pub(crate) fn fire(&self, _: Sentinel, _: usize, _: &dyn fmt::Display) {}
    }
}

mod stall {
    use super::envelope::Envelope;

    #[derive(Debug)]
    pub(crate) struct Named;

    impl Named {
        pub(crate) fn of(_: &Envelope) -> Self {
            Self
        }
    }
}
