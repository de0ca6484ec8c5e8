//! A broker as a test sees it: [`ElasticMq`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::error::tail;
use crate::group::{self, Group};
use crate::ports::Port;
use crate::{ControlError, StartError, http};

const WHAT: &str = "ElasticMQ";
/// Where `tests/brokers/install` puts its jars, unless the environment says otherwise.
const ROOT: (&str, &str) = ("MILLSTREAM_ELASTICMQ_ROOT", "/var/cache/millstream/elasticmq");

/// A broker that speaks SQS. Dropped, it is killed and its data removed.
///
/// It takes any credentials and any region; its account is `000000000000`.
#[derive(Debug)]
pub struct ElasticMq {
    // Before the data, which goes with it.
    group: Option<Group>,
    data: TempDir,
    port: Port,
    jars: PathBuf,
    durable: bool,
}

impl ElasticMq {
    /// Starts one whose queues and messages outlive it, and returns once it answers.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start() -> Result<Self, StartError> {
        Self::make(true)
    }

    /// Starts one that keeps everything in memory, which is faster.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn start_in_memory() -> Result<Self, StartError> {
        Self::make(false)
    }

    fn make(durable: bool) -> Result<Self, StartError> {
        let mut broker = Self {
            group: None,
            data: tempfile::Builder::new()
                .prefix("millstream-elasticmq-")
                .tempdir()
                .map_err(StartError::io("make a folder for ElasticMQ"))?,
            port: Port::free().map_err(StartError::io("find a free port"))?,
            jars: jars()?,
            durable,
        };
        fs::write(broker.file("elasticmq.conf"), broker.configuration())
            .map_err(StartError::io("configure ElasticMQ"))?;
        broker.start_again()?;
        Ok(broker)
    }

    /// Starts it after [`kill`](Self::kill) or [`stop`](Self::stop), at the same port and with the same data, and
    /// returns once it answers. One that runs is left running.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&mut self) -> Result<(), StartError> {
        if self.group.is_some() {
            return Ok(());
        }
        let mut group = self.launch()?;
        let port = self.port();
        let ready = group.ready(|| matches!(http::get(port, "/?Action=ListQueues", ""), Ok((200, _))));
        let Err(how) = ready else {
            self.group = Some(group);
            return Ok(());
        };
        drop(group);
        Err(StartError::Failed {
            what: WHAT.to_owned(),
            how,
            hint: format!(
                "if {} is not whole, remove it and run tests/brokers/install",
                self.jars.display()
            ),
            log: tail(&self.log_path(), 40),
        })
    }

    fn launch(&self) -> Result<Group, StartError> {
        let printed = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(StartError::io("make a file for ElasticMQ"))?;
        let errors = printed
            .try_clone()
            .map_err(StartError::io("make a file for ElasticMQ"))?;
        Group::start(
            Command::new("java")
                // It lives for seconds: what pays off after minutes is left out.
                .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m"])
                .arg(format!("-Dconfig.file={}", self.file("elasticmq.conf").display()))
                .arg("-cp")
                .arg(self.jars.join("*"))
                .arg("org.elasticmq.server.Main")
                .current_dir(self.data.path())
                .stdin(Stdio::null())
                .stdout(printed)
                .stderr(errors),
            self.data.path(),
        )
        .map_err(|cause| {
            if cause.kind() == std::io::ErrorKind::NotFound {
                return missing("java");
            }
            StartError::io("start ElasticMQ")(cause)
        })
    }

    fn configuration(&self) -> String {
        // Without a delay of its writes, a kill takes nothing with it that was confirmed.
        format!(
            r#"
            node-address {{ protocol = http, host = "127.0.0.1", port = {port}, context-path = "" }}
            rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "127.0.0.1", sqs-limits = strict }}
            rest-stats {{ enabled = false }}
            messages-storage {{
                enabled = {durable}
                uri = "jdbc:h2:{messages};WRITE_DELAY=0"
            }}
            "#,
            port = self.port(),
            durable = self.durable,
            messages = self.file("messages").display(),
        )
    }

    fn file(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    /// Kills it with SIGKILL, and returns once it is gone. One that does not run is left alone.
    pub fn kill(&mut self) {
        group::kill(&mut self.group);
    }

    /// Has it stop in order, and returns once it is gone. One that does not run is left alone.
    ///
    /// # Errors
    /// If it took more than half a minute, and was killed.
    pub fn stop(&mut self) -> Result<(), ControlError> {
        group::stop(&mut self.group, WHAT)
    }

    /// Whether it was started and neither killed nor stopped since.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.group.is_some()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.group.as_ref().map(Group::id)
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// What clients take for the endpoint of SQS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Makes a queue with these attributes, for tests that have no client of SQS; gives its URL.
    ///
    /// # Errors
    /// If it refuses.
    pub fn create_queue(&self, name: &str, attributes: &[(&str, &str)]) -> Result<String, ControlError> {
        let mut query = format!("/?Action=CreateQueue&QueueName={}", http::encoded(name));
        for (index, (name, value)) in (1..).zip(attributes) {
            let (name, value) = (http::encoded(name), http::encoded(value));
            query.push_str(&format!(
                "&Attribute.{index}.Name={name}&Attribute.{index}.Value={value}"
            ));
        }
        let refused = |answer: String| ControlError::Refused {
            command: query.clone(),
            answer,
        };
        let (status, body) =
            http::get(self.port(), &query, "").map_err(|error| refused(error.to_string()))?;
        let url = body
            .split_once("<QueueUrl>")
            .and_then(|(_, rest)| rest.split_once("</QueueUrl>"))
            .map(|(url, _)| url.to_owned());
        url.filter(|_| status == 200).ok_or_else(|| refused(body))
    }

    /// What it prints, all its lives in one.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.file("printed")
    }
}

fn jars() -> Result<PathBuf, StartError> {
    let (variable, default) = ROOT;
    let root = std::env::var_os(variable).map_or_else(|| Path::new(default).to_owned(), PathBuf::from);
    let has_server = fs::read_dir(&root).is_ok_and(|files| {
        files.flatten().any(|file| {
            file.file_name()
                .to_string_lossy()
                .starts_with("elasticmq-server_")
        })
    });
    if has_server {
        return Ok(root);
    }
    Err(missing(&format!("{WHAT} (looked for in {})", root.display())))
}

fn missing(what: &str) -> StartError {
    StartError::Missing {
        what: what.to_owned(),
        install: "tests/run --install".to_owned(),
    }
}
