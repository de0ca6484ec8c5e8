//! `publish`.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Process, Scratch, envelopes, until};

/// A pipeline whose source is a file of envelopes.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        "[pipelines.a]\nsource = { type = \"file\", path = \"queue\", format = \"envelopes\" }\n\
         processor.handler = \"forward\"\nbatchers.out = { sink = { type = \"stdout\" } }\n\
         [pipelines.b]\nsource = { type = \"memory\" }\n\
         processor.handler = \"forward\"\nbatchers.out = { sink = { type = \"stdout\" } }\n",
    );
    scratch
}

const PUBLISH: [&str; 4] = ["publish", "m.toml", "--pipeline", "a"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&PUBLISH, more].concat()
}

#[test]
fn a_line_is_a_message_with_key_and_headers() {
    let scratch = scratch();
    let ended = scratch.feed(
        &with(&["--key", "k", "--header", "a=1", "--header", "b=x=y"]),
        "one\n\ntwo",
    );
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "published 3 messages\n"),
        "{ended:?}"
    );
    let published = envelopes(&scratch.read("queue"));
    assert_eq!(
        published[0],
        serde_json::json!({"payload": "one", "key": "k", "headers": {"a": "1", "b": "x=y"}})
    );
    assert_eq!(published[1]["payload"], "");
    assert_eq!(published[2]["payload"], "two");
}

#[test]
fn what_run_prints_can_be_published() {
    let scratch = scratch();
    let lines = "{\"payload_base64\":\"/wA=\",\"key\":\"k\"}\n{\"payload\":\"two\",\"attempt\":3,\"origin\":\"q@1\"}\n";
    let ended = scratch.feed(&with(&["--json"]), lines);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        scratch.read("queue"),
        "{\"payload_base64\":\"/wA=\",\"key\":\"k\"}\n{\"payload\":\"two\"}\n"
    );
}

#[test]
fn a_broken_envelope_is_told_by_its_line_and_what_stands_before_it_is_published() {
    let scratch = scratch();
    let ended = scratch.feed(
        &with(&["--json"]),
        "{\"payload\":\"one\"}\n{\"payload\":\"two\"}\nhunter2\n{\"payload\":\"four\"}\n",
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    assert_eq!(
        ended.stderr,
        "error: 2 messages published: line 3 is no envelope: expected value at line 1 column 1\n"
    );
    assert_eq!(envelopes(&scratch.read("queue")).len(), 2);
}

#[test]
fn many_lines_are_all_published_in_order() {
    let scratch = scratch();
    let lines: String = (0..25_000).map(|number| format!("{number}\n")).collect();
    let ended = scratch.feed(&PUBLISH, &lines);
    assert_eq!(ended.stdout, "published 25,000 messages\n");
    let published: String = envelopes(&scratch.read("queue"))
        .iter()
        .map(|envelope| format!("{}\n", envelope["payload"].as_str().unwrap()))
        .collect();
    assert_eq!(published, lines);
}

#[test]
fn a_slow_writer_sees_its_lines_published_at_once_and_a_signal_ends_it_with_the_count() {
    let scratch = scratch();
    let mut process = Process::start(scratch.command(&PUBLISH).stdin(Stdio::piped()));
    let mut input = process.child.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    until("one", || scratch.read("queue").contains("one").then_some(()));
    process.signal("-INT");
    let ended = process.end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "error: SIGINT; 1 message published before it\n");
}

#[test]
fn what_cannot_be_published_to_is_told() {
    let scratch = scratch();
    let ended = scratch.feed(&["publish", "m.toml", "--pipeline", "b"], "one\n");
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .stderr
            .contains("the source of pipeline `b` cannot be published to"),
        "{ended:?}"
    );
    let ended = scratch.feed(&["publish", "m.toml", "--pipeline", "c"], "one\n");
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .stderr
            .contains("there is no pipeline `c`; the file has `a`, `b`"),
        "{ended:?}"
    );
}

#[test]
fn a_sink_that_refuses_ends_it_with_the_count() {
    let scratch = scratch();
    std::fs::create_dir(scratch.path("queue")).unwrap();
    let ended = scratch.feed(&PUBLISH, "one\n");
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("0 messages published: cannot write queue"),
        "{ended:?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_sink_that_is_broken_is_tried_again_and_then_given_up() {
    let scratch = scratch();
    std::os::unix::fs::symlink("/dev/full", scratch.path("queue")).unwrap();
    let ended = scratch.feed(&PUBLISH, "one\ntwo\n");
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr.matches("publishing again").count(), 6, "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("0 messages published: cannot write queue: No space left"),
        "{ended:?}"
    );
}
