//! How a delivery ends, as the engine says it ([`Settlement`]) and as the broker takes it ([`Outcome`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::message::{Headers, Message, Outgoing};
use crate::ticket::Ticket;

/// What shall become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Its work is done.
    Ack,
    /// Never again; the store keeps it where it keeps dead letters.
    Reject(Arc<Rejection>),
    /// Hand it out again, not before `after` has passed.
    Retry {
        /// How long to hold it back.
        after: Duration,
        /// Handler runs that have failed so far, to be handed out with it.
        failures: u32,
    },
    /// Untouched: give it to anyone. It counts as not delivered where the store can take a delivery back.
    Release,
}

/// One settlement for one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The delivery.
    pub ticket: Ticket,
    /// What shall become of it.
    pub settlement: Settlement,
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has it.
    Sent,
    /// The delivery was of an older generation, or its lease was lost: the broker hands it out again.
    Stale,
    /// Not now; the engine tries again later.
    Failed,
}

/// Why a message was rejected: what the dead letter carries beside the untouched message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The pipeline that gave it up.
    pub pipeline: Arc<str>,
    /// `processor`, or the batcher's name.
    pub stage: Arc<str>,
    /// Why, as one of a few words that metrics can carry.
    pub reason: Reason,
    /// The error and its causes, outermost first, joined by `: `.
    pub error: String,
    /// Handler runs that failed.
    pub attempts: u32,
    /// The broker's own count.
    pub deliveries: u32,
    /// The place and position it came from, as `place@position`.
    pub origin: String,
    /// When it first failed, as far as is known here; when it was given up where it had not failed before.
    pub first_at: SystemTime,
    /// When it was given up.
    pub at: SystemTime,
}

/// Why a message was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The payload did not decode into the processor's input.
    Decode,
    /// The handler said never again.
    Rejected,
    /// The last allowed attempt failed.
    Attempts,
    /// An attempt failed, and it was too old for another.
    Age,
    /// Delivered too often without an outcome: it ends its process.
    Deliveries,
    /// The handler named a batcher that does not exist.
    Route,
    /// A message is missing before it in its sequence.
    Gap,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Decode,
        Self::Rejected,
        Self::Attempts,
        Self::Age,
        Self::Deliveries,
        Self::Route,
        Self::Gap,
    ];

    /// The word that headers, logs and metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Rejected => "rejected",
            Self::Attempts => "attempts",
            Self::Age => "age",
            Self::Deliveries => "deliveries",
            Self::Route => "route",
            Self::Gap => "gap",
        }
    }
}

impl Rejection {
    /// Names of the headers that a dead letter carries, in the order they are written.
    pub const HEADERS: [&'static str; 9] = [
        "millstream-pipeline",
        "millstream-stage",
        "millstream-reason",
        "millstream-error",
        "millstream-attempts",
        "millstream-deliveries",
        "millstream-origin",
        Message::FIRST_FAILED_AT,
        "millstream-failed-at",
    ];

    /// This failure's headers, named as in [`HEADERS`](Self::HEADERS); times are milliseconds since 1970.
    pub fn headers(&self) -> [(&'static str, String); 9] {
        let [
            pipeline,
            stage,
            reason,
            error,
            attempts,
            deliveries,
            origin,
            first_at,
            at,
        ] = Self::HEADERS;
        [
            (pipeline, self.pipeline.to_string()),
            (stage, self.stage.to_string()),
            (reason, self.reason.as_str().to_owned()),
            (error, self.error.clone()),
            (attempts, self.attempts.to_string()),
            (deliveries, self.deliveries.to_string()),
            (origin, self.origin.clone()),
            (first_at, millis(self.first_at).to_string()),
            (at, millis(self.at).to_string()),
        ]
    }

    /// The dead letter: the message with payload, key and priority untouched and this failure among its headers.
    pub fn dead_letter(&self, message: &Message) -> Outgoing {
        let mut headers: Headers = message.headers.clone();
        for (name, value) in self.headers() {
            headers.set(name, &value);
        }
        Outgoing {
            payload: message.payload.clone(),
            key: message.key.clone(),
            headers,
            priority: message.priority,
            ..Outgoing::default()
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
