//! The command line's `run`, with a flow of the test's for the pipeline `work`.

use std::process::ExitCode;

use millstream_core::{Flow, SharedFlow};
use millstream_tests::QUEUE;

use super::fates::{Fated, FatedBatch, Letters};
use super::handler::Handler;
use crate::{Arguments, ends_with_the_test};

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    ends_with_the_test();
    let flow: SharedFlow = match arguments.get::<String>("conduct").as_str() {
        "fates" => Flow::process(Fated::new(arguments))
            .batch("keep", FatedBatch::new(arguments))
            .into(),
        "letters" => Flow::process(Letters::new(arguments)).into(),
        _ => Flow::process(Handler::new(arguments)).into(),
    };
    let mut registry = millstream_cli::stock();
    registry.flow(QUEUE, flow);
    millstream_cli::main(registry)
}
