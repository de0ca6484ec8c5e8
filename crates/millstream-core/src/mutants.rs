//! Bugs on purpose, to prove that the simulation finds them. Without the feature `mutants` there are none.

/// A bug that can be planted.
#[cfg_attr(
    not(feature = "mutants"),
    expect(unreachable_pub, reason = "nobody plants any")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// A message is acknowledged when it enters its batcher.
    AckBeforeBatch,
    /// A dead letter is acknowledged although its sink has not confirmed it.
    AckUnconfirmed,
    /// A message whose run panics is forgotten.
    ForgetOnPanic,
    /// A message that ends without a batcher is settled twice.
    SettleTwice,
    /// A lane is free again as soon as its message is taken.
    EarlyLaneRelease,
    /// A message between two attempts does not hold its lane.
    RetryOvertaken,
    /// A key does not stay with one shard.
    BatchOverlap,
    /// What follows a failed batch's key does not wait for it.
    BatchOvertaken,
    /// The limit on bytes is not looked at.
    BytesIgnored,
    /// A place is given back twice.
    PlaceTwice,
    /// The place of a settlement that came too late is never given back.
    CreditLeak,
    /// What was lost runs all the same.
    StaleHonoured,
    /// A failure counts an attempt although the breaker is not closed.
    AttemptBurnt,
    /// The source is read although the breaker is open.
    FetchWhileOpen,
    /// A drain forgets what is parked.
    DrainForgetsParked,
    /// A drain does not cancel what runs when its time is up.
    CutForgetsRunning,
    /// Nobody is told when a parked message may run again.
    LostWakeUp,
    /// Nobody counts settlements that failed.
    Uncounted,
    /// Nobody counts what was lost before it started.
    LossUncounted,
    /// The report of a drain leaves out what it released.
    ReportShort,
    /// A worker that has died is not started again.
    SeatLost,
    /// Of a split batch, two messages that failed together count as one.
    NeighbourBlamed,
    /// What follows a message that stops its partition runs all the same.
    HaltOvertaken,
    /// A message runs although its twin is in flight.
    TwinRuns,
    /// The source hears that a message is done, and the store of ids does not.
    IdForgotten,
    /// What comes behind a gap in the numbers of its key does not wait.
    GapIgnored,
}

impl Mutant {
    /// All of them.
    #[cfg(feature = "mutants")]
    pub const ALL: [Self; 26] = [
        Self::AckBeforeBatch,
        Self::AckUnconfirmed,
        Self::ForgetOnPanic,
        Self::SettleTwice,
        Self::EarlyLaneRelease,
        Self::RetryOvertaken,
        Self::BatchOverlap,
        Self::BatchOvertaken,
        Self::BytesIgnored,
        Self::PlaceTwice,
        Self::CreditLeak,
        Self::StaleHonoured,
        Self::AttemptBurnt,
        Self::FetchWhileOpen,
        Self::DrainForgetsParked,
        Self::CutForgetsRunning,
        Self::LostWakeUp,
        Self::Uncounted,
        Self::LossUncounted,
        Self::ReportShort,
        Self::SeatLost,
        Self::NeighbourBlamed,
        Self::HaltOvertaken,
        Self::TwinRuns,
        Self::IdForgotten,
        Self::GapIgnored,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// From now on the engine has this bug on this thread, and no other.
#[cfg(feature = "mutants")]
pub fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}

/// Whether the engine has this bug.
#[cfg(feature = "mutants")]
pub(crate) fn mutant(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}

/// Whether the engine has this bug: it has none.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn mutant(_: Mutant) -> bool {
    false
}
