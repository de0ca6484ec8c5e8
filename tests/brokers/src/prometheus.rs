//! Prometheus, for tests of what is scraped: [`Prometheus`], [`lint`].

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::error::tail;
use crate::group::Group;
use crate::ports::Port;
use crate::wait::{self, SOON};
use crate::{ControlError, StartError, http};

/// What is to be scraped.
#[derive(Debug, Clone)]
pub struct Target {
    /// The value of its label `job`.
    pub job: String,
    /// Host and port; the path is `/metrics`.
    pub address: String,
}

/// How a target's last scrape went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetHealth {
    /// The value of its label `job`.
    pub job: String,
    /// What is scraped.
    pub url: String,
    /// `up`, `down`, or `unknown` before the first scrape.
    pub health: String,
    /// Why it is down; empty otherwise.
    pub last_error: String,
}

/// A Prometheus of its own. Dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct Prometheus {
    // Before the data, which goes with it.
    _group: Group,
    _data: TempDir,
    port: Port,
}

impl Prometheus {
    /// Starts one that scrapes these, and returns once it answers queries.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start(targets: &[Target], interval: Duration) -> Result<Self, StartError> {
        let data = tempfile::Builder::new()
            .prefix("millstream-prometheus-")
            .tempdir()
            .map_err(StartError::io("make a folder for Prometheus"))?;
        let port = Port::free().map_err(StartError::io("find a free port"))?;
        let config = data.path().join("prometheus.yml");
        let printed = data.path().join("printed");
        fs::write(&config, configuration(targets, interval))
            .map_err(StartError::io("configure Prometheus"))?;
        let output = fs::File::create(&printed).map_err(StartError::io("make a file for Prometheus"))?;
        let errors = output
            .try_clone()
            .map_err(StartError::io("make a file for Prometheus"))?;
        let mut group = Group::start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    data.path().join("data").display()
                ))
                .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()))
                .arg("--log.level=warn")
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(errors),
            data.path(),
        )
        .map_err(|cause| missing_or("prometheus", cause))?;
        let number = port.number();
        let Err(how) = group.ready(|| matches!(http::get(number, "/-/ready", ""), Ok((200, _)))) else {
            return Ok(Self {
                _group: group,
                _data: data,
                port,
            });
        };
        Err(StartError::Failed {
            what: "Prometheus".to_owned(),
            how,
            hint: format!("its configuration was:\n{}", configuration(targets, interval)),
            log: tail(&printed, 20),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// What PromQL evaluates to now: the `data` of the answer, with `resultType` and `result`.
    ///
    /// # Errors
    /// If the query is refused.
    pub fn query(&self, promql: &str) -> Result<Value, ControlError> {
        self.get(&format!("/api/v1/query?query={}", http::encoded(promql)), promql)
    }

    /// How the last scrape of each target went. It takes Prometheus five seconds to find the first one.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn targets(&self) -> Result<Vec<TargetHealth>, ControlError> {
        let data = self.get("/api/v1/targets?state=active", "targets")?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(data
            .get("activeTargets")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|target| TargetHealth {
                job: text(target.pointer("/labels/job")),
                url: text(target.get("scrapeUrl")),
                health: text(target.get("health")),
                last_error: text(target.get("lastError")),
            })
            .collect())
    }

    /// Waits until each target has been scraped and is up.
    ///
    /// # Errors
    /// If one is not in half a minute; the error names it, and why.
    pub fn await_targets(&self) -> Result<(), ControlError> {
        let mut last = Vec::new();
        let up = wait::until(SOON, || match self.targets() {
            Ok(targets) => {
                let up = !targets.is_empty() && targets.iter().all(|target| target.health == "up");
                last = targets;
                up.then_some(Ok(()))
            }
            Err(error) => Some(Err(error)),
        });
        up.unwrap_or_else(|| {
            Err(ControlError::Late {
                what: format!("all targets are up: {last:?}"),
                within: SOON,
            })
        })
    }

    fn get(&self, path: &str, what: &str) -> Result<Value, ControlError> {
        let refused = |answer: String| ControlError::Refused {
            command: what.to_owned(),
            answer,
        };
        let (status, body) =
            http::get(self.port.number(), path, "").map_err(|error| refused(error.to_string()))?;
        serde_json::from_str(&body)
            .ok()
            .filter(|_| status == 200)
            .and_then(|mut answer: Value| answer.get_mut("data").map(Value::take))
            .ok_or_else(|| refused(body))
    }
}

fn configuration(targets: &[Target], interval: Duration) -> String {
    let interval = interval.as_millis();
    let mut text = format!(
        "global: {{ scrape_interval: {interval}ms, scrape_timeout: {interval}ms }}\nscrape_configs:\n"
    );
    for Target { job, address } in targets {
        writeln!(
            text,
            "  - {{ job_name: \"{job}\", static_configs: [ {{ targets: [ \"{address}\" ] }} ] }}"
        )
        .ok();
    }
    text
}

/// What Prometheus' own linter, `promtool check metrics`, has to say of what a scrape returned.
///
/// # Errors
/// What it finds fault with, or that it is not installed.
pub fn lint(metrics: &str) -> Result<(), String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| missing_or("promtool", cause).to_string())?;
    if let Some(mut stdin) = promtool.stdin.take() {
        // It writes nothing before it has read all.
        stdin
            .write_all(metrics.as_bytes())
            .map_err(|error| error.to_string())?;
    }
    let output = promtool.wait_with_output().map_err(|error| error.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() && said.is_empty() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&said).into_owned())
}

fn missing_or(program: &str, cause: io::Error) -> StartError {
    if cause.kind() == io::ErrorKind::NotFound {
        return StartError::Missing {
            what: program.to_owned(),
            install: "tests/run --install (or apt-get install prometheus)".to_owned(),
        };
    }
    StartError::io(format!("start {program}"))(cause)
}
