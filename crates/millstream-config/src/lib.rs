//! From a TOML file to checked [`PipelineSpec`](millstream_core::PipelineSpec)s.
//!
//! [`Config::load`] reads a file, replaces `${NAME}` in its strings, and either gives a [`Config`] in which
//! every value is within its bounds, or [`Diagnostics`]: everything that is wrong with the file at once, each
//! with its line, column, cause and remedy, and with no secret in any of it (P8: nothing silent).
//!
//! What a file may name comes from a [`Registry`]: sources, sinks and stores of ids by their `type`, handlers and flows by
//! the name in `handler`. There is no central list; a connector's crate brings its own settings, checks and
//! documentation by implementing [`SourceKind`] and [`SinkKind`]. [`schema`] turns a registry into a JSON
//! Schema of the whole file, for editors.
//!
//! # Variables
//!
//! `${NAME}` and `${NAME:-default}` are replaced inside string values, after the file has been parsed: a value
//! can neither break the file's syntax nor add keys. The default is also taken when the variable is set and
//! empty. What a variable holds is not looked at again for further variables. `$$` stands for one `$`, and a
//! `$` before any other character for itself.
//!
//! # Paths
//!
//! A relative path, of the file itself or in it (`path = "orders.db"`), is relative to the directory that the
//! process was started in, as with other tools.
//!
//! # Left to others
//!
//! Nothing here connects to anything; what somebody finds who does becomes [`Diagnostics`] of the file by
//! [`Config::diagnose`]. And nothing draws: a command line tool renders [`Diagnostics`] from
//! their byte spans and [`Diagnostics::source`], in which secrets are masked already.
//!
//! ```
//! use millstream_config::{Config, Registry};
//!
//! let text = "[host]\nshutdown_timout = \"25s\"\n\n[pipelines]\n";
//! let errors = Config::parse(text, "orders.toml", &Registry::new(), &|_| None).unwrap_err();
//! assert_eq!(
//!     errors.to_string(),
//!     "orders.toml:2:1: unknown key `shutdown_timout` in [host]\n  help: did you mean `shutdown_timeout`?\n\
//!      orders.toml:4:1: there is no pipeline\n  help: add a table [pipelines.NAME] with a `source`",
//! );
//! ```

mod batchers;
mod by;
mod config;
mod decode;
mod diagnostic;
mod elsewhere;
mod erased;
mod explain;
mod fields;
mod fixed;
mod hidden;
mod interpolate;
mod invalid;
mod kind;
mod mask;
mod node;
mod not_yet;
mod order_by;
mod parts;
mod pipeline;
mod policies;
mod processor;
mod registry;
mod repeats;
mod report;
mod schema;
mod secret;
mod suggest;
mod table;
mod tables;
mod values;
mod written;

pub use config::{Config, HostSpec, LogFormat};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use fixed::Fixed;
pub use interpolate::Environment;
pub use invalid::Invalid;
pub use kind::{
    HandlerContext, HandlerKind, NoSettings, SinkContext, SinkKind, SourceContext, SourceKind, StoreContext,
    StoreKind,
};
pub use pipeline::PipelineConfig;
pub use registry::Registry;
pub use schema::schema;
pub use secret::Secret;
pub use values::{ByteSize, Count, HumanDuration, ListenAddress, PositiveDuration, Ratio};
