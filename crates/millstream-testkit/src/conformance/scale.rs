//! How much a run of the suite does: [`Scale`].

/// How many messages, publishers and consumers the cases use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Enough to see each promise kept: seconds in all.
    #[default]
    Small,
    /// The figures of Watermill's and Benthos' own suites.
    Full,
}

impl Scale {
    /// One of two figures.
    pub(crate) const fn pick(self, small: usize, full: usize) -> usize {
        match self {
            Self::Small => small,
            Self::Full => full,
        }
    }
}
