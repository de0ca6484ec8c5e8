//! What is kept in order: [`Ordering`].

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::message::Message;

/// What is kept in order (P3).
#[derive(Clone, Default)]
pub enum Ordering {
    /// Nothing.
    #[default]
    None,
    /// Messages with the same [`Message::key`].
    Key,
    /// Messages for which this gives the same bytes; those for which it gives none are unordered.
    By(OrderBy),
    /// Messages from the same place.
    Partition,
}

/// Gives what a message is ordered by.
pub type OrderBy = Arc<dyn Fn(&Message) -> Option<Bytes> + Send + Sync>;

impl Ordering {
    /// Order by the first value of this header.
    pub fn by_header(name: &str) -> Self {
        let name = name.to_owned();
        Self::By(Arc::new(move |message| {
            message
                .headers
                .get(&name)
                .map(|value| Bytes::copy_from_slice(value.as_bytes()))
        }))
    }

    /// Whether anything is kept in order.
    pub fn is_ordered(&self) -> bool {
        !matches!(self, Self::None)
    }
}

impl fmt::Debug for Ordering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Key => "Key",
            Self::By(_) => "By(..)",
            Self::Partition => "Partition",
        })
    }
}
