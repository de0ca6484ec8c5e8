//! `run`: its end, its exit status and its logs.

use crate::files::copy;
use crate::support::{Answer, Scratch, Server, envelopes, until};

/// Posts the lines of `in`, one at a time, to a server.
fn post(server: &Server, host: &str) -> String {
    format!(
        "[host]\n{host}\n[pipelines.post]\nsource = {{ type = \"file\", path = \"in\" }}\n\
         processor = {{ handler = \"http\", url = \"{}\", concurrency = 1 }}\n",
        server.url()
    )
}

#[test]
fn p6_a_signal_drains_and_the_report_adds_up() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &copy(""));
    scratch.write("in", &"line\n".repeat(100));
    for signal in ["-TERM", "-INT"] {
        let process = scratch.start(&["run", "m.toml"]);
        until("all", || {
            (envelopes(&scratch.read("out")).len() == 100).then_some(())
        });
        process.until_says("running");
        process.signal(signal);
        let ended = process.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("draining; another one releases at once"),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains("0 left"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn p6_what_runs_may_end_and_what_does_not_is_released_at_the_deadline() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Never]);
    scratch.write("m.toml", &post(&server, "shutdown_timeout = \"3s\""));
    scratch.write("in", "one\n");
    let process = scratch.start(&["run", "m.toml"]);
    server.until_has(1);
    process.signal("-TERM");
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("1 in flight: 0 done, 0 given up, 1 released"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_second_signal_releases_at_once() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Never]);
    scratch.write("m.toml", &post(&server, "shutdown_timeout = \"1h\""));
    scratch.write("in", "one\n");
    let process = scratch.start(&["run", "m.toml"]);
    server.until_has(1);
    process.signal("-TERM");
    process.until_says("SIGTERM: draining");
    process.signal("-INT");
    let ended = process.end();
    assert!(ended.stderr.contains("SIGINT: releasing"), "{}", ended.stderr);
    assert!(ended.stderr.contains("1 released"), "{}", ended.stderr);
    assert_eq!(ended.code, Some(0));
}

#[test]
fn a_pipeline_that_gives_up_leaves_the_others_alone_and_shows_in_the_status() {
    let scratch = Scratch::new();
    let absent = "[pipelines.absent]\nsource = { type = \"file\", path = \"absent\" }\n\
                  processor.handler = \"forward\"\nbatchers.out = { sink = { type = \"stdout\" } }\n";
    scratch.write("m.toml", &format!("{}{absent}", copy("follow = true")));
    scratch.write("in", "one\n");
    let process = scratch.start(&["run", "m.toml"]);
    process.until_says("pipeline gives up");
    until("one", || scratch.read("out").contains("one").then_some(()));
    scratch.append("in", "two\n");
    until("two", || scratch.read("out").contains("two").then_some(()));
    process.signal("-TERM");
    assert_eq!(process.end().code, Some(1));

    let exit = "[pipelines.absent.supervisor]\non_give_up = \"exit\"\n";
    scratch.write("m.toml", &format!("{}{absent}{exit}", copy("follow = true")));
    let ended = scratch.run(&["run", "m.toml"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("had given up"), "{}", ended.stderr);

    scratch.write("m.toml", absent);
    assert_eq!(scratch.run(&["run", "m.toml"]).code, Some(1));
}

#[test]
fn rust_log_wins_and_json_is_an_object_a_line() {
    let scratch = Scratch::new();
    scratch.write("in", "one\n");
    let arguments = ["run", "m.toml", "--until-idle", "50ms"];
    scratch.write(
        "m.toml",
        &format!("[host]\nlog = \"error\"\nlog_format = \"json\"\n{}", copy("")),
    );
    assert_eq!(scratch.run(&arguments).stderr, "");

    let mut command = scratch.command(&arguments);
    let ended = crate::support::Process::start(command.env("RUST_LOG", "info")).end();
    let events = envelopes(&ended.stderr);
    assert!(
        events
            .iter()
            .any(|event| event["message"] == "running" && event["pipeline"] == "copy")
    );

    let mut command = scratch.command(&arguments);
    let ended = crate::support::Process::start(command.env("RUST_LOG", "a=loud")).end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("RUST_LOG is not understood"),
        "{}",
        ended.stderr
    );
}
