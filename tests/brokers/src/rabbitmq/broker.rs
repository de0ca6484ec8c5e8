//! A broker as a test sees it: [`RabbitMq`].

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::builder::Builder;
use super::node::Node;
use super::series::Series;
use crate::error::tail;
use crate::group::{self, Group};
use crate::{ControlError, StartError, tls};

/// A client's first words, and the kind of the frame that only a broker at work answers them with.
const GREETING: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
const METHOD_FRAME: u8 = 1;

/// A broker of its own. Dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct RabbitMq {
    // Before the node, whose folder goes with it.
    group: Option<Group>,
    pub(super) node: Node,
}

impl RabbitMq {
    /// What a broker of this series is to be like.
    pub const fn builder(series: Series) -> Builder {
        Builder::new(series)
    }

    pub(super) fn start(builder: &Builder) -> Result<Self, StartError> {
        let mut broker = Self {
            group: None,
            node: Node::new(builder)?,
        };
        broker.start_again()?;
        Ok(broker)
    }

    /// Starts it after [`kill`](Self::kill) or [`stop`](Self::stop), with the same ports and data, and returns once
    /// it answers. One that runs is left running.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&mut self) -> Result<(), StartError> {
        if self.group.is_some() {
            return Ok(());
        }
        let mut group = self
            .node
            .server()
            .and_then(|mut server| Group::start(&mut server, self.node.folder()))
            .map_err(StartError::io(format!("start {}", self.what())))?;
        let Err(how) = group.ready(|| self.ready()) else {
            self.group = Some(group);
            return Ok(());
        };
        drop(group);
        Err(self.failed(how))
    }

    /// Whether it answers at all its ports.
    fn ready(&self) -> bool {
        let others = [&self.node.management, &self.node.amqps];
        answers(self.port())
            && others
                .into_iter()
                .flatten()
                .all(|port| connect(port.number()).is_some())
    }

    fn what(&self) -> String {
        format!("RabbitMQ {}", self.node.installation.version)
    }

    fn failed(&self, how: String) -> StartError {
        let installation = &self.node.installation;
        let hint = if installation.elsewhere() {
            format!(
                "if {root} is not whole, remove it and run tests/brokers/install; root enters it with chroot, others \
                 with unshare --map-root-user, which takes a kernel that lets them",
                root = installation.root.display(),
            )
        } else {
            "if it cannot find its files, install it anew: apt-get install --reinstall rabbitmq-server"
                .to_owned()
        };
        StartError::Failed {
            what: self.what(),
            how,
            hint,
            log: tail(&self.node.printed(), 60) + &tail(&self.node.log(), 40),
        }
    }

    /// Kills it with SIGKILL, and returns once it is gone; what it was to send is cut off. One that does not run is
    /// left alone.
    pub fn kill(&mut self) {
        group::kill(&mut self.group);
    }

    /// Has it stop as it does for its administrator, and returns once it is gone. One that does not run is left
    /// alone.
    ///
    /// # Errors
    /// If it took more than half a minute, and was killed.
    pub fn stop(&mut self) -> Result<(), ControlError> {
        let what = self.what();
        group::stop(&mut self.group, &what)
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

    /// Its version, as `3.10.8`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.node.installation.version
    }

    /// Where it listens for AMQP 0-9-1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.node.amqp.number()
    }

    /// Where to connect to, and as whom.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port())
    }

    /// Where to connect to with TLS, by the name in its certificate.
    ///
    /// # Panics
    /// If it was started without.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let port = self.node.amqps.as_ref().expect("started with tls(true)");
        format!("amqps://guest:guest@localhost:{}/%2f", port.number())
    }

    /// The certificate of the authority that gave it its own, as PEM.
    ///
    /// # Panics
    /// If it was started without TLS.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        fs::read_to_string(self.node.file(tls::CA)).expect("started with tls(true)")
    }

    /// Its HTTP API and pages, with name and password.
    ///
    /// # Panics
    /// If it was started without.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.management_port())
    }

    pub(super) fn management_port(&self) -> u16 {
        let port = self.node.management.as_ref();
        port.expect("started with management(true)").number()
    }

    /// Its log, all its lives in one.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.node.log()
    }
}

fn connect(port: u16) -> Option<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
}

/// Whether it takes part in a handshake.
fn answers(port: u16) -> bool {
    let Some(mut stream) = connect(port) else {
        return false;
    };
    let mut first = [0];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(GREETING).is_ok()
        && stream.read_exact(&mut first).is_ok()
        && first == [METHOD_FRAME]
}
