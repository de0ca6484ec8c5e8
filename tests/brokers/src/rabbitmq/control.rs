//! What a test does to a running broker.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::broker::RabbitMq;
use crate::wait::{self, SOON};
use crate::{ControlError, http};

/// The name and password of every broker, guest and guest.
const AUTHORIZATION: &str = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n";

impl RabbitMq {
    /// Evaluates an Erlang expression in the broker; its value as Erlang writes it. Takes milliseconds.
    ///
    /// ```no_run
    /// # let broker = millstream_brokers::RabbitMq::builder(millstream_brokers::Series::V4).start()?;
    /// assert_eq!(broker.eval("1 + 2")?, "3");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If it does not run, or the evaluation fails.
    pub fn eval(&self, expression: &str) -> Result<String, ControlError> {
        let mut answer = String::new();
        wait::until(SOON, || {
            let mut call = self.node.program("erl_call");
            call.args(self.node.call()).arg("-e");
            match run(call, &format!("{expression}.\n"), expression) {
                // Nothing was evaluated: a busy node lets a caller wait for longer than the caller does.
                Ok((_, said)) if said.contains("failed to connect") && self.runs() => {
                    answer = said;
                    None
                }
                Ok((_, said)) => {
                    answer = said;
                    Some(Ok(()))
                }
                Err(error) => Some(Err(error)),
            }
        })
        .unwrap_or(Ok(()))?;
        answer
            .trim()
            .strip_prefix("{ok, ")
            .and_then(|answer| answer.strip_suffix('}'))
            .map(str::to_owned)
            .ok_or_else(|| ControlError::Refused {
                command: expression.to_owned(),
                answer,
            })
    }

    /// Runs `rabbitmqctl --silent` with these arguments; what it prints. Takes a second or two.
    ///
    /// # Errors
    /// If it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, ControlError> {
        let mut ctl = self.node.program("erl");
        ctl.args(["+B", "-boot", "no_dot_erlang", "-noinput", "-hidden"])
            // As many as may call at once have names of their own, and none listens.
            .args(["-sname", &format!("ctl{}@localhost", fastrand::u64(..))])
            .args(["-dist_listen", "false"])
            .args(self.node.neighbours())
            .args(["-run", "escript", "start", "-escript", "main", "rabbitmqctl_escript"])
            .arg("-extra")
            .arg(self.node.installation.home.join("escript/rabbitmqctl"))
            .args(["--silent", "--node", &self.node.name()])
            .args(arguments);
        let command = arguments.join(" ");
        match run(ctl, "", &command)? {
            (true, answer) => Ok(answer),
            (false, answer) => Err(ControlError::Refused { command, answer }),
        }
    }

    /// How many client connections it has.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub fn connections(&self) -> Result<usize, ControlError> {
        self.count("length(rabbit_networking:connections())")
    }

    /// Closes all client connections as an administrator does, with `CONNECTION_FORCED` and this reason; how many
    /// there were.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub fn close_all_connections(&self, reason: &str) -> Result<usize, ControlError> {
        // A list of numbers is a string to Erlang, and needs no quotes.
        let reason = format!("{:?}", reason.as_bytes());
        self.count(&format!(
            "Open = rabbit_networking:connections(), \
             [catch rabbit_networking:close_connection(One, {reason}) || One <- Open], length(Open)"
        ))
    }

    fn count(&self, expression: &str) -> Result<usize, ControlError> {
        let answer = self.eval(expression)?;
        answer.parse().map_err(|_| ControlError::Refused {
            command: expression.to_owned(),
            answer,
        })
    }

    /// What its HTTP API answers to a GET of this path, as `/api/queues`. Its counts are some seconds old.
    ///
    /// # Errors
    /// If it refuses, or does not run.
    ///
    /// # Panics
    /// If it was started without [`management`](crate::Builder::management).
    pub fn management(&self, path: &str) -> Result<Value, ControlError> {
        let refused = |answer: String| ControlError::Refused {
            command: path.to_owned(),
            answer,
        };
        let (status, body) = http::get(self.management_port(), path, AUTHORIZATION)
            .map_err(|error| refused(error.to_string()))?;
        serde_json::from_str(&body)
            .ok()
            .filter(|_| status == 200)
            .ok_or_else(|| refused(body))
    }

    /// Has it write to the disk what was declared so far. It does so by itself within about two seconds of having
    /// answered the declaration, and a broker that is killed before has lost the queue, with the persistent messages
    /// in it: a test that is not about that calls this before it kills.
    ///
    /// # Errors
    /// As [`eval`](Self::eval).
    pub fn flush_declarations(&self) -> Result<(), ControlError> {
        self.eval("mnesia:sync_log()").map(drop)
    }

    /// Raises the memory alarm, on which it reads no more from connections that publish; returns once it has.
    ///
    /// # Errors
    /// As [`eval`](Self::eval), or if there is no alarm in time.
    pub fn raise_memory_alarm(&self) -> Result<(), ControlError> {
        self.set_watermark("0", true)
    }

    /// Ends what [`raise_memory_alarm`](Self::raise_memory_alarm) began; returns once publishers may go on.
    ///
    /// # Errors
    /// As [`eval`](Self::eval), or if the alarm does not end in time.
    pub fn clear_memory_alarm(&self) -> Result<(), ControlError> {
        self.set_watermark("0.5", false)
    }

    fn set_watermark(&self, part: &str, alarm: bool) -> Result<(), ControlError> {
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({part})"))?;
        let rung = wait::until(SOON, || match self.eval("rabbit_alarm:get_alarms()") {
            Ok(alarms) => (alarms.contains("memory") == alarm).then_some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        rung.unwrap_or_else(|| {
            let what = if alarm { "raised" } else { "cleared" };
            Err(ControlError::Late {
                what: format!("the memory alarm is {what}"),
                within: SOON,
            })
        })
    }
}

/// Whether the program succeeded, and what it said: its output if so, what it complained of otherwise.
fn run(mut program: Command, input: &str, what: &str) -> Result<(bool, String), ControlError> {
    let failed = |cause| ControlError::Run {
        program: what.to_owned(),
        cause,
    };
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended before it has read says why below.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut answer = text(&output.stdout);
    if !output.status.success() {
        answer += &text(&output.stderr);
    }
    Ok((output.status.success(), answer))
}
