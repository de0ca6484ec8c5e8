//! One node's folder, ports, files and process: [`Node`].

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::builder::KafkaBuilder;
use super::cluster::Kafka;
use super::installation::Installation;
use super::proxy::Proxy;
use crate::error::tail;
use crate::group::{self, Group};
use crate::ports::Port;
use crate::{ControlError, StartError, tls};

/// Any will do: nothing else hears of it.
const CLUSTER: &str = "millstream-tests000000";

/// A request that any client begins with, and a broker answers once it takes requests: ApiVersions, version 0, with
/// the number 7, from a client without a name.
const GREETING: &[u8; 14] = b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x07\xff\xff";

const HINT: &str = "if it cannot find its classes, remove its folder and run tests/brokers/install";

#[derive(Debug)]
pub(crate) struct Node {
    // Before the data, which goes with it.
    group: Option<Group>,
    data: TempDir,
    id: usize,
    broker: Port,
    controller: Port,
    secured: Option<Port>,
    proxy: Option<Proxy>,
}

impl Node {
    pub(crate) fn new(id: usize, builder: &KafkaBuilder) -> Result<Self, StartError> {
        let data = tempfile::Builder::new()
            .prefix("millstream-kafka-")
            .tempdir()
            .map_err(StartError::io("make a folder for Kafka"))?;
        let port = || Port::free().map_err(StartError::io("find a free port"));
        let broker = port()?;
        let proxy = builder.counted.then(|| Proxy::start(broker.number()));
        Ok(Self {
            group: None,
            data,
            id,
            broker,
            controller: port()?,
            secured: builder.secured.then(port).transpose()?,
            proxy: proxy
                .transpose()
                .map_err(StartError::io("start a proxy before Kafka"))?,
        })
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> String {
        self.proxy.as_ref().map_or_else(|| self.listens(), Proxy::address)
    }

    fn listens(&self) -> String {
        format!("127.0.0.1:{}", self.broker.number())
    }

    /// How often it was asked for messages, where that is counted.
    pub(crate) fn fetches(&self) -> Option<usize> {
        self.proxy.as_ref().map(Proxy::fetches)
    }

    pub(crate) fn secured_address(&self) -> Option<String> {
        let port = self.secured.as_ref()?;
        Some(format!("127.0.0.1:{}", port.number()))
    }

    pub(crate) fn port(&self) -> u16 {
        self.broker.number()
    }

    /// How controllers find this one.
    pub(crate) fn voter(&self) -> String {
        format!("{}@127.0.0.1:{}", self.id, self.controller.number())
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.data.path()
    }

    /// What it prints, which is its log, all its lives in one.
    pub(crate) fn printed(&self) -> PathBuf {
        self.file("printed")
    }

    pub(crate) fn runs(&self) -> bool {
        self.group.is_some()
    }

    pub(crate) fn process(&self) -> Option<u32> {
        self.group.as_ref().map(Group::id)
    }

    /// Says whose that is what the node keeps its log in, which is all that it needs to start.
    pub(crate) fn name(&self) -> io::Result<()> {
        fs::create_dir(self.file("data"))?;
        fs::write(
            self.file("data/meta.properties"),
            format!("version=1\ncluster.id={CLUSTER}\nnode.id={}\n", self.id),
        )
    }

    /// Has Kafka's tool do so, which writes down what features there are to be too.
    pub(crate) fn format(&self, installation: &Installation) -> Result<(), StartError> {
        let made = java(installation)
            .args([
                "kafka.tools.StorageTool",
                "format",
                "--cluster-id",
                CLUSTER,
                "--config",
            ])
            .arg(self.file("server.properties"))
            .current_dir(self.data.path())
            .stdin(Stdio::null())
            .output()
            .map_err(no_java)?;
        if made.status.success() {
            return Ok(());
        }
        Err(StartError::Failed {
            what: format!("Kafka {}", installation.version),
            how: format!("could not be formatted ({})", made.status),
            hint: HINT.to_owned(),
            log: String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr),
        })
    }

    /// Writes what the node reads when it starts.
    pub(crate) fn write(&self, voters: &str, copies: usize, settings: &[(String, String)]) -> io::Result<()> {
        let (broker, controller) = (self.listens(), format!("127.0.0.1:{}", self.controller.number()));
        let majority = copies / 2 + 1;
        let mut text = format!(
            "process.roles=broker,controller\n\
             node.id={id}\n\
             controller.quorum.voters={voters}\n\
             listeners=PLAINTEXT://{broker},CONTROLLER://{controller}{secured}\n\
             advertised.listeners=PLAINTEXT://{found}{secured}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL\n\
             log.dirs={data}\n\
             offsets.topic.replication.factor={copies}\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor={copies}\n\
             transaction.state.log.min.isr={majority}\n\
             transaction.state.log.num.partitions=2\n\
             share.coordinator.state.topic.replication.factor={copies}\n\
             share.coordinator.state.topic.min.isr={majority}\n\
             default.replication.factor={copies}\n\
             auto.create.topics.enable=false\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             num.network.threads=2\n\
             num.io.threads=2\n\
             log.cleaner.dedupe.buffer.size=4194304\n",
            id = self.id,
            found = self.address(),
            data = self.file("data").display(),
            secured = self
                .secured_address()
                .map(|address| format!(",SASL_SSL://{address}"))
                .unwrap_or_default(),
        );
        if self.secured.is_some() {
            self.secure(&mut text)?;
        }
        for (key, value) in settings {
            writeln!(text, "{key}={value}").ok();
        }
        fs::write(self.file("server.properties"), text)
    }

    /// The listener for those who speak TLS and log in.
    fn secure(&self, text: &mut String) -> io::Result<()> {
        tls::write(self.folder())?;
        let read = |name| fs::read_to_string(self.file(name));
        fs::write(
            self.file("server.pem"),
            read(tls::KEY)? + &read(tls::CERTIFICATE)?,
        )?;
        let (user, password) = (Kafka::USER, Kafka::PASSWORD);
        writeln!(
            text,
            "ssl.keystore.type=PEM\n\
             ssl.keystore.location={keys}\n\
             sasl.enabled.mechanisms=PLAIN\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
             required user_{user}=\"{password}\";",
            keys = self.file("server.pem").display(),
        )
        .map_err(io::Error::other)
    }

    /// Starts its process; it is not ready yet. One that runs is left running.
    pub(crate) fn spawn(&mut self, installation: &Installation) -> Result<(), StartError> {
        if self.group.is_some() {
            return Ok(());
        }
        let printed = fs::File::options()
            .create(true)
            .append(true)
            .open(self.printed())
            .map_err(StartError::io("make a file for Kafka"))?;
        let errors = printed
            .try_clone()
            .map_err(StartError::io("make a file for Kafka"))?;
        let mut java = java(installation);
        java.arg("kafka.Kafka")
            .arg(self.file("server.properties"))
            .current_dir(self.data.path())
            .stdin(Stdio::null())
            .stdout(printed)
            .stderr(errors);
        let group = Group::start(&mut java, self.data.path()).map_err(no_java)?;
        self.group = Some(group);
        Ok(())
    }

    /// Waits until it answers; one that does not is killed.
    pub(crate) fn ready(&mut self, what: &str) -> Result<(), StartError> {
        let port = self.port();
        let Some(group) = self.group.as_mut() else {
            return Ok(());
        };
        let Err(how) = group.ready(|| answers(port)) else {
            return Ok(());
        };
        self.group = None;
        Err(StartError::Failed {
            what: what.to_owned(),
            how,
            hint: HINT.to_owned(),
            log: tail(&self.printed(), 60),
        })
    }

    pub(crate) fn kill(&mut self) {
        group::kill(&mut self.group);
    }

    pub(crate) fn stop(&mut self, what: &str) -> Result<(), ControlError> {
        group::stop(&mut self.group, what)
    }
}

/// A JVM that is to run one of Kafka's classes.
fn java(installation: &Installation) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xmx512m", "-Xshare:auto"])
        // It lives for seconds: what the better compiler and collector would gain is spent on starting them.
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .args([
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            // It says when it is asked to stop.
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.utils.LoggingSignalHandler=info",
        ])
        .arg("-cp")
        .arg(installation.folder.join("*"));
    java
}

fn no_java(cause: io::Error) -> StartError {
    if cause.kind() == io::ErrorKind::NotFound {
        StartError::Missing {
            what: "java".to_owned(),
            install: "tests/run --install (or apt-get install default-jre-headless)".to_owned(),
        }
    } else {
        StartError::io("start java")(cause)
    }
}

/// Whether it answers a request.
fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    let mut head = [0; 8];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(GREETING).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && head.ends_with(&[0, 0, 0, 7])
}
