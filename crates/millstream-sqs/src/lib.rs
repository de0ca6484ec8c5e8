//! Millstream on Amazon SQS, or on what speaks its protocol: standard and FIFO queues, as sources and as sinks.
//!
//! [`SqsConnector`] reads, [`SqsSink`] writes.
//!
//! # Reading
//!
//! Polls run at a time, as many as there is demand for and no more than
//! [`pollers`](SqsConnector::pollers); while the queue is empty there is one. None is ever broken off: what SQS has
//! sent to it would be hidden from everyone until its time is up. A drain therefore takes up to
//! [`wait_time`](SqsConnector::wait_time), and what the last polls bring goes back.
//!
//! What they bring is within the demand that they were started for; while the pipeline pauses it is kept, and read
//! first thereafter.
//!
//! What is held, queued or running, is kept hidden from others by a heartbeat, for up to twelve hours. The clock that
//! says whether that has succeeded is this process's own: a delivery that could not be put off in time is lost, its
//! run is cancelled, and its settlement is stale. Each delivery is lost by itself, except that a group's followers go
//! with it in a FIFO queue.
//!
//! # Settling
//!
//! Deletions and changes of visibility go ten to a call. What SQS says of each is heeded: a failure is tried again, a
//! receipt that is not valid any more is stale.
//!
//! - A retry hides the message for as long, in whole seconds, up to twelve hours after it was received.
//! - A release makes it visible at once.
//! - A rejected message is copied to the queue that the redrive policy names, with the reason among its attributes, and
//!   deleted when the copy has arrived. SQS itself would move it only after more receives. Without a redrive policy
//!   the source refuses to open where it is to keep what is given up. A copy was not moved by SQS, so that SQS'
//!   *redrive to source* does not know where it came from, and wants to be told a destination.
//!
//! # Counts
//!
//! SQS counts receives, and lets nobody write anything on a message. Within a process, a release takes the receive
//! back, a retry begins the count anew, and the failures that it carries are remembered, for the last hundred
//! thousand messages that went back. None of this survives the process or is known to another one: there the bare
//! count of receives stands for the deliveries, and failures begin at none. So a message that goes back and forth
//! between processes may run more often than `retry.attempts` says, and `retry.max_deliveries` bounds it. Every
//! receive also counts for the redrive policy's own `maxReceiveCount`: set that well above both.
//!
//! # Order
//!
//! In a FIFO queue a message's key is its group. The queue hands out nothing of a group while an earlier message of it
//! is out, also while that waits for a retry; and of a group that the engine has messages of, this source gives no
//! further ones until those are settled. What is read of a group and follows a message that goes back, goes back
//! with it.

mod address;
mod check;
mod condition;
mod connector;
mod desk;
mod heartbeat;
#[cfg(test)]
mod lease_model;
mod leases;
mod letters;
mod poll;
mod returned;
mod service;
mod settling;
mod sink;
mod source;
mod wire;

/// The client that this is built on.
pub use aws_sdk_sqs;
pub use connector::SqsConnector;
pub use settling::Settling;
pub use sink::{Sending, SqsSink};
pub use source::Polling;
