//! What went wrong with the broker, and whether trying again can help: [`Trouble`].

use std::fmt;

use lapin::ErrorKind;
use millstream_core::OpenError;

/// A failure in words for a person, without any password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Somebody has to change something, here or at the broker.
    pub(crate) lasting: bool,
    /// What happened and, where it is known, what to do.
    pub(crate) text: String,
}

/// AMQP reply codes that decide what a failure means.
pub(crate) mod code {
    pub(crate) const ACCESS_REFUSED: u16 = 403;
    pub(crate) const NOT_FOUND: u16 = 404;
    pub(crate) const RESOURCE_LOCKED: u16 = 405;
    pub(crate) const PRECONDITION_FAILED: u16 = 406;
    pub(crate) const NOT_ALLOWED: u16 = 530;
    pub(crate) const NOT_IMPLEMENTED: u16 = 540;
}

impl Trouble {
    /// Trying again may help.
    pub(crate) fn passing(text: impl Into<String>) -> Self {
        Self {
            lasting: false,
            text: text.into(),
        }
    }

    /// Trying again does not help by itself.
    pub(crate) fn lasting(text: impl Into<String>) -> Self {
        Self {
            lasting: true,
            text: text.into(),
        }
    }

    /// For [`Connector::open`](millstream_core::Connector::open). Only what has never worked is refused for good:
    /// a queue that is deleted or a password that is changed under a running pipeline degrades it, and it goes on
    /// when they are back.
    pub(crate) fn open_error(self, worked_before: bool) -> OpenError {
        if self.lasting && !worked_before {
            OpenError::Refused(self.text)
        } else {
            OpenError::Unavailable(self.text)
        }
    }
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Refused(text) => Self::lasting(text),
            OpenError::Unavailable(text) => Self::passing(text),
        }
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        Self::passing(describe(&error))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The broker's reply code and text, if this is the broker's answer.
pub(crate) fn reply(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

/// Whether it says that there is no such queue or exchange. One whose node is down is not gone.
pub(crate) fn is_missing(error: &lapin::Error) -> bool {
    reply(error).is_some_and(|(reply, text)| {
        reply == code::NOT_FOUND && !text.contains("down") && !text.contains("inaccessible")
    })
}

/// The error in words.
pub(crate) fn describe(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => format!("the broker says: {}", error.get_message()),
        ErrorKind::IOError(error) => error.to_string(),
        ErrorKind::MissingHeartbeatError => "the broker has not been heard of for too long".to_owned(),
        ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..) => {
            "the connection is closed".to_owned()
        }
        _ => error.to_string(),
    }
}
