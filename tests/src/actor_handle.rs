//! A process of a test, as the test sees it: [`Actor`].

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::ledger::Ledger;

/// The variable of the environment that holds an actor's arguments, a line each.
pub const ARGUMENTS: &str = "MILLSTREAM_ACTOR";

/// A process of the `actor` binary. Dropped, it is killed.
#[derive(Debug)]
pub struct Actor {
    /// Its number in the ledger.
    pub number: u32,
    child: Child,
    orders: Option<ChildStdin>,
    told: Receiver<String>,
}

impl Actor {
    /// Starts one with its role, what its command line has beyond that, and its arguments, `name=value` each.
    ///
    /// # Panics
    /// If that cannot be done.
    #[must_use]
    pub fn start(program: &str, number: u32, ledger: &Ledger, arguments: &[String]) -> Self {
        let pipe = ledger
            .another()
            .expect("a pipe has any number of ends")
            .into_file();
        let (mut told, words): (Vec<String>, Vec<_>) =
            arguments.iter().cloned().partition(|word| word.contains('='));
        told.push(format!("actor={number}"));
        let mut child = Command::new(program)
            .args(words)
            .env(ARGUMENTS, told.join("\n"))
            .env_remove("RUST_LOG")
            // Any are right for the SQS of tests.
            .env("AWS_ACCESS_KEY_ID", "x")
            .env("AWS_SECRET_ACCESS_KEY", "x")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(pipe))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the actor binary runs");
        let orders = child.stdin.take();
        let stderr = child.stderr.take().expect("it was asked for");
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let drained = line.contains(" in flight: ").then_some(&*line);
                match line.strip_prefix("told: ").or(drained) {
                    Some(told) => drop(tell.send(told.to_owned())),
                    None => eprintln!("actor {number}: {line}"),
                }
            }
        });
        Self {
            number,
            child,
            orders,
            told,
        }
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it is, all its threads, and returns once they stand still.
    ///
    /// # Panics
    /// If it has ended already.
    pub fn freeze(&self) {
        use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).expect("a child can be stopped");
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED)
            .expect("a child can be waited for")
            .expect("waiting was asked for");
        assert!(status.stopped(), "it ended before it was stopped: {status:?}");
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn thaw(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("a child can go on");
    }

    /// Closes its connections to this port, as a network would that forgot them; how many there were.
    ///
    /// # Panics
    /// If it has ended already.
    #[must_use]
    pub fn cut(&self, port: u16) -> usize {
        use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
        let child = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("the process runs");
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("the process runs");
        files
            .filter_map(Result::ok)
            .filter(|file| {
                let what = std::fs::read_link(file.path()).unwrap_or_default();
                what.to_string_lossy().starts_with("socket:")
            })
            .filter_map(|file| file.file_name().to_str()?.parse().ok())
            // It may have closed some meanwhile.
            .filter_map(|number| pidfd_getfd(&child, number, PidfdGetfdFlags::empty()).ok())
            .map(TcpStream::from)
            .filter(|stream| stream.peer_addr().is_ok_and(|peer| peer.port() == port))
            .filter(|stream| stream.shutdown(Shutdown::Both).is_ok())
            .count()
    }

    /// Kills it with SIGKILL, and returns once it is gone.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child can be waited for")
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// If that cannot be told.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked for")
    }

    /// Tells it to drain and end.
    pub fn dismiss(&mut self) {
        if let Some(mut orders) = self.orders.take() {
            // One that has ended needs no word.
            orders.write_all(b"drain\n").ok();
        }
    }

    /// Asks it to end, with SIGTERM.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn terminate(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("a child can be asked to end");
    }

    /// What it says next: what a pipeline came to when it drained, or what the test wants to know.
    ///
    /// # Panics
    /// If it says nothing for so long.
    #[must_use]
    pub fn told(&self, within: Duration) -> String {
        self.told
            .recv_timeout(within)
            .unwrap_or_else(|error| panic!("actor {} says nothing: {error}", self.number))
    }

    /// A line of its `/proc/…/status` in KiB, as `VmRSS`.
    ///
    /// # Panics
    /// If it has ended, or there is no such line.
    #[must_use]
    pub fn kibibytes(&self, line: &str) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(&path).expect("the process runs");
        status
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or_else(|| panic!("{path} has no {line}"))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
