use millstream_core::simulation::{Mutant, plant};
use millstream_testkit::simulation::{Report, Simulation};

/// Seeds within which each bug has to be found.
const WITHIN: u64 = 2_000;

fn hunt(prepare: impl Fn() + Send + Sync + 'static) -> Report {
    Simulation::scripted().seeds(0..WITHIN).prepare(prepare).explore()
}

/// What guards the promises is guarded by this: each bug that is planted is found.
#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    let mut row = |name: &str, report: Report| match report.broken {
        Some(broken) => println!(
            "| {name} | {} | {} | {} |",
            broken.violation.promise,
            broken.seed + 1,
            broken.violation.what.chars().take(150).collect::<String>()
        ),
        None => missed.push(name.to_owned()),
    };
    println!("| bug | found as a breach of | seeds | as |\n| --- | --- | --- | --- |");
    for mutant in Mutant::ALL {
        row(&format!("{mutant:?}"), hunt(move || plant(Some(mutant))));
    }
    row("CommitPastGap", hunt(|| Simulation::commit_past_gaps(true)));
    assert!(missed.is_empty(), "not found within {WITHIN} seeds: {missed:?}");
}
