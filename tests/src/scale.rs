//! How much a test does: [`Scale`], from the table in `scales.tsv`.

use std::str::FromStr;

/// The one table of all scales.
const TABLE: &str = include_str!("../scales.tsv");

/// What one test is to do, and the seed of all that is left to chance in it.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    test: &'static str,
    full: bool,
    seed: u64,
}

impl Scale {
    /// The scale that `MILLSTREAM_SCALE` names, `small` or `full`, and the seed in `MILLSTREAM_SEED`, or a random
    /// one.
    ///
    /// # Panics
    /// If either variable holds anything else: a run at another scale than was asked for would prove nothing.
    #[must_use]
    pub fn of(test: &'static str) -> Self {
        let full = match std::env::var("MILLSTREAM_SCALE").as_deref() {
            Err(_) | Ok("small") => false,
            Ok("full") => true,
            Ok(other) => panic!("MILLSTREAM_SCALE is `{other}`, not `small` or `full`"),
        };
        let seed = match std::env::var("MILLSTREAM_SEED") {
            Err(_) => fastrand::u64(..),
            Ok(seed) => seed
                .parse()
                .unwrap_or_else(|_| panic!("MILLSTREAM_SEED is `{seed}`, not a number")),
        };
        Self { test, full, seed }
    }

    /// The test's name.
    #[must_use]
    pub fn test(&self) -> &'static str {
        self.test
    }

    /// `small` or `full`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.full { "full" } else { "small" }
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What the table has under this word for the test.
    ///
    /// # Panics
    /// If it has nothing.
    #[must_use]
    pub fn get<T: FromStr>(&self, what: &str) -> T {
        TABLE
            .lines()
            .map(|line| line.split('\t').collect::<Vec<_>>())
            .find_map(|columns| match columns[..] {
                [test, word, small, full] if test == self.test && word == what => {
                    Some(if self.full { full } else { small })
                }
                _ => None,
            })
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("scales.tsv has no number `{what}` for `{}`", self.test))
    }
}
