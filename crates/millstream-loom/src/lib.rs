//! Checks protocols between threads with [loom], which runs a model in every order that its threads can take.
//!
//! What is checked is the source files of the engine and the connectors themselves: a test takes them in by their path.
//! The names that they use are those of this crate there, as the test says
//!
//! ```
//! extern crate millstream_loom as std;
//! extern crate millstream_loom as parking_lot;
//! ```
//!
//! and this crate has, by those names, what loom can look into. What a file needs beside that stands in the test, as
//! little of it as will do. A model has few threads and a step or two for each, since what it takes grows fast.

pub use std::*;

mod lock;

pub use lock::{Condvar, Mutex, MutexGuard, RwLock};

/// What threads share, of `std`, `tokio` and `tokio_util`.
pub mod sync {
    pub use std::sync::{Arc, OnceLock, Weak};

    /// Loom's atomics.
    pub mod atomic {
        pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
    }

    // Nobody waits for these in a model, so that they need not be looked into.
    pub use tokio::sync::{oneshot, watch};

    pub use crate::notify::Notify;
    pub use crate::token::CancellationToken;
}

mod notify;
mod token;
mod waiting;

pub use waiting::block_on;
