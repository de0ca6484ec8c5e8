//! Redis, for tests of stores: [`Redis`].

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::StartError;
use crate::error::tail;
use crate::group::{self, Group};
use crate::ports::Port;

const WHAT: &str = "Redis";

/// A Redis that has on the disk what it confirms. Dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct Redis {
    // Before the data, which goes with it.
    group: Option<Group>,
    data: TempDir,
    port: Port,
}

impl Redis {
    /// Starts one, and returns once it answers.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start() -> Result<Self, StartError> {
        let mut redis = Self {
            group: None,
            data: tempfile::Builder::new()
                .prefix("millstream-redis-")
                .tempdir()
                .map_err(StartError::io("make a folder for Redis"))?,
            port: Port::free().map_err(StartError::io("find a free port"))?,
        };
        redis.start_again()?;
        Ok(redis)
    }

    /// Starts it after [`kill`](Self::kill), at the same port and with the same data, and returns once it answers. One
    /// that runs is left running.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&mut self) -> Result<(), StartError> {
        if self.group.is_some() {
            return Ok(());
        }
        let mut group = self.launch()?;
        let port = self.port();
        let Err(how) = group.ready(|| answers(port).is_ok_and(|answers| answers)) else {
            self.group = Some(group);
            return Ok(());
        };
        drop(group);
        Err(StartError::Failed {
            what: WHAT.to_owned(),
            how,
            hint: "it may be of another version than the tests know: 7".to_owned(),
            log: tail(&self.log_path(), 40),
        })
    }

    fn launch(&self) -> Result<Group, StartError> {
        let printed = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(StartError::io("make a file for Redis"))?;
        let errors = printed
            .try_clone()
            .map_err(StartError::io("make a file for Redis"))?;
        Group::start(
            Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--port", &self.port().to_string()])
                .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
                .arg("--dir")
                .arg(self.data.path())
                .stdin(Stdio::null())
                .stdout(printed)
                .stderr(errors),
            self.data.path(),
        )
        .map_err(|cause| {
            if cause.kind() == io::ErrorKind::NotFound {
                return StartError::Missing {
                    what: "redis-server".to_owned(),
                    install: "tests/run --install (or apt-get install redis-server)".to_owned(),
                };
            }
            StartError::io("start Redis")(cause)
        })
    }

    /// Kills it with SIGKILL, and returns once it is gone. One that does not run is left alone.
    pub fn kill(&mut self) {
        group::kill(&mut self.group);
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// What clients take for its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// What it prints, all its lives in one.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.data.path().join("printed")
    }
}

/// Whether it serves: while it reads its data it says that it does not yet.
fn answers(port: u16) -> io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG\r\n")
}
