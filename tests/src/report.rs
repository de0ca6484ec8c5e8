//! What a test did, as one block of lines: [`Report`].

use std::fmt::Display;

use millstream_core::rt::Instant;

use crate::scale::Scale;

/// Collects what a test did, and prints it at once: the output of other tests does not come between.
#[derive(Debug)]
pub struct Report {
    lines: Vec<String>,
    began: Instant,
}

impl Report {
    /// Begins with the test's name, scale and seed, which are printed at once, so that a run that hangs can be
    /// repeated.
    #[must_use]
    pub fn begin(scale: &Scale, case: &str) -> Self {
        let head = format!("{}{case}, {}, seed {}", scale.test(), scale.name(), scale.seed());
        println!("{head}: begins");
        Self {
            lines: vec![head],
            began: Instant::now(),
        }
    }

    /// Adds a count.
    pub fn add(&mut self, what: &str, value: impl Display) {
        self.lines.push(format!("  {what:<52} {value}"));
    }

    /// Prints the block, with the seconds since it was begun.
    pub fn print(mut self) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.add("seconds", format_args!("{seconds:.1}"));
        println!("\n{}\n", self.lines.join("\n"));
    }
}
