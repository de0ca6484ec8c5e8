//! Where Kafka is installed: [`Installation`].

use std::path::PathBuf;

use crate::StartError;

const SERVER: &str = "kafka_2.13-";

/// Kafka's jars on this machine.
#[derive(Debug)]
pub(crate) struct Installation {
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
}

impl Installation {
    pub(crate) fn find() -> Result<Self, StartError> {
        let folder = std::env::var_os("MILLSTREAM_KAFKA_ROOT")
            .map_or_else(|| "/var/cache/millstream/kafka-4".into(), PathBuf::from);
        let version = std::fs::read_dir(&folder).ok().and_then(|files| {
            files
                .filter_map(|file| file.ok()?.file_name().into_string().ok())
                .find_map(|name| {
                    let version = name.strip_prefix(SERVER)?.strip_suffix(".jar")?;
                    Some(version.to_owned())
                })
        });
        match version {
            Some(version) => Ok(Self { folder, version }),
            None => Err(StartError::Missing {
                what: format!("Kafka 4 ({SERVER}4.….jar in {})", folder.display()),
                install: "tests/run --install (or tests/brokers/install alone)".to_owned(),
            }),
        }
    }
}
