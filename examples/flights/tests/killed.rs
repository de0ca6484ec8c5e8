//! P1: killed and run again, the example counts every departure exactly once.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod runs;

use millstream_brokers::{RabbitMq, Series};

use crate::runs::{DEPARTURES, Runs, scaled};

/// Killed so often, it counts all departures once.
fn ends_with_the_table(runs: &Runs, kills: usize) {
    runs.kill_again_and_again(kills);
    let table = runs.finish();
    assert!(
        table.contains("\n328521 done, 8255 dead-lettered, of 336776 departures"),
        "{table}"
    );
    assert!(table.contains("JetBlue Airways"), "{table}");
}

#[test]
fn killed_five_times_it_ends_with_the_same_table() {
    ends_with_the_table(&Runs::new("flights", [], DEPARTURES), 5);
}

#[test]
fn so_it_does_on_rabbitmq() {
    let broker = RabbitMq::builder(Series::V3)
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let environment = [("RABBITMQ_URL", broker.url())];
    ends_with_the_table(&Runs::new("rabbitmq", environment, DEPARTURES), scaled(2, 5));
}
