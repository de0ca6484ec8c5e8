//! The `file` and `stdout` connectors.

use crate::support::{Answer, Scratch, Server, envelopes, exists, until};

/// Copies the lines of `in` to `out`.
pub(crate) fn copy(source: &str) -> String {
    format!(
        "[pipelines.copy]\n\
         source = {{ type = \"file\", path = \"in\", {source} }}\n\
         processor = {{ handler = \"forward\", concurrency = 1 }}\n\
         batchers.out = {{ sink = {{ type = \"file\", path = \"out\" }}, max_age = \"5ms\" }}\n"
    )
}

const ONCE: [&str; 4] = ["run", "m.toml", "--until-idle", "100ms"];

#[test]
fn lines_become_envelopes_once_and_what_is_appended_is_read_the_next_time() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy(""));
    scratch.write("in", "one\ntwo\r\nthree");
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        scratch.read("out"),
        "{\"payload\":\"one\"}\n{\"payload\":\"two\"}\n{\"payload\":\"three\"}\n"
    );
    scratch.append("in", "\nfour\n");
    assert_eq!(scratch.run(&ONCE).code, Some(0));
    assert_eq!(envelopes(&scratch.read("out")).len(), 4);
    assert!(scratch.read("in.position").contains("\"line\":4"));
}

#[test]
fn a_file_that_is_followed_is_read_as_it_grows_and_need_not_be_there_yet() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy("follow = true"));
    let process = scratch.start(&["run", "m.toml"]);
    process.until_says("No such file");
    scratch.write("in", "one\ntw");
    until("one", || scratch.read("out").contains("one").then_some(()));
    scratch.append("in", "o\n");
    until("two", || scratch.read("out").contains("two").then_some(()));
    process.signal("-TERM");
    assert_eq!(process.end().code, Some(0));
}

#[test]
fn a_missing_file_that_is_not_followed_is_an_error() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy(""));
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("cannot read in: No such file"),
        "{}",
        ended.stderr
    );
}

#[test]
fn p1_a_crash_repeats_lines_and_loses_none() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Status(200), Answer::Never]);
    scratch.write(
        "m.toml",
        &format!(
            "[pipelines.post]\nsource = {{ type = \"file\", path = \"in\" }}\n\
             processor = {{ handler = \"http\", url = \"{}\", concurrency = 1 }}\n",
            server.url()
        ),
    );
    scratch.write("in", "one\ntwo\nthree\n");
    let process = scratch.start(&["run", "m.toml"]);
    server.until_has(2);
    until("the position", || {
        scratch.read("in.position").contains("\"line\":1").then_some(())
    });
    process.signal("-KILL");
    process.end();
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let bodies: Vec<_> = server.requests().into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, ["one", "two", "two", "three"]);
}

#[test]
fn what_is_rejected_is_kept_beside_the_file_with_its_cause() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Status(422)]);
    scratch.write(
        "m.toml",
        &format!(
            "[pipelines.post]\nsource = {{ type = \"file\", path = \"in\", format = \"envelopes\" }}\n\
             processor = {{ handler = \"http\", url = \"{}\", concurrency = 1 }}\n",
            server.url()
        ),
    );
    scratch.write(
        "in",
        "{\"payload\":\"bad\",\"key\":\"k\"}\n\nhunter2\n{\"payload\":\"good\"}\n",
    );
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut dead = envelopes(&scratch.read("in.dead"));
    dead.sort_by_key(|envelope| envelope["headers"]["millstream-origin"].to_string());
    assert_eq!(dead.len(), 2);
    assert_eq!(
        (&dead[0]["payload"], &dead[0]["key"]),
        (&"bad".into(), &"k".into())
    );
    assert_eq!(dead[0]["headers"]["millstream-reason"], "rejected");
    assert_eq!(dead[1]["payload"], "hunter2");
    assert_eq!(dead[1]["headers"]["millstream-reason"], "decode");
    assert_eq!(dead[1]["headers"]["millstream-origin"], "in@3");
    assert!(!ended.stderr.contains("hunter2"));
    assert!(scratch.read("in.position").contains("\"line\":4"));
}

#[test]
fn a_file_that_was_truncated_or_replaced_is_an_error_that_says_what_to_do() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy(""));
    scratch.write("in", "one\ntwo\n");
    assert_eq!(scratch.run(&ONCE).code, Some(0));
    for (text, error) in [
        ("one\n", "in was truncated"),
        ("eins\nzwei\ndrei\n", "in was replaced by another file"),
    ] {
        scratch.write("in", text);
        let ended = scratch.run(&ONCE);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains(error), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("remove in.position to read"),
            "{}",
            ended.stderr
        );
    }
    assert_eq!(envelopes(&scratch.read("out")).len(), 2);
}

#[test]
fn one_process_at_a_time_reads_a_file() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy("follow = true"));
    scratch.write("in", "one\n");
    let first = scratch.start(&["run", "m.toml"]);
    until("one", || scratch.read("out").contains("one").then_some(()));
    let second = scratch.start(&["run", "m.toml"]);
    second.until_says("another process may be reading in");
    first.signal("-TERM");
    assert_eq!(first.end().code, Some(0));
    scratch.append("in", "two\n");
    until("two", || scratch.read("out").contains("two").then_some(()));
    second.signal("-TERM");
    assert_eq!(second.end().code, Some(0));
    assert_eq!(envelopes(&scratch.read("out")).len(), 2);
}

#[test]
fn stdout_has_envelopes_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        "[pipelines.print]\nsource = { type = \"file\", path = \"in\", format = \"envelopes\" }\n\
         processor.handler = \"forward\"\nbatchers.out = { sink = { type = \"stdout\" } }\n",
    );
    let line = "{\"payload_base64\":\"/wA=\",\"key\":\"k\",\"headers\":{\"a\":\"1\",\"a\":\"2\"}}\n";
    scratch.write("in", line);
    let ended = scratch.run(&ONCE);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), line),
        "{}",
        ended.stderr
    );
    assert!(!exists(&scratch.path("in.dead")));
}
