//! A file read and checked, or all that is wrong with it shown.

use std::io::Write;
use std::path::Path;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report, Severity,
};
use millstream_config::{Config, Diagnostics, Registry};
use millstream_core::Severity as Found;

use crate::{log, screen};

/// The configuration; `None` after what is wrong with it was written to standard error.
pub(crate) fn load(path: &Path, registry: &Registry) -> Option<Config> {
    match read(path, registry, shown) {
        Ok(config) => Some(config),
        Err(shown) => {
            say(&shown);
            None
        }
    }
}

/// The configuration, or what is wrong with it, for a log.
pub(crate) fn reload(path: &Path, registry: &Registry) -> Result<Config, String> {
    read(path, registry, ToString::to_string)
}

fn read(path: &Path, registry: &Registry, show: impl Fn(&Diagnostics) -> String) -> Result<Config, String> {
    let config = Config::load(path, registry).map_err(|errors| show(&errors))?;
    log::check(&config.host.log)
        .map_err(|cause| format!("{}: `log` of [host] is not understood: {cause}\n", path.display()))?;
    Ok(config)
}

/// Writes what there is to say of a file to standard error.
pub(crate) fn tell(diagnostics: &Diagnostics) {
    say(&shown(diagnostics));
}

fn say(text: &str) {
    // Where it cannot be said, the exit status says it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn shown(diagnostics: &Diagnostics) -> String {
    if screen::is_terminal() {
        drawn(diagnostics, screen::has_colours())
    } else {
        format!("{diagnostics}\n")
    }
}

/// The diagnostics for a person, each with its part of the file.
fn drawn(errors: &Diagnostics, colours: bool) -> String {
    let theme = if colours {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false);
    let mut drawn = String::new();
    for error in errors {
        let mut diagnostic = MietteDiagnostic::new(&error.message)
            .with_severity(match error.severity {
                Found::Error => Severity::Error,
                Found::Warning => Severity::Warning,
                Found::Note => Severity::Advice,
            })
            .with_help(&error.help);
        if !errors.source().is_empty() {
            diagnostic = diagnostic.with_label(LabeledSpan::underline(error.span.clone()));
        }
        let source = NamedSource::new(errors.path(), errors.source().to_owned());
        let report = Report::new(diagnostic).with_source_code(source);
        if handler.render_report(&mut drawn, report.as_ref()).is_err() {
            return format!("{errors}\n");
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_drawn_beside_their_lines() {
        let text = "[host]\nshutdown_timout = \"25s\"\n\n[pipelines]\n";
        let errors = Config::parse(text, "orders.toml", &Registry::new(), &|_| None).unwrap_err();
        let drawn = drawn(&errors, false);
        for part in [
            "orders.toml:2:1",
            "2 │ shutdown_timout = \"***\"",
            "unknown key `shutdown_timout` in [host]",
            "did you mean `shutdown_timeout`?",
            "there is no pipeline",
        ] {
            assert!(drawn.contains(part), "{part} in {drawn}");
        }
        assert!(!drawn.contains('\u{1b}'));
    }
}
