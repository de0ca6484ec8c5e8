//! A file that is right in every part: [`Config`].

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use millstream_core::Finding;
use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::decode::decode;
use crate::diagnostic::Diagnostics;
use crate::fields::Fields;
use crate::interpolate::{Environment, interpolate};
use crate::mask;
use crate::node::Node;
use crate::pipeline::{PipelineConfig, pipeline};
use crate::registry::Registry;
use crate::report::Report;
use crate::table::Table;
use crate::tables::{HostTable, LogFormatName};
use crate::values::ListenAddress;
use crate::written::{Written, places};

/// The two seconds that are kept, and one to drain in.
const SHORTEST_SHUTDOWN: Duration = Duration::from_secs(3);

/// What a file says: a host and its pipelines.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The process that holds them.
    pub host: HostSpec,
    /// The pipelines, in the order of the file; at least one.
    pub pipelines: Vec<PipelineConfig>,
    written: Written,
}

/// The process that holds the pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostSpec {
    /// Where metrics and health are served, if anywhere.
    pub listen: Option<SocketAddr>,
    /// How long a shutdown may take, its last two seconds kept for release and flush.
    pub shutdown_timeout: Duration,
    /// What is logged: a level or directives, unless `RUST_LOG` says otherwise.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

impl Default for HostSpec {
    fn default() -> Self {
        Self::from(HostTable::default())
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl Config {
    /// Reads and checks a file, with the process's environment.
    ///
    /// # Errors
    /// Everything that is wrong with it; also that it cannot be read, or is not UTF-8.
    pub fn load(path: impl AsRef<Path>, registry: &Registry) -> Result<Self, Diagnostics> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let refuse = |text: &str, at, message: String, help: &str| {
            let mut report = Report::new(&name, text);
            report.error(at..at, message, help);
            report.finish(None)
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                return refuse(
                    "",
                    0,
                    format!("cannot read the file: {error}"),
                    "check its path and permissions",
                );
            }
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &name, registry, &|name| std::env::var(name).ok()),
            Err(error) => refuse(
                &String::from_utf8_lossy(&bytes),
                error.valid_up_to(),
                "the file is not UTF-8 from here on".to_owned(),
                "save it as UTF-8",
            ),
        }
    }

    /// Checks a text; `name` is what diagnostics call it, and variables come from `environment`.
    ///
    /// # Errors
    /// Everything that is wrong with it. Where its syntax is, nothing else is looked at.
    pub fn parse(
        text: &str,
        name: &str,
        registry: &Registry,
        environment: &Environment<'_>,
    ) -> Result<Self, Diagnostics> {
        let mut report = Report::new(name, text);
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut root = Spanned::new(0..0, DeValue::Table(root.into_inner()));
        mask::search(&root, false, &mut |span, text| report.secret(span, text));
        for error in errors {
            let span = error.span().unwrap_or_default();
            let (message, help) = syntax(error.message(), span.is_empty());
            report.error(span, message, help);
        }
        if !report.is_empty() {
            return report.finish(None);
        }
        interpolate(&mut root, environment, &mut report);
        mask::search(&root, false, &mut |span, text| report.secret(span, text));
        let places = places(text, &root);
        let config = read(&mut report, registry, root).map(|(host, pipelines)| Self {
            host,
            pipelines,
            written: report.written(places),
        });
        report.finish(config)
    }

    /// What was found out about a file that is right in itself, as diagnostics: each finding with the keys that lead to
    /// what it is about, as [`Finding::path`] gives them. Where the file has no such key, that is the innermost table on
    /// the way. `None` if there is no finding.
    pub fn diagnose<'a>(
        &self,
        found: impl IntoIterator<Item = (Vec<&'a str>, Finding)>,
    ) -> Option<Diagnostics> {
        self.written.diagnose(found)
    }
}

/// The whole file.
fn read(
    report: &mut Report<'_>,
    registry: &Registry,
    root: Node<'_>,
) -> Option<(HostSpec, Vec<PipelineConfig>)> {
    let mut root = Table::of(report, String::new(), root)?;
    let host = host(report, &mut root);
    let pipelines = root
        .take_table(report, "pipelines")
        .map(|table| pipelines(report, registry, table));
    let mut fields = Fields::none();
    fields.require(
        "pipelines",
        "At least one table [pipelines.NAME] with a `source`.",
    );
    decode::<IgnoredAny>(report, &mut root, &fields, &["host"])?;
    Some((host?, pipelines??))
}

fn host(report: &mut Report<'_>, root: &mut Table<'_>) -> Option<HostSpec> {
    if !root.has("host") {
        return Some(HostSpec::default());
    }
    let mut table = root.take_table(report, "host")?;
    let host = HostSpec::from(decode::<HostTable>(
        report,
        &mut table,
        &Fields::of::<HostTable>(),
        &[],
    )?);
    if host.shutdown_timeout < SHORTEST_SHUTDOWN {
        report.error(
            table.at("shutdown_timeout"),
            "`shutdown_timeout` leaves no time to drain: its last two seconds are kept for release and flush",
            "write at least \"3s\"",
        );
        return None;
    }
    Some(host)
}

impl From<HostTable> for HostSpec {
    fn from(table: HostTable) -> Self {
        Self {
            listen: table.listen.map(ListenAddress::get),
            shutdown_timeout: table.shutdown_timeout.get(),
            log: table.log,
            log_format: match table.log_format {
                LogFormatName::Text => LogFormat::Text,
                LogFormatName::Json => LogFormat::Json,
            },
        }
    }
}

/// All pipelines, or none if any is wrong, though each is read.
fn pipelines(
    report: &mut Report<'_>,
    registry: &Registry,
    mut table: Table<'_>,
) -> Option<Vec<PipelineConfig>> {
    let mut names: Vec<_> = table
        .entries
        .keys()
        .map(|key| (key.span().start, key.get_ref().to_string()))
        .collect();
    names.sort_unstable();
    if names.is_empty() {
        report.error(
            table.span.clone(),
            "there is no pipeline",
            "add a table [pipelines.NAME] with a `source`",
        );
    }
    let mut all = Some(Vec::with_capacity(names.len()));
    for (_, name) in names {
        if name.is_empty() {
            report.error(
                table.key_at(&name),
                "a pipeline needs a name",
                "write one between the quotes",
            );
        }
        let read = table
            .take_table(report, &name)
            .and_then(|table| pipeline(report, registry, &name, table));
        all = all.zip(read).map(|(mut all, read)| {
            all.push(read);
            all
        });
    }
    all
}

/// A syntax error in the words of a cause and a remedy.
fn syntax(error: &str, at_end: bool) -> (String, &'static str) {
    let help = match error {
        _ if error.starts_with("string values must be quoted") && at_end => {
            return ("missing value".to_owned(), "write one after the `=`");
        }
        "duplicate key" => "remove one of the two",
        _ if error.starts_with("unclosed") => "close it",
        _ if error.starts_with("string values must be quoted") => "write the value between double quotes",
        _ if error.contains("string") => {
            "write it between double quotes, with `\\` before any `\"` or `\\` in it"
        }
        _ if error.contains("key") => "write one `key = value` a line",
        _ => "see https://toml.io for the syntax",
    };
    (error.to_owned(), help)
}
