//! Unclean ends, and what is settled beyond the committed offset, as the text that Kafka keeps beside the offset:
//! [`encode`], [`decode`].
//!
//! Kafka takes 4096 bytes of it. The note on unclean ends comes first; then lengths of runs, unsettled and settled in turn.
//! All are variable-length integers in Base64; what does not fit is left out from its end, and would be repeated after a
//! crash.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::ends::Note;

/// What a broker takes, unless it is told otherwise.
pub(crate) const LIMIT: usize = 4096;

/// Says that the text is ours, and of this form.
const FORM: &str = "millstream2:";

/// How many bytes of numbers fit into a text of so many.
const fn room(limit: usize) -> usize {
    (limit - FORM.len()) / 4 * 3
}

/// How many of them run lengths may take, whatever the note.
pub(crate) const TOLD: usize = room(LIMIT) - NOTE;

/// The longest note: two numbers of 32 bits and two of 64, seven bits to a byte.
const NOTE: usize = 2 * 5 + 2 * 10;

/// How many bytes a run of so many offsets takes at most, wherever it is cut in two.
pub(crate) fn cost(run: u64) -> usize {
    let bits = 64 - run.saturating_mul(2).leading_zeros();
    bits.div_ceil(7) as usize
}

/// The text for this note and these ranges, which ascend and begin at or after the offset; empty if there is nothing to
/// say.
pub(crate) fn encode(offset: u64, note: &Note, ranges: &[Range<u64>]) -> String {
    encode_within(LIMIT, offset, note, ranges)
}

/// As [`encode`], where a text may have so many bytes, which are enough for any note.
pub(crate) fn encode_within(limit: usize, offset: u64, note: &Note, ranges: &[Range<u64>]) -> String {
    if ranges.is_empty() && *note == Note::default() {
        return String::new();
    }
    let mut bytes = Vec::new();
    push(&mut bytes, u64::from(note.ends));
    push(
        &mut bytes,
        note.until.map_or(0, |until| until.saturating_sub(offset) + 1),
    );
    // What is before the offset is settled.
    match note.alone.filter(|(alone, _)| *alone >= offset) {
        Some((alone, times)) => {
            push(&mut bytes, alone - offset + 1);
            push(&mut bytes, u64::from(times));
        }
        None => push(&mut bytes, 0),
    }
    let mut at = offset;
    for range in ranges {
        let before = bytes.len();
        push(&mut bytes, range.start.saturating_sub(at));
        push(&mut bytes, range.end.saturating_sub(range.start));
        if bytes.len() > room(limit) {
            bytes.truncate(before);
            break;
        }
        at = range.end;
    }
    let mut text = FORM.to_owned();
    STANDARD_NO_PAD.encode_string(bytes, &mut text);
    text
}

/// What a text says; nothing if it is not ours, or broken.
pub(crate) fn decode(offset: u64, text: &str) -> (Note, Vec<Range<u64>>) {
    let bytes = text
        .strip_prefix(FORM)
        .and_then(|text| STANDARD_NO_PAD.decode(text).ok())
        .unwrap_or_default();
    let mut bytes = bytes.iter();
    let Some(note) = pull_note(offset, &mut bytes) else {
        return (Note::default(), Vec::new());
    };
    let mut ranges = Vec::new();
    let mut at = offset;
    while let (Some(unsettled), Some(settled)) = (pull(&mut bytes), pull(&mut bytes)) {
        let range = at
            .checked_add(unsettled)
            .and_then(|start| Some(start..start.checked_add(settled)?));
        let Some(range) = range else {
            return (note, Vec::new());
        };
        at = range.end;
        ranges.push(range);
    }
    (note, ranges)
}

/// The note alone of a text, for brokers that take less.
pub(crate) fn shorten(offset: u64, text: &str) -> String {
    encode(offset, &decode(offset, text).0, &[])
}

fn pull_note<'a>(offset: u64, bytes: &mut impl Iterator<Item = &'a u8>) -> Option<Note> {
    let ends = u32::try_from(pull(bytes)?).ok()?;
    let distance = |bytes: &mut _| match pull(bytes)? {
        0 => Some(None),
        distance => Some(Some(offset.checked_add(distance - 1)?)),
    };
    let until = distance(bytes)?;
    let alone = match distance(bytes)? {
        Some(alone) => Some((alone, u32::try_from(pull(bytes)?).ok()?)),
        None => None,
    };
    Some(Note { ends, until, alone })
}

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn pull<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = u64::from(*bytes.next()?);
        number |= (byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(offset: u64) -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((1_u64..1_000, 1_u64..100_000), 0..3_000).prop_map(move |runs| {
            let mut at = offset;
            let range = |(unsettled, settled)| {
                let range = at + unsettled..at + unsettled + settled;
                at = range.end;
                range
            };
            runs.into_iter().map(range).collect()
        })
    }

    proptest! {
        #[test]
        fn what_fits_is_read_back(ranges in ranges(1 << 40), ends in 0_u32..9, until: Option<u16>, alone: Option<(u16, u8)>) {
            let note = Note {
                ends,
                until: until.map(|until| (1 << 40) + u64::from(until)),
                alone: alone.map(|(alone, times)| ((1 << 40) + u64::from(alone), u32::from(times))),
            };
            let text = encode(1 << 40, &note, &ranges);
            prop_assert!(text.len() <= LIMIT);
            let (found, read) = decode(1 << 40, &text);
            prop_assert_eq!(found, note);
            prop_assert_eq!(&ranges[..read.len()], &read[..]);
            prop_assert!(read.len() == ranges.len() || text.len() > LIMIT - 20);
        }

        #[test]
        fn any_text_is_taken(offset: u64, text in "(millstream2:)?[A-Za-z0-9+/]{0,40}") {
            let (_, read) = decode(offset, &text);
            prop_assert!(read.iter().all(|range| range.start >= offset && range.end >= range.start));
        }
    }
}
