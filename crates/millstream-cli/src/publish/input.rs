//! Lines to messages: [`Input`].

use std::io::{BufRead, BufReader, Read};

use anyhow::anyhow;
use bytes::Bytes;
use millstream_core::{Headers, Outgoing};

use crate::envelope::Envelope;

/// How much is read at a time.
const BUFFER: usize = 256 << 10;
/// How many messages a chunk has at most …
const MESSAGES: usize = 1_000;
/// … and above how many bytes it takes no more.
const BYTES: usize = 1 << 20;

/// What a line becomes.
#[derive(Clone, Debug, Default)]
pub(super) struct Pattern {
    /// The key of messages that bring none.
    pub(super) key: Option<Bytes>,
    /// Headers that every message gets after its own.
    pub(super) headers: Headers,
    /// A line is an envelope, and not a payload.
    pub(super) envelopes: bool,
}

/// Some messages with the numbers of their lines.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) messages: Vec<(u64, Outgoing)>,
    /// Bytes of input that it comes from.
    pub(super) bytes: u64,
    /// Why nothing comes after it.
    pub(super) end: Option<anyhow::Error>,
}

/// Reads lines, as many at a time as are there.
#[derive(Debug)]
pub(super) struct Input<R> {
    lines: BufReader<R>,
    pattern: Pattern,
    line: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(input: R, pattern: Pattern) -> Self {
        Self {
            lines: BufReader::with_capacity(BUFFER, input),
            pattern,
            line: 0,
        }
    }

    /// The next chunk; `None` at the end. It waits for one line, and for more only where they are there.
    pub(super) fn next(&mut self) -> Option<Chunk> {
        let mut chunk = Chunk::default();
        let mut size = 0;
        while chunk.messages.len() < MESSAGES && size < BYTES {
            if chunk.bytes > 0 && !self.lines.buffer().contains(&b'\n') {
                break;
            }
            let mut line = Vec::new();
            match self.lines.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(read) => chunk.bytes += read as u64,
                Err(error) => {
                    chunk.end = Some(anyhow!(error).context("standard input cannot be read"));
                    break;
                }
            }
            self.line += 1;
            match self.message(line) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    size += message.size();
                    chunk.messages.push((self.line, message));
                }
                Err(error) => {
                    chunk.end = Some(error.context(format!("line {} is no envelope", self.line)));
                    break;
                }
            }
        }
        (chunk.bytes > 0 || chunk.end.is_some()).then_some(chunk)
    }

    /// A line's message; `None` for an empty line where envelopes stand.
    fn message(&self, mut line: Vec<u8>) -> anyhow::Result<Option<Outgoing>> {
        if line.pop_if(|last| *last == b'\n').is_some() {
            line.pop_if(|last| *last == b'\r');
        }
        let Pattern {
            key,
            headers,
            envelopes,
        } = &self.pattern;
        let mut message = if !envelopes {
            Outgoing::new(line)
        } else if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        } else {
            Outgoing::from(Envelope::parse(&line)?)
        };
        if message.key.is_none() {
            message.key.clone_from(key);
        }
        for (name, value) in headers.iter() {
            message.headers.push(name, value);
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives these, one a read.
    struct Pieces(Vec<&'static str>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0).as_bytes();
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn chunks(pieces: Vec<&'static str>) -> Vec<Vec<String>> {
        let mut input = Input::new(Pieces(pieces), Pattern::default());
        std::iter::from_fn(|| input.next())
            .map(|chunk| {
                let texts = chunk.messages.into_iter();
                texts
                    .map(|(_, message)| String::from_utf8(message.payload.to_vec()).unwrap())
                    .collect()
            })
            .collect()
    }

    #[test]
    fn a_slow_writer_is_not_waited_for() {
        assert_eq!(
            chunks(vec!["a\nb\nc", "c\r\nd\n", "\n", "e"]),
            [vec!["a", "b"], vec!["cc", "d"], vec![""], vec!["e"]]
        );
    }

    #[test]
    fn a_chunk_has_its_bounds() {
        let lines = "x\n".repeat(MESSAGES + 1);
        let mut input = Input::new(lines.as_bytes(), Pattern::default());
        assert_eq!(input.next().map(|chunk| chunk.messages.len()), Some(MESSAGES));
        let chunk = input.next().unwrap();
        assert_eq!(
            chunk.messages.first().map(|(line, _)| *line),
            Some(MESSAGES as u64 + 1)
        );
        assert!(input.next().is_none());
    }

    #[test]
    fn what_came_before_a_broken_envelope_is_still_published() {
        let lines = "{\"payload\": \"a\", \"key\": \"own\"}\n\n{\"payload\": \"b\"}\nhunter2\n";
        let pattern = Pattern {
            key: Some(Bytes::from_static(b"k")),
            headers: [("tenant", "acme")].into_iter().collect(),
            envelopes: true,
        };
        let chunk = Input::new(lines.as_bytes(), pattern).next().unwrap();
        let tenant = |message: Outgoing| message.with_header("tenant", "acme");
        assert_eq!(
            chunk.messages,
            [
                (1, tenant(Outgoing::new("a").with_key("own"))),
                (3, tenant(Outgoing::new("b").with_key("k"))),
            ]
        );
        assert_eq!(
            format!("{:#}", chunk.end.unwrap()),
            "line 4 is no envelope: expected value at line 1 column 1"
        );
    }
}
