//! Any text as a configuration: all errors at once or a configuration, and never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// The registry that the crate's own tests have.
#[path = "../../crates/millstream-config/tests/config/support.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod support;

fuzz_target!(|text: &str| {
    if let Err(errors) = support::parse(text) {
        assert!(!errors.to_string().is_empty(), "a refusal says why");
    }
});
