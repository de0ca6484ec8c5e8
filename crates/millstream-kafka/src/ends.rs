//! Processes that end uncleanly with messages of a partition, counted where Kafka counts no deliveries: [`Ends`], and what
//! is kept of it beside the committed offset, [`Note`].
//!
//! # How
//!
//! Before a member hands out the first message of an assignment it has the group note that it does, and when it gives the
//! partition up in good order it takes that back. Whoever finds such a note is the successor of a member that died, or was
//! taken for dead, and counts. That says nothing of single messages, so what may be at fault is narrowed down:
//!
//! - After one such end no more is handed out than the first [`SPAN`] offsets there were, until all of them are settled.
//! - After three in a row without that, those are suspects. Each is handed out when nothing else is, and the group notes
//!   which, and for which time, before it is. From then on only the count of the one that ran grows.
//!
//! So a message is given up unrun for having ended its process only if it was handed out alone each time beyond the
//! fourth. One that was merely near is at worst handed out alone.

/// How many offsets may be at fault after a first unclean end.
pub(crate) const SPAN: u64 = 1_000;

/// A message that was handed out so often is a suspect.
const SUSPECT: u32 = 4;

/// What the group keeps of unclean ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// How often what is before `until` has been handed out in vain, should whoever has the partition end uncleanly.
    pub(crate) ends: u32,
    /// What may be at fault is before it; none where that is not known.
    pub(crate) until: Option<u64>,
    /// The suspect that was handed out alone last, and how often it was handed out.
    pub(crate) alone: Option<(u64, u32)>,
}

/// The unclean ends of one partition, as one assignment of it sees them.
#[derive(Debug)]
pub(crate) struct Ends {
    note: Note,
    /// The unclean ends before this assignment.
    before: u32,
    /// The suspect in the note was handed out by an earlier assignment, which has ended with it.
    inherited: bool,
    /// Of the note that is to be kept, and of the one that is.
    version: u64,
    noted: u64,
}

impl Ends {
    /// Of an assignment that begins at `mark`, where the group has kept this. The log ended at `end` then, as far as is
    /// known.
    pub(crate) fn new(found: Note, mark: Option<u64>, end: Option<u64>) -> Self {
        let mark = mark.unwrap_or(0);
        let until = found.until.unwrap_or(mark.saturating_add(SPAN));
        let until = end.map_or(until, |end| until.min(end));
        let mut ends = Self {
            note: Note::default(),
            before: 0,
            inherited: found.alone.is_some(),
            version: 1,
            noted: 0,
        };
        if found.ends == 0 || until <= mark {
            // It ended well, or with nothing in its hands.
            ends.note.ends = 1;
            return ends;
        }
        ends.before = found.ends;
        ends.note = Note {
            ends: (found.ends + 1).min(SUSPECT),
            until: Some(until),
            alone: found.alone,
        };
        ends
    }

    /// What the group is to keep while the partition is held.
    pub(crate) fn note(&self) -> Note {
        self.note
    }

    /// What it is to keep once the partition was given up in good order.
    pub(crate) fn last_note(&self) -> Note {
        Note {
            ends: self.before,
            until: self.note.until.filter(|_| self.before > 0),
            // It has not ended this process.
            alone: match self.note.alone {
                Some((offset, times)) if !self.inherited && times > SUSPECT => Some((offset, times - 1)),
                Some(_) if !self.inherited => None,
                inherited => inherited,
            },
        }
    }

    /// Names the note, to tell later that it was kept.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The group has kept the note of this name.
    pub(crate) fn kept(&mut self, version: u64) {
        self.noted = self.noted.max(version);
    }

    /// Whether the group has kept the note. Nothing is handed out before.
    pub(crate) fn is_noted(&self) -> bool {
        self.noted == self.version
    }

    /// Whether messages are handed out one by one, each while nothing else is.
    pub(crate) fn suspects(&self) -> bool {
        self.note.ends >= SUSPECT
    }

    /// Whether it may be handed out together with others.
    pub(crate) fn allows(&self, offset: u64) -> bool {
        self.is_noted() && !self.suspects() && self.note.until.is_none_or(|until| offset < until)
    }

    /// Whether anything may be handed out together with others.
    pub(crate) fn allows_all(&self) -> bool {
        self.is_noted() && self.note.until.is_none()
    }

    /// How often a message was handed out, this time included; of a suspect, how often as one among many.
    pub(crate) fn deliveries(&self, offset: u64) -> u32 {
        if self.note.until.is_some_and(|until| offset < until) {
            self.note.ends
        } else {
            1
        }
    }

    /// Everything before this is settled: when that is all that may be at fault, nothing is.
    pub(crate) fn settled_before(&mut self, mark: u64) {
        if self.note.until.is_some_and(|until| mark >= until) {
            self.note = Note {
                ends: 1,
                ..Note::default()
            };
            self.before = 0;
            self.version += 1;
        }
    }

    /// The log was cut, and goes on at this offset: what was there ended nobody's process.
    pub(crate) fn cut(&mut self, offset: u64) {
        let until = self.note.until.map(|until| until.min(offset));
        let alone = self.note.alone.filter(|(alone, _)| *alone < offset);
        if (until, alone) != (self.note.until, self.note.alone) {
            self.inherited &= alone.is_some();
            self.note = Note {
                until,
                alone,
                ..self.note
            };
            self.version += 1;
        }
    }

    /// The suspect at this offset is next; how often it will have been handed out then.
    pub(crate) fn next(&mut self, offset: u64) -> u32 {
        let times = match self.note.alone {
            Some((last, times)) if last == offset => times + u32::from(self.inherited),
            _ => SUSPECT,
        };
        self.inherited = false;
        if self.note.alone != Some((offset, times)) {
            self.note.alone = Some((offset, times));
            self.version += 1;
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another assignment, after one that ended uncleanly with this note.
    fn after(ends: &Ends) -> Ends {
        let mut next = Ends::new(ends.note(), Some(100), Some(5_000));
        next.kept(next.version());
        next
    }

    fn first() -> Ends {
        let mut ends = Ends::new(Note::default(), Some(100), Some(5_000));
        assert!(!ends.allows(100), "the group does not know of it yet");
        ends.kept(ends.version());
        ends
    }

    #[test]
    fn only_what_ran_alone_is_counted_on() {
        let ends = first();
        assert!(ends.allows_all());
        assert_eq!(ends.deliveries(100), 1);
        let ends = after(&ends);
        assert!(ends.allows(1_099) && !ends.allows(1_100));
        assert_eq!((ends.deliveries(100), ends.deliveries(1_100)), (2, 1));
        let ends = after(&after(&ends));
        assert!(ends.suspects() && !ends.allows(100));
        // Ends while nothing was handed out count for nobody.
        let mut ends = after(&after(&after(&ends)));
        assert_eq!(ends.next(100), 4);
        assert!(!ends.is_noted());
        assert_eq!(ends.next(101), 4);
        let mut ends = after(&ends);
        assert_eq!(ends.next(101), 5, "it was handed out, and the process ended");
        let mut ends = after(&ends);
        assert_eq!(ends.next(100), 4, "it was not");
    }

    #[test]
    fn an_end_in_good_order_counts_for_nothing() {
        let one = after(&first());
        assert_eq!(one.last_note().ends, 1);
        assert_eq!(first().last_note(), Note::default());
        let mut ends = after(&after(&one));
        assert_eq!(ends.next(100), 4);
        assert_eq!(ends.next(100), 4, "it was released");
        assert_eq!(ends.last_note().alone, None);
        let mut ends = after(&ends);
        assert_eq!(ends.next(100), 5);
        assert_eq!(ends.last_note().alone, Some((100, 4)));
    }

    #[test]
    fn nothing_is_at_fault_once_all_of_it_is_settled() {
        let mut ends = after(&after(&after(&first())));
        ends.settled_before(1_099);
        assert!(ends.suspects());
        ends.settled_before(1_100);
        assert!(!ends.suspects() && !ends.is_noted());
        assert_eq!(ends.last_note(), Note::default());
        ends.kept(ends.version());
        assert!(ends.allows_all());
    }

    #[test]
    fn what_comes_where_the_log_was_cut_was_never_at_fault() {
        let mut ends = after(&first());
        ends.cut(2_000);
        assert!(ends.is_noted(), "it says nothing of that");
        ends.cut(600);
        assert!(!ends.is_noted());
        assert_eq!((ends.deliveries(599), ends.deliveries(600)), (2, 1));
        ends.cut(100);
        ends.settled_before(100);
        assert_eq!(ends.last_note(), Note::default());
    }

    #[test]
    fn who_ends_with_nothing_in_its_hands_is_nobodys_victim() {
        let idle = Ends::new(
            Note {
                ends: 3,
                ..Note::default()
            },
            Some(100),
            Some(100),
        );
        assert_eq!(idle.note().ends, 1);
        assert_eq!(idle.note().until, None);
    }
}
