//! The TOML of the `file` connector: [`FileKind`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_config::{Invalid, SinkContext, SinkKind, SourceContext, SourceKind};
use millstream_core::{SharedConnector, SharedSinkConnector};
use schemars::JsonSchema;
use serde::Deserialize;

use super::sink::FileSink;
use super::source::FileSource;

/// Files of lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileKind;

/// The lines of a file. The place that was read to is kept beside it, in `PATH.position`, and what is rejected
/// in `PATH.dead`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// The file. It may grow while it is read, and nothing else.
    pub path: String,
    /// What a line is.
    #[serde(default)]
    pub format: Format,
    /// Whether to wait for more at the end, and for the file itself if it is not there yet.
    #[serde(default)]
    pub follow: bool,
}

/// A file that messages are appended to, an envelope a line. They are confirmed once they are on the disk.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSinkSettings {
    /// The file; made if it is not there.
    pub path: String,
}

/// What a line of a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A payload, without its line end (`\n` or `\r\n`).
    #[default]
    Lines,
    /// A message as a JSON object: `payload` or `payload_base64`, `key`, `headers`.
    Envelopes,
}

fn path(path: &str) -> Result<PathBuf, Invalid> {
    if path.is_empty() {
        return Err(Invalid::new("`path` is empty", "name a file").at("path"));
    }
    Ok(Path::new(path).to_owned())
}

impl SourceKind for FileKind {
    type Settings = FileSettings;

    fn source(&self, settings: &FileSettings, _: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        Ok(Arc::new(FileSource::new(
            path(&settings.path)?,
            settings.format,
            settings.follow,
        )))
    }

    fn publish(
        &self,
        settings: &FileSettings,
        _: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        let sink = FileSink::new(path(&settings.path)?, settings.format);
        Ok(Some(Arc::new(sink)))
    }
}

impl SinkKind for FileKind {
    type Settings = FileSinkSettings;

    fn sink(&self, settings: &FileSinkSettings, _: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid> {
        let sink = FileSink::new(path(&settings.path)?, Format::Envelopes);
        Ok(Arc::new(sink))
    }
}
