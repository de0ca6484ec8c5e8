//! Logging, to standard error.

use std::io::{self, Write};

use millstream_config::{HostSpec, LogFormat};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

use crate::screen;

/// Starts logging as the file says; `RUST_LOG` wins.
///
/// # Errors
/// If `RUST_LOG` is not understood; what the file says is taken to be.
pub(crate) fn start(host: &HostSpec) -> anyhow::Result<()> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = match &wanted {
        Some(wanted) => {
            filter(wanted).map_err(|error| anyhow::anyhow!("RUST_LOG is not understood: {error}"))?
        }
        None => filter(&host.log)?,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Stderr)
        .with_ansi(screen::has_colours());
    // Whoever embeds the commands may log already.
    let _ = match host.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    log_panics();
    Ok(())
}

/// What goes without saying; a directive for the same target replaces it.
///
/// The client of RabbitMQ calls every lost connection an error, several times, where the connector says once why it
/// connects again; and of a message that no queue takes it logs all there is, payload included.
const QUIET: &str = "lapin=off,lapin::returned_messages=off";

/// What is logged where these directives are wanted.
fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{QUIET},{directives}"))
}

/// Why `host.log` is not understood, if it is not.
///
/// A word alone would be the name of a module, all of whose events are wanted; it is more likely to be a level
/// with a slip of the pen, after which nothing would be logged.
pub(crate) fn check(directives: &str) -> Result<(), String> {
    for word in directives.split(',').map(str::trim) {
        if word.is_empty() || !word.contains(['=', '[', ':']) && word.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{word}` is no level: write error, warn, info, debug, trace or off, or `{word}=trace` for a module"
            ));
        }
    }
    filter(directives).map(drop).map_err(|error| error.to_string())
}

/// Panics are logged like everything else: the engine catches them, and a status line stays whole.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no text");
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, "panicked: {text}");
    }));
}

/// Standard error, beside the status lines.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        screen::beside(|| io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'w> MakeWriter<'w> for Stderr {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of one line of ours and of what lapin says of a lost connection and of a returned message.
    fn logged(directives: &str) -> Vec<&'static str> {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter(directives).unwrap())
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::warn!(target: "millstream_core::engine", "ours");
            tracing::error!(target: "lapin::io_loop", "lost");
            tracing::warn!(target: "lapin::returned_messages", "payload");
        });
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        let lines = ["ours", "lost", "payload"].into_iter();
        lines.filter(|line| text.contains(line)).collect()
    }

    #[test]
    fn a_payload_is_logged_only_where_its_target_is_named() {
        for directives in ["info", "trace", "warn,millstream_core=debug"] {
            assert_eq!(logged(directives), ["ours"], "{directives}");
        }
        assert_eq!(logged("info,lapin=warn"), ["ours", "lost"]);
        assert_eq!(logged("error,lapin::io_loop=debug"), ["lost"]);
        assert_eq!(logged("lapin::returned_messages=warn"), ["payload"]);
    }

    #[test]
    fn a_misspelt_level_is_no_module() {
        for good in [
            "info",
            "INFO",
            "off",
            "warn,millstream_core=debug",
            "my_app::orders=trace",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["inof", "info,my_app", "my_app=loud", ""] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
