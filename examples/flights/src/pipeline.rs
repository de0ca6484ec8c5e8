//! What is done with a departure: its delay, and the figures of its carrier.

use millstream::prelude::*;

use crate::departures::Departure;
use crate::figures::{Delayed, Figures};

/// Computes by how many minutes a departure was late.
#[derive(Debug)]
pub(crate) struct Delay;

impl Processor for Delay {
    type Input = Json<Departure>;
    type Output = Delayed;

    async fn process(
        &self,
        Json(departure): Json<Departure>,
        cx: &mut Context<'_>,
    ) -> Result<Delayed, Failure> {
        cx.batch_key(&departure.carrier);
        Ok(Delayed {
            id: departure.id,
            carrier: departure.carrier,
            minutes: departure
                .dep_time
                .map(|left| minutes_late(departure.sched_dep_time, left)),
        })
    }
}

/// Minutes from one time of day to the other, as in `2359`. More than twelve hours early is late past midnight.
fn minutes_late(scheduled: u32, left: u32) -> i64 {
    let minutes = |time: u32| i64::from(time / 100 * 60 + time % 100);
    let late = minutes(left) - minutes(scheduled);
    if late < -12 * 60 { late + 24 * 60 } else { late }
}

/// Adds a batch of one carrier's departures to its figures. Those that were cancelled are dead letters, and the rest of
/// the batch is none the worse for it.
#[derive(Debug)]
pub(crate) struct Carriers {
    figures: Figures,
}

impl Carriers {
    pub(crate) fn new(figures: Figures) -> Self {
        Self { figures }
    }
}

impl BatchHandler for Carriers {
    type Input = Delayed;

    async fn handle(&self, batch: &mut Batch<Delayed>) -> Result<(), Failure> {
        // SQLite blocks: the other tasks of this thread move elsewhere meanwhile.
        tokio::task::block_in_place(|| self.figures.add(batch.items()))?;
        for index in 0..batch.len() {
            if batch
                .items()
                .get(index)
                .is_some_and(|item| item.minutes.is_none())
            {
                batch.fail(
                    index,
                    Failure::reject("no departure time: the flight was cancelled"),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::minutes_late;

    #[test]
    fn a_departure_past_midnight_is_late_and_not_a_day_early() {
        assert_eq!(minutes_late(2_359, 4), 5);
        assert_eq!(minutes_late(515, 517), 2);
        assert_eq!(minutes_late(600, 554), -6);
    }
}
