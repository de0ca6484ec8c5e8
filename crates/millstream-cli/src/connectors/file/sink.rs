//! Writes messages to a file: [`FileSink`].

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_core::{
    Delivered, Finding, OpenError, Outgoing, SharedLetterBox, Sink, SinkConnector, SinkError,
};

use super::append::Appender;
use super::kind::Format;
use super::letters::FileLetters;
use crate::envelope::Envelope;

/// Appends a line for each message, as a source of the same format reads them.
#[derive(Clone, Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    format: Format,
}

impl FileSink {
    pub(super) fn new(path: PathBuf, format: Format) -> Self {
        Self { path, format }
    }
}

impl SinkConnector for FileSink {
    type Sink = Writing;

    fn letters(&self) -> Option<SharedLetterBox> {
        (self.format == Format::Envelopes)
            .then(|| Arc::new(FileLetters::new(self.path.clone())) as SharedLetterBox)
    }

    async fn open(&self) -> Result<Writing, OpenError> {
        let appender = Appender::open(&self.path).map_err(|error| {
            let text = format!("cannot write {}: {error}", self.path.display());
            match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory => OpenError::Refused(text),
                _ => OpenError::Unavailable(text),
            }
        })?;
        Ok(Writing {
            name: self.path.display().to_string(),
            format: self.format,
            appender: Some(appender),
        })
    }

    async fn check(&self) -> Vec<Finding> {
        let error = match OpenOptions::new().append(true).open(&self.path) {
            Ok(_) => return Vec::new(),
            Err(error) if error.kind() == io::ErrorKind::NotFound && has_folder(&self.path) => {
                return Vec::new();
            }
            Err(error) => error,
        };
        let finding = Finding::error(
            format!("cannot write {}: {error}", self.path.display()),
            "name a file that can be written, in a folder that is there",
        );
        vec![finding.at("path")]
    }
}

/// Whether the folder is there that a file is to be in.
pub(super) fn has_folder(path: &Path) -> bool {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.is_dir(),
        _ => true,
    }
}

/// An open [`FileSink`].
#[derive(Debug)]
pub(super) struct Writing {
    name: String,
    format: Format,
    /// Away while it writes.
    appender: Option<Appender>,
}

impl Sink for Writing {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let mut lines = Vec::new();
        let mut delivered = Vec::with_capacity(messages.len());
        for message in messages {
            delivered.push(write(message, self.format, &mut lines));
        }
        if lines.is_empty() {
            results.append(&mut delivered);
            return Ok(());
        }
        let Some(mut appender) = self.appender.take() else {
            return Err(SinkError(format!("writing {} has failed before", self.name)));
        };
        let written = tokio::task::spawn_blocking(move || appender.append(&lines).map(|()| appender)).await;
        let fail = |error: &dyn std::fmt::Display| SinkError(format!("cannot write {}: {error}", self.name));
        match written {
            Ok(Ok(appender)) => self.appender = Some(appender),
            Ok(Err(error)) => return Err(fail(&error)),
            Err(error) => return Err(fail(&error)),
        }
        results.append(&mut delivered);
        Ok(())
    }
}

/// Adds the message's line; one that would not be read as it was written is refused.
fn write(message: &Outgoing, format: Format, lines: &mut Vec<u8>) -> Delivered {
    if format == Format::Envelopes {
        Envelope::from(message).write(lines);
        return Delivered::Confirmed;
    }
    if message.payload.contains(&b'\n') || message.payload.ends_with(b"\r") {
        return Delivered::Refused(
            "a payload with a line end is no line: use `format = \"envelopes\"`".to_owned(),
        );
    }
    if message.key.is_some() || !message.headers.is_empty() {
        return Delivered::Refused(
            "a line has no key and no headers: use `format = \"envelopes\"`".to_owned(),
        );
    }
    lines.extend_from_slice(&message.payload);
    lines.push(b'\n');
    Delivered::Confirmed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_cannot_hold_is_refused_and_not_bent() {
        let mut lines = Vec::new();
        let refused = [
            Outgoing::new("a\nb"),
            Outgoing::new("a\r"),
            Outgoing::new("a").with_key("k"),
            Outgoing::new("a").with_header("n", "v"),
        ];
        for message in &refused {
            assert!(matches!(
                write(message, Format::Lines, &mut lines),
                Delivered::Refused(_)
            ));
        }
        assert!(lines.is_empty());
        assert_eq!(
            write(&Outgoing::new("a\rb"), Format::Lines, &mut lines),
            Delivered::Confirmed
        );
        assert_eq!(lines, b"a\rb\n");
    }
}
