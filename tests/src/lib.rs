//! What the fault tests and the processes that they start have in common.
//!
//! A test starts processes of the `actor` binary ([`Actor`]), which run one role each on a queue in a database
//! file: they publish, or consume with a handler that is slow, hangs, or ends its process. What a handler does,
//! it writes down in the [`ledger`], a pipe to the test that outlives any of them. [`Scale`] says how much a test
//! does, and [`Report`] prints what it did.

mod actor_handle;
mod group_history;
mod history;
pub mod ledger;
mod report;
mod scale;
pub mod sqs;
mod work;

pub use actor_handle::Actor;
pub use group_history::{Blow, GroupHistory};
pub use history::{Fault, Harm, History};
pub use report::Report;
pub use scale::Scale;
pub use work::{QUEUE, Work};
