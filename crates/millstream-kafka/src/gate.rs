//! What of one partition may be handed out now: [`Gate`].
//!
//! A message that may not waits here by its offset alone, as the member's memory has it anyway.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_core::rt;

use crate::ends::Ends;
use crate::shared::AHEAD;

/// How much waits before nothing more is read: messages, and bytes.
const MOST: (usize, usize) = (500, 1 << 20);
/// As much as is read ahead at all where it waits no longer than this.
const SOON: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) ends: Ends,
    /// What waits, by offset, with the time that it waits for and its size.
    waits: BTreeMap<u64, (Option<rt::Instant>, usize)>,
    bytes: usize,
    /// Its messages wait for their time.
    delays: bool,
    /// It stands still at this offset.
    halted: Option<u64>,
    /// Nothing is read, on account of what waits here.
    closed: bool,
}

impl Gate {
    pub(crate) fn new(ends: Ends, delays: bool) -> Self {
        Self {
            ends,
            waits: BTreeMap::new(),
            bytes: 0,
            delays,
            halted: None,
            closed: false,
        }
    }

    /// Whether its messages wait for their time.
    pub(crate) fn delays(&self) -> bool {
        self.delays
    }

    /// Whether whatever comes may be handed out at once.
    pub(crate) fn is_open(&self) -> bool {
        self.waits.is_empty() && !self.delays && self.halted.is_none() && self.ends.allows_all()
    }

    pub(crate) fn hold(&mut self, offset: u64, due: Option<rt::Instant>, size: usize) {
        self.bytes += size;
        self.waits.insert(offset, (due, size));
    }

    /// How many wait.
    pub(crate) fn held(&self) -> usize {
        self.waits.len()
    }

    /// How many bytes that is.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, offset: u64) {
        if let Some((_, size)) = self.waits.remove(&offset) {
            self.bytes -= size;
        }
    }

    /// Takes out the first that waits, if it may be handed out with others. Behind one that may not, none may.
    pub(crate) fn let_through(&mut self, now: rt::Instant) -> Option<u64> {
        let (&offset, &(due, _)) = self.waits.first_key_value()?;
        if self.halted.is_some() || !self.ends.allows(offset) || due.is_some_and(|due| due > now) {
            return None;
        }
        self.remove(offset);
        Some(offset)
    }

    /// Whether it has a message whose time has come, and that may be handed out only while nothing else is.
    pub(crate) fn has_suspect(&self, now: rt::Instant) -> bool {
        let first = self.waits.first_key_value();
        self.halted.is_none()
            && self.ends.suspects()
            && first.is_some_and(|(_, (due, _))| due.is_none_or(|due| due <= now))
    }

    /// The first suspect, and how often it will have been handed out, once the group knows that it is next.
    pub(crate) fn suspect(&mut self) -> Option<(u64, u32)> {
        let (&offset, _) = self.waits.first_key_value()?;
        let times = self.ends.next(offset);
        if !self.ends.is_noted() {
            return None;
        }
        self.remove(offset);
        Some((offset, times))
    }

    /// Whether something waits for the group to keep a note.
    pub(crate) fn wants_note(&self) -> bool {
        !self.ends.is_noted() && !self.waits.is_empty() && self.halted.is_none()
    }

    /// From here on it stands still, at the first that was given up.
    pub(crate) fn halt(&mut self, offset: u64) {
        self.halted = Some(self.halted.map_or(offset, |halted| halted.min(offset)));
    }

    /// Where it stands still.
    pub(crate) fn halted(&self) -> Option<u64> {
        self.halted
    }

    /// Whether anything is to be read. Of what will go on soon, as much is as is read ahead at all.
    pub(crate) fn turn(&mut self, now: rt::Instant) -> bool {
        let due = self.waits.first_key_value().and_then(|(_, (due, _))| *due);
        let soon = !self.closed && due.is_some_and(|due| due <= now + SOON);
        let (messages, bytes) = if soon { AHEAD } else { MOST };
        let part = if self.closed { 2 } else { 1 };
        let full = self.waits.len() >= messages / part || self.bytes >= bytes / part;
        self.closed = full || self.halted.is_some();
        !self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ends::Note;

    fn noted(found: Note, delays: bool) -> Gate {
        let mut ends = Ends::new(found, Some(0), Some(5_000));
        ends.kept(ends.version());
        Gate::new(ends, delays)
    }

    fn ends(ends: u32) -> Note {
        Note {
            ends,
            ..Note::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_due_waits_with_all_behind_it() {
        let mut gate = noted(Note::default(), true);
        let now = rt::now();
        gate.hold(1, Some(now + Duration::from_secs(1)), 10);
        gate.hold(2, None, 10);
        assert!(!gate.is_open());
        assert_eq!(gate.let_through(now), None);
        let then = now + Duration::from_secs(1);
        assert_eq!([(); 3].map(|()| gate.let_through(then)), [Some(1), Some(2), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_passes_before_the_group_knows_nor_behind_a_halt() {
        let mut gate = Gate::new(Ends::new(Note::default(), Some(0), None), false);
        gate.hold(1, None, 10);
        assert!(gate.wants_note());
        assert_eq!(gate.let_through(rt::now()), None);
        gate.ends.kept(gate.ends.version());
        gate.halt(9);
        gate.halt(7);
        assert_eq!((gate.let_through(rt::now()), gate.halted()), (None, Some(7)));
        assert!(!gate.turn(rt::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspect_comes_by_name_and_not_before_its_time() {
        let mut gate = noted(ends(3), true);
        let now = rt::now();
        gate.hold(1, Some(now + Duration::from_secs(1)), 10);
        assert!(!gate.has_suspect(now));
        let then = now + Duration::from_secs(1);
        assert!(gate.has_suspect(then));
        assert_eq!(gate.let_through(then), None, "not with others");
        assert_eq!(gate.suspect(), None, "the group does not know which");
        gate.ends.kept(gate.ends.version());
        assert_eq!((gate.suspect(), gate.held()), (Some((1, 4)), 0));
    }

    #[test]
    fn reading_stops_when_much_waits_and_goes_on_once_half_of_it_is_gone() {
        let mut gate = noted(Note::default(), true);
        let (messages, bytes) = MOST;
        for offset in 0..messages as u64 {
            assert!(gate.turn(rt::now()));
            gate.hold(offset, None, 1);
        }
        for offset in 0..messages as u64 / 2 {
            assert!(!gate.turn(rt::now()));
            gate.remove(offset);
        }
        gate.remove(499);
        assert!(gate.turn(rt::now()));
        gate.hold(1_000, None, bytes);
        assert!(!gate.turn(rt::now()));
    }
}
