//! Columns into values, whatever somebody else's `INSERT` put into them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millstream_core::Headers;
use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::headers;

/// A column's bytes; a number becomes its digits.
pub(crate) fn bytes(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Bytes>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Some(Bytes::copy_from_slice(bytes)),
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
    })
}

/// A column's whole number; zero where it holds none.
pub(crate) fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => number,
        _ => 0,
    })
}

/// A priority as messages have it.
pub(crate) fn priority(stored: i64) -> i32 {
    i32::try_from(stored).unwrap_or(if stored < 0 { i32::MIN } else { i32::MAX })
}

/// A column's count.
pub(crate) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u32> {
    Ok(u32::try_from(integer(row, column)?.max(0)).unwrap_or(u32::MAX))
}

/// A column's text.
pub(crate) fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(bytes(row, column)?
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default())
}

/// A column's headers.
pub(crate) fn headers(row: &Row<'_>, column: usize) -> rusqlite::Result<Headers> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(text) | ValueRef::Blob(text) => headers::decode(text),
        _ => Headers::new(),
    })
}

/// A column's time.
pub(crate) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<SystemTime> {
    let since = u64::try_from(integer(row, column)?).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(since))
        .unwrap_or(SystemTime::UNIX_EPOCH))
}

/// A row's number as messages carry it.
pub(crate) fn position(id: i64) -> u64 {
    id.cast_unsigned()
}

/// The row that a message's number names.
pub(crate) fn id(position: u64) -> i64 {
    position.cast_signed()
}
