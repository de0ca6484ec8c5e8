//! The stock binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    millstream_cli::main(millstream_cli::stock())
}
