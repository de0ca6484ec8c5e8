//! The metrics that are one number of a pipeline.

use millstream_core::Counts;

use super::pipelines::Seen;

/// Name, help, and where the number is.
type Count = (&'static str, &'static str, fn(&Counts) -> u64);

/// Alike.
type Gauge = (&'static str, &'static str, fn(&Seen<'_>) -> f64);

/// What only grows.
pub(super) const COUNTERS: [Count; 30] = [
    (
        "millstream_received_total",
        "Messages that came from the source.",
        |counts| counts.received,
    ),
    (
        "millstream_throttled_total",
        "Times that a limit made intake wait, or sent a message back to the source for a while.",
        |counts| counts.throttled,
    ),
    (
        "millstream_rate_store_failures_total",
        "Times that the store of the shared rate limit could not be asked.",
        |counts| counts.rate_store_failures,
    ),
    (
        "millstream_unshared_total",
        "Messages that ran by the limit of this process alone, because that store was away.",
        |counts| counts.unshared,
    ),
    (
        "millstream_suspects_total",
        "Suspects that ran alone: messages delivered often without an outcome.",
        |counts| counts.suspects,
    ),
    (
        "millstream_lost_total",
        "Unstarted messages dropped because their lease or assignment was lost; the source hands them out again.",
        |counts| counts.lost,
    ),
    (
        "millstream_reconnects_total",
        "Times that the source worked again after it had not.",
        |counts| counts.reconnects,
    ),
    (
        "millstream_retried_total",
        "Attempts that were put off to a later time, within the process or through the source.",
        |counts| counts.retried,
    ),
    (
        "millstream_put_off_total",
        "Messages that the source's retry sink has confirmed for a later time.",
        |counts| counts.put_off,
    ),
    (
        "millstream_waits_cut_total",
        "Waits before the next attempt that a handler wanted longer than a day, and that were cut to it.",
        |counts| counts.waits_cut,
    ),
    (
        "millstream_retries_over_budget_total",
        "Attempts that were put off for longer because the retry budget was spent.",
        |counts| counts.over_budget,
    ),
    (
        "millstream_uncounted_failures_total",
        "Failures that counted no attempt because a breaker was not closed, or was about to open.",
        |counts| counts.uncounted,
    ),
    (
        "millstream_dead_lettered_total",
        "Messages that the dead-letter sink has confirmed.",
        |counts| counts.dead_lettered,
    ),
    (
        "millstream_discarded_total",
        "Messages given up and dropped because the pipeline says so.",
        |counts| counts.discarded,
    ),
    (
        "millstream_outbox_retries_total",
        "Dead letters and put-off messages that their sink did not take and that were tried again.",
        |counts| counts.outbox_retries,
    ),
    (
        "millstream_batches_split_total",
        "Batches, and parts of them, that failed as a whole and were run again in parts.",
        |counts| counts.batches_split,
    ),
    (
        "millstream_settled_early_total",
        "Messages settled by the user's code before their work was done.",
        |counts| counts.settled_early,
    ),
    (
        "millstream_settle_retries_total",
        "Settlements that failed and were tried again.",
        |counts| counts.settle_retries,
    ),
    (
        "millstream_commit_failures_total",
        "Times that the store did not take note of what is settled, and was to be told again.",
        |counts| counts.commit_failures,
    ),
    (
        "millstream_duplicates_total",
        "Messages acknowledged unrun because one with their id was done within the window.",
        |counts| counts.duplicates,
    ),
    (
        "millstream_unidentified_total",
        "Messages without an id to be told from others by.",
        |counts| counts.unidentified,
    ),
    (
        "millstream_unchecked_total",
        "Ids that the store could not be asked for, or told of.",
        |counts| counts.unchecked,
    ),
    (
        "millstream_id_store_failures_total",
        "Times that the store of ids could not be asked or told.",
        |counts| counts.store_failures,
    ),
    (
        "millstream_forgotten_ids_total",
        "Ids that the store forgot before their window was over, to have room.",
        |counts| counts.forgotten_ids,
    ),
    (
        "millstream_sequence_gaps_total",
        "Gaps in the numbers of a key that were met, or waited for in vain.",
        |counts| counts.sequence_gaps,
    ),
    (
        "millstream_sequence_repeats_total",
        "Messages whose number their key had passed already; they run.",
        |counts| counts.sequence_repeats,
    ),
    (
        "millstream_sequence_held_total",
        "Messages that were held because one was missing before them.",
        |counts| counts.sequence_held,
    ),
    (
        "millstream_unnumbered_total",
        "Messages without a number or a key, which pass unchecked.",
        |counts| counts.unnumbered,
    ),
    (
        "millstream_restarts_total",
        "Tasks restarted by the supervisor.",
        |counts| counts.restarts,
    ),
    (
        "millstream_stalls_total",
        "Times that nothing moved for a while although there was work.",
        |counts| counts.stalls,
    ),
];

/// What goes up and down.
pub(super) const GAUGES: [Gauge; 14] = [
    (
        "millstream_halted_places",
        "Partitions that stand still at a message that was given up.",
        |seen| seen.status.halted as f64,
    ),
    (
        "millstream_stalled",
        "1 while nothing moves although there is work, else 0.",
        |seen| f64::from(u8::from(seen.status.stalled.is_some())),
    ),
    (
        "millstream_demand_messages",
        "Messages that the source may hand over now: 0 while a limit, a pause, a drain, the breaker or a full batcher holds it back.",
        |seen| seen.measures.demand.messages as f64,
    ),
    (
        "millstream_demand_bytes",
        "Bytes that the source may hand over now, as for messages.",
        |seen| seen.measures.demand.bytes as f64,
    ),
    (
        "millstream_in_flight_messages",
        "Messages received and not settled.",
        |seen| seen.status.in_flight as f64,
    ),
    (
        "millstream_in_flight_bytes",
        "Bytes received and not settled.",
        |seen| seen.status.bytes as f64,
    ),
    (
        "millstream_oldest_message_age_seconds",
        "Time since the receipt of the oldest message in flight; 0 while there is none.",
        |seen| seen.measures.oldest.unwrap_or_default().as_secs_f64(),
    ),
    (
        "millstream_ready_messages",
        "Messages that may run and wait for a worker.",
        |seen| seen.status.ready as f64,
    ),
    (
        "millstream_waiting_messages",
        "Messages that wait behind others of their key.",
        |seen| seen.status.waiting as f64,
    ),
    (
        "millstream_parked_messages",
        "Messages between two attempts.",
        |seen| seen.status.parked as f64,
    ),
    (
        "millstream_held_messages",
        "Messages that wait for another one: for what comes of one with their id, or for one that is missing before them.",
        |seen| seen.status.held as f64,
    ),
    (
        "millstream_running_messages",
        "Messages taken by workers.",
        |seen| seen.status.running as f64,
    ),
    (
        "millstream_concurrency",
        "Messages that may be processed at a time now.",
        |seen| seen.status.concurrency as f64,
    ),
    ("millstream_lanes", "Keys that have a message at work.", |seen| {
        seen.status.lanes as f64
    }),
];
