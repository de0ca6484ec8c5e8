//! The signals that ask a process to end, or to read its file again: [`Signals`].

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

#[cfg(unix)]
use crate::screen;

/// What a signal asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// To end; this is its name.
    End(&'static str),
    /// To read the file again.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there is no such signal"))]
    Reload,
}

/// SIGTERM and SIGINT, and SIGHUP where that is wanted; elsewhere than on Unix, Ctrl-C. While this is there they do not
/// end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: Stream,
    #[cfg(unix)]
    interrupt: Stream,
    #[cfg(unix)]
    hangup: Option<Stream>,
    /// It was started on a terminal.
    #[cfg(unix)]
    on_terminal: bool,
}

#[cfg(unix)]
impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: None,
            on_terminal: screen::is_terminal(),
        })
    }

    /// The same with SIGHUP, which asks to read the file again.
    pub(crate) fn and_reload(self) -> io::Result<Self> {
        let hangup = Some(signal(SignalKind::hangup())?);
        Ok(Self { hangup, ..self })
    }

    /// Waits for one.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Signal::End("SIGTERM"),
            _ = self.interrupt.recv() => Signal::End("SIGINT"),
            // With the terminal goes what was started there, and nobody is left to send another.
            () = next_of(&mut self.hangup) => match self.on_terminal && !screen::is_terminal() {
                true => Signal::End("SIGHUP"),
                false => Signal::Reload,
            },
        }
    }

    /// Waits for one that asks to end, and gives its name; others wait until [`next`](Self::next).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn end(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(unix)]
async fn next_of(stream: &mut Option<Stream>) {
    match stream {
        Some(stream) => drop(stream.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(not(unix))]
impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    /// The same: there is no signal to read the file again.
    pub(crate) fn and_reload(self) -> io::Result<Self> {
        Ok(self)
    }

    /// Waits for one.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        Signal::End(self.end().await)
    }

    /// Waits for one and gives its name.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn end(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(_) => std::future::pending().await,
        }
    }
}
