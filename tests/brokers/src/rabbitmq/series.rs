//! Which RabbitMQ, and where it is installed: [`Series`], [`Installation`].

use std::fmt;
use std::path::{Path, PathBuf};

use crate::StartError;

/// Where Debian's package puts the server; the folder's name ends in its version.
const SERVERS: &str = "usr/lib/rabbitmq/lib";
const SERVER: &str = "rabbitmq_server-";

/// A series of RabbitMQ, as Debian packages it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// 3.10, of Debian 12.
    V3,
    /// 4.0, of Debian 13, in which a quorum queue gives a message up after 20 deliveries unless told otherwise.
    V4,
}

impl Series {
    const fn number(self) -> u8 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }

    /// The folder with a Debian that has this series, where this machine's Debian has another one: what
    /// `MILLSTREAM_RABBITMQ3_ROOT` or `MILLSTREAM_RABBITMQ4_ROOT` says, or `/var/cache/millstream/rabbitmq-3` or
    /// `-4`. Brokers keep their data in its `tmp`, which anybody may write to.
    #[must_use]
    pub fn folder(self) -> PathBuf {
        let number = self.number();
        std::env::var_os(format!("MILLSTREAM_RABBITMQ{number}_ROOT")).map_or_else(
            || format!("/var/cache/millstream/rabbitmq-{number}").into(),
            PathBuf::from,
        )
    }

    pub(crate) fn installation(self) -> Result<Installation, StartError> {
        let folder = self.folder();
        Installation::find(self, Path::new("/"))
            .or_else(|| Installation::find(self, &folder))
            .ok_or_else(|| StartError::Missing {
                what: format!(
                    "{self} (neither in /{SERVERS} nor in {}/{SERVERS})",
                    folder.display()
                ),
                install: "tests/run --install (or tests/brokers/install alone)".to_owned(),
            })
    }
}

impl fmt::Display for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RabbitMQ {}", self.number())
    }
}

/// A RabbitMQ on this machine.
#[derive(Debug)]
pub(crate) struct Installation {
    /// The root of the system that it is part of.
    pub(crate) root: PathBuf,
    /// Its folder, as seen from that root.
    pub(crate) home: PathBuf,
    pub(crate) version: String,
}

impl Installation {
    fn find(series: Series, root: &Path) -> Option<Self> {
        let wanted = format!("{}.", series.number());
        std::fs::read_dir(root.join(SERVERS))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find_map(|name| {
                let version = name.strip_prefix(SERVER)?;
                version.starts_with(&wanted).then(|| Self {
                    root: root.to_owned(),
                    home: Path::new("/").join(SERVERS).join(&name),
                    version: version.to_owned(),
                })
            })
    }

    /// Whether it is of another system than the one that runs.
    pub(crate) fn elsewhere(&self) -> bool {
        self.root != Path::new("/")
    }

    /// Where a path inside of its system is for everybody else.
    pub(crate) fn outside(&self, inside: &Path) -> PathBuf {
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }
}
