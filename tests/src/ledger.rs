//! What happened, in the order in which it happened: a pipe from all processes of a test to the test.
//!
//! A record is twenty bytes and one `write`, which a pipe takes whole or not at all, and what is in the pipe
//! survives its writer. All writers share one pipe, so the order in which records are read is an order in which
//! they were written: no clock is asked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What.
    pub event: Event,
    /// The process that it happened in, or to: a number that no other process of the test has.
    pub actor: u32,
    /// The message's number, or for an end of a process what is said there.
    pub number: u32,
    /// How often the message had been delivered, this time included; of a letter its reason, by its place in
    /// `Reason::ALL`.
    pub deliveries: u32,
    /// Which attempt it was, where the handler goes by that; of a letter how many have failed.
    pub attempt: u32,
}

impl Record {
    /// This happened to the process, or the message, of this number.
    #[must_use]
    pub const fn of(event: Event, actor: u32, number: u32) -> Self {
        Self {
            event,
            actor,
            number,
            deliveries: 0,
            attempt: 0,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A handler began with a message.
    Begin,
    /// A handler ended with a message.
    End,
    /// A handler's run was cancelled.
    Cancelled,
    /// The process is about to be killed; `number` is how many messages it had unsettled, if that was measured.
    Killing,
    /// The process has ended.
    Dead,
    /// The process is about to lose what it has, and to live on; `number` as for [`Killing`](Self::Killing).
    Breaking,
    /// What was broken works again.
    Mended,
    /// Somebody has looked from outside; `number` says which look it was.
    Looked,
    /// The process stands still, for longer than its leases last.
    Frozen,
    /// A handler failed with a message so that it is given up.
    GivenUp,
    /// A handler failed because what it needs was away.
    Down,
    /// A message was found among the dead letters.
    Letter,
}

/// What `actor` of an [`Event::Breaking`] or an [`Event::Mended`] is where it is every process's: their broker is gone.
pub const EVERY: u32 = u32::MAX;

/// What `number` of an [`Event::Killing`] or an [`Event::Breaking`] is where nothing was counted.
pub const NOT_MEASURED: u32 = u32::MAX;

const SIZE: usize = 20;

/// Writes records; of any number of processes.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// A writer for the parent, and the reading end.
    ///
    /// # Errors
    /// If there can be no pipe.
    pub fn new() -> io::Result<(Self, Reader)> {
        let (reader, writer) = io::pipe()?;
        let reader = Reader {
            pipe: File::from(OwnedFd::from(reader)),
            buffer: Vec::new(),
            next: 0,
        };
        Ok((Self(File::from(OwnedFd::from(writer))), reader))
    }

    /// The writer in a process that was given the pipe as its standard output.
    ///
    /// # Errors
    /// If there is no standard output.
    pub fn inherited() -> io::Result<Self> {
        use std::os::fd::AsFd;
        Ok(Self(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// The same pipe once more.
    ///
    /// # Errors
    /// If there are too many open files.
    pub fn another(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The pipe, for a child's standard output.
    #[must_use]
    pub fn into_file(self) -> File {
        self.0
    }

    /// Writes a record. Waits while the pipe is full.
    ///
    /// # Panics
    /// If nobody reads any more: the test has ended, and so shall this process.
    pub fn write(&self, record: Record) {
        let Record {
            event,
            actor,
            number,
            deliveries,
            attempt,
        } = record;
        let mut bytes = [0; SIZE];
        let words = [event as u32, actor, number, deliveries, attempt];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let written = (&self.0).write(&bytes).expect("the test reads its ledger");
        assert_eq!(written, SIZE, "a pipe takes a small write whole");
    }
}

/// Reads records.
#[derive(Debug)]
pub struct Reader {
    pipe: File,
    buffer: Vec<u8>,
    next: usize,
}

impl Reader {
    /// Reads in a thread of its own, so that whoever takes the records may wait no longer than it wants to. The
    /// thread ends with the last writer.
    #[must_use]
    pub fn in_background(self) -> (Receiver<Record>, JoinHandle<()>) {
        let (send, records) = channel();
        let thread = std::thread::spawn(move || {
            for record in self {
                if send.send(record).is_err() {
                    return;
                }
            }
        });
        (records, thread)
    }
}

impl Iterator for Reader {
    type Item = Record;

    /// Waits for the next record; `None` once every writer is gone.
    fn next(&mut self) -> Option<Record> {
        while self.buffer.len() < self.next + SIZE {
            self.buffer.drain(..self.next);
            self.next = 0;
            let mut more = [0; 4096];
            let read = self.pipe.read(&mut more).expect("a pipe can be read");
            if read == 0 {
                assert!(self.buffer.is_empty(), "a record was torn");
                return None;
            }
            self.buffer.extend_from_slice(more.get(..read)?);
        }
        let mut words = self
            .buffer
            .get(self.next..self.next + SIZE)?
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
        self.next += SIZE;
        let event = match words.next()? {
            0 => Event::Begin,
            1 => Event::End,
            2 => Event::Cancelled,
            3 => Event::Killing,
            4 => Event::Dead,
            5 => Event::Breaking,
            6 => Event::Mended,
            7 => Event::Looked,
            8 => Event::Frozen,
            9 => Event::GivenUp,
            10 => Event::Down,
            11 => Event::Letter,
            other => panic!("no record begins with {other}: something else was written to the ledger"),
        };
        Some(Record {
            event,
            actor: words.next()?,
            number: words.next()?,
            deliveries: words.next()?,
            attempt: words.next()?,
        })
    }
}
