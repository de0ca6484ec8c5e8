use millstream_testkit::simulation::Simulation;

#[test]
fn no_seed_breaks_a_promise() {
    let report = Simulation::scripted().seeds(0..2_000).run();
    println!("{report}");
}
