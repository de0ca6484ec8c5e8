//! What is counted and measured, as Prometheus reads it (P8).
//!
//! The engine keeps its numbers itself, where they cost next to nothing; they are read when somebody asks, and there
//! is no second book. Labels are bounded: `pipeline`, `stage`, and words of a short list, never anything of a
//! message. `docs/metrics.md` names each metric; a test compares.

mod page;
mod pipelines;
mod tables;

use millstream_core::Host;

use page::{Page, Series};
use pipelines::Seen;

/// What [`metrics`] is, in HTTP's words.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics of this host now, in Prometheus' text format.
pub fn metrics(host: &Host) -> String {
    let mut page = Page::default();
    page.gauge(
        "millstream_build_info",
        "The version that runs; always 1.",
        [Series::new([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
    );
    let pipelines: Vec<_> = host.pipelines().collect();
    let seen: Vec<_> = pipelines.iter().map(Seen::of).collect();
    pipelines::write(&mut page, &seen);
    page.text()
}
