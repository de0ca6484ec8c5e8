//! The writing side against real brokers.

mod dial;
mod retry;
mod sink;
mod tools;
