//! The processes of one broker, which end together and with the test: [`Group`].

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::error::ControlError;
use crate::wait::{self, SOON, START};

/// Waits for the end of its input, which comes with the end of whoever holds the other end, and kills its group.
/// Somebody outside of the group removes the folder then; the guard goes on when that one has left it, and said so by
/// closing its output.
const GUARD: &str = r#"
read -r _
said=$(setsid --fork sh -c '
    exec >&-
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 -- "-$1" || break; sleep 0.1; done
    rm -rf -- "$2"
' - $$ "$1")
kill -KILL 0
"#;

/// A broker's process and the guard that leads their process group. Dropped, both are killed.
#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    guard: Child,
    /// The guard reads from it; only its end is of interest.
    _held: Option<ChildStdin>,
}

impl Group {
    /// Starts the command in a group of its own. The folder is what is to be removed after it by the guard; who lives
    /// to drop the group removes it himself.
    pub(crate) fn start(command: &mut Command, folder: &Path) -> io::Result<Self> {
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let held = guard.stdin.take();
        // The guard leads, so that there is no moment at which the broker runs unguarded, and no process id that
        // might be another's by the time it is killed.
        let leader = i32::try_from(guard.id()).map_err(io::Error::other)?;
        match command.process_group(leader).spawn() {
            Ok(child) => Ok(Self {
                child,
                guard,
                _held: held,
            }),
            Err(error) => {
                guard.kill()?;
                guard.wait()?;
                Err(error)
            }
        }
    }

    /// The broker's process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the broker ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until the broker answers; if it does not, how that went.
    pub(crate) fn ready(&mut self, answers: impl Fn() -> bool) -> Result<(), String> {
        wait::until(START, || match self.ended() {
            Ok(None) => answers().then_some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("ended ({status}) before it was ready"))),
            Err(error) => Some(Err(format!("cannot be watched: {error}"))),
        })
        .unwrap_or_else(|| Err(format!("was not ready after {} s", START.as_secs())))
    }

    /// Asks the broker to end and waits for it; kills it if it takes longer than it may. How it ended.
    pub(crate) fn stop(mut self, within: Duration) -> io::Result<ExitStatus> {
        if self.ended()?.is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM)?;
            wait::until(within, || self.ended().transpose()).transpose()?;
        }
        self.kill();
        self.child.wait()
    }

    /// Kills the group with SIGKILL and returns once broker and guard are gone.
    pub(crate) fn kill(&mut self) {
        // Both may have ended, and the guard is not waited for before: the group is still its own.
        kill_process_group(Pid::from_child(&self.guard), Signal::KILL).ok();
        self.child.wait().ok();
        self.guard.wait().ok();
    }
}

/// Kills a broker, if it runs.
pub(crate) fn kill(running: &mut Option<Group>) {
    if let Some(mut group) = running.take() {
        group.kill();
    }
}

/// Has a broker stop in order, if it runs; it is killed if that takes longer than half a minute.
pub(crate) fn stop(running: &mut Option<Group>, what: &str) -> Result<(), ControlError> {
    let Some(group) = running.take() else {
        return Ok(());
    };
    let status = group.stop(SOON).map_err(|cause| ControlError::Run {
        program: what.to_owned(),
        cause,
    })?;
    if status.code().is_some() {
        return Ok(());
    }
    Err(ControlError::Late {
        what: format!("{what} has stopped"),
        within: SOON,
    })
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.guard.try_wait(), Ok(Some(_))) && matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.kill();
    }
}
