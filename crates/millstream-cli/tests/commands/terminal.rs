//! What a person at a terminal sees. `script` makes one.

use std::process::{Command, Stdio};

use crate::files::copy;
use crate::support::{Process, Scratch};

/// Runs `millstream` in a terminal, or nothing where none can be made.
fn in_terminal(scratch: &Scratch, arguments: &str) -> Option<Process> {
    let made = Command::new("script")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    made.is_ok_and(|made| made.success()).then(|| {
        let command = format!("{} {arguments}", env!("CARGO_BIN_EXE_millstream"));
        let mut script = Command::new("script");
        script
            .args(["-qec", &command, "/dev/null"])
            .current_dir(scratch.path(""))
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Process::start(&mut script)
    })
}

#[test]
fn a_line_shows_how_each_pipeline_is_and_logs_stand_above_it() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy(""));
    scratch.write("in", "one\ntwo\n");
    let Some(process) = in_terminal(&scratch, "run m.toml --until-idle 1s") else {
        return;
    };
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in [
        "copy",
        "0 in flight",
        "2 done",
        "0 given up",
        "running",
        "idle: draining",
    ] {
        assert!(ended.stdout.contains(part), "{part} in {}", ended.stdout);
    }
}

#[test]
fn errors_are_drawn() {
    let scratch = Scratch::new();
    scratch.write("m.toml", "[host]\nlisen = \"x\"\n");
    let Some(process) = in_terminal(&scratch, "check m.toml") else {
        return;
    };
    let ended = process.end();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended.stdout.contains("m.toml:2:1") && ended.stdout.contains("\u{1b}["),
        "{ended:?}"
    );
}

/// Where a filter passes over most letters, what a person sees moves all the same.
#[test]
fn a_command_shows_how_many_letters_it_has_looked_at() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        r#"
            [pipelines.orders]
            source = { type = "sqlite", path = "q.db", queue = "orders" }
            processor = { handler = "http", url = "http://127.0.0.1:9/" }
            dead_letter = { type = "file", path = "dead.jsonl" }
        "#,
    );
    scratch.write("dead.jsonl", &"{\"payload\":\"a\"}\n".repeat(20));
    let command = "dead-letter replay m.toml --pipeline orders --filter header:tenant!=a --rate 10";
    let Some(process) = in_terminal(&scratch, command) else {
        return;
    };
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["looked at", "replayed 20 messages"] {
        assert!(ended.stdout.contains(part), "{part} in {}", ended.stdout);
    }
}

/// What a pager shows is not drawn over.
#[test]
fn a_list_that_goes_into_a_pipe_shows_nothing_else() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        r#"
            [pipelines.orders]
            source = { type = "sqlite", path = "q.db", queue = "orders" }
            processor = { handler = "http", url = "http://127.0.0.1:9/" }
            dead_letter = { type = "file", path = "dead.jsonl" }
        "#,
    );
    scratch.write("dead.jsonl", &"{\"payload\":\"a\"}\n".repeat(2_000));
    for (to, shows) in [("> out", true), ("| cat", false)] {
        let command = format!("dead-letter list m.toml --pipeline orders {to}");
        let Some(process) = in_terminal(&scratch, &command) else {
            return;
        };
        let ended = process.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.stdout.contains("looked at"), shows, "{to}");
    }
}
