//! What the fault tests and the processes that they start have in common.
//!
//! A test starts processes of the `actor` binary ([`Actor`]), which run one role each on a queue in a database
//! file: they publish, or consume with a handler that is slow, hangs, or ends its process. What a handler does,
//! it writes down in the [`ledger`], a pipe to the test that outlives any of them. [`Scale`] says how much a test
//! does, and [`Report`] prints what it did.

mod account;
mod actor_handle;
mod fate;
mod group_history;
mod history;
pub mod ledger;
mod plan;
mod report;
mod scale;
pub mod sqs;
mod work;

pub use account::Account;
pub use actor_handle::{ARGUMENTS, Actor};
pub use fate::{ATTEMPTS, Fate};
pub use group_history::{Blow, GroupHistory};
pub use history::{Fault, Harm, History};
pub use plan::moments;
pub use report::Report;
pub use scale::Scale;
pub use work::{QUEUE, Work};
