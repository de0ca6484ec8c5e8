//! `type = "file"`: reads the lines of a file, and appends envelopes to one.
//!
//! A source keeps its place beside its file, in `PATH.position`: the number of lines, all before which are settled
//! (P1). A crash therefore repeats lines, and loses none. What is rejected goes to `PATH.dead` as envelopes, and
//! so do lines that ought to be envelopes and are not. One process at a time reads a file, which a lock on it
//! makes sure of; what is given back, or is to be tried later, waits in memory as a line's place, not its bytes.
//!
//! The file may grow, and nothing else: one that was truncated or replaced is an error that says so.

mod append;
mod keeper;
mod kind;
mod ledger;
mod letters;
mod lines;
mod lock;
mod position;
mod shared;
mod sink;
mod source;

pub use kind::{FileKind, FileSettings, FileSinkSettings};
