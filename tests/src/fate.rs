//! What shall become of a message: [`Fate`].

use millstream_core::Reason;

/// How many attempts a message has that fails for ever. What is away for a while costs some, so no other fails nearly
/// as often.
pub const ATTEMPTS: u32 = 10;

/// What a handler does with a message, attempt by attempt, and so where the message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is processed, and so is its batch.
    Succeeds,
    /// The processor fails so many attempts at it.
    Fails(u32),
    /// The processor fails every attempt at it.
    FailsForEver,
    /// The processor rejects it.
    Rejected,
    /// The processor panics at the first attempt.
    Panics,
    /// The processor does not come back from the first attempt.
    Hangs,
    /// The batch handler fails so many attempts at it alone.
    FailsInBatch(u32),
    /// The batch handler rejects it alone.
    RejectedInBatch,
}

impl Fate {
    /// The fate of the message with this number: of ten thousand, 500 fail one way or the other, ten panic, one hangs.
    #[must_use]
    pub fn of(seed: u64, number: u32) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed.rotate_left(32) ^ u64::from(number));
        match chance.u32(..10_000) {
            0 => Self::Hangs,
            1..=10 => Self::Panics,
            11..=20 => Self::FailsForEver,
            21..=60 => Self::Rejected,
            61..=360 => Self::Fails(chance.u32(1..=3)),
            361..=490 => Self::FailsInBatch(chance.u32(1..=2)),
            491..=510 => Self::RejectedInBatch,
            _ => Self::Succeeds,
        }
    }

    /// The attempt at which it ends, one way or the other.
    #[must_use]
    pub const fn last_attempt(self) -> u32 {
        match self {
            Self::Succeeds | Self::Rejected | Self::RejectedInBatch => 1,
            Self::Panics | Self::Hangs => 2,
            Self::Fails(times) | Self::FailsInBatch(times) => times + 1,
            Self::FailsForEver => ATTEMPTS,
        }
    }

    /// How often the processor runs. What fails in its batch is not processed again.
    #[must_use]
    pub const fn runs(self) -> u32 {
        match self {
            Self::FailsInBatch(_) => 1,
            _ => self.last_attempt(),
        }
    }

    /// Why it is given up, if it is, and with how many failed attempts if nothing else failed.
    #[must_use]
    pub const fn letter(self) -> Option<(Reason, u32)> {
        match self {
            Self::FailsForEver => Some((Reason::Attempts, ATTEMPTS)),
            Self::Rejected | Self::RejectedInBatch => Some((Reason::Rejected, 0)),
            _ => None,
        }
    }
}
