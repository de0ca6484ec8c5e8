//! SIGHUP: what has changed in the file is taken over, and nothing else is touched.

use crate::support::{Answer, Process, Scratch, Server, envelopes, until};

/// A pipeline of this name from its file to another, with more keys.
fn copy(name: &str, more: &str) -> String {
    format!(
        "[pipelines.{name}]\nsource = {{ type = \"file\", path = \"{name}.in\", follow = true }}\n\
         batchers.out = {{ sink = {{ type = \"file\", path = \"{name}.out\" }}, max_age = \"10ms\" }}\n\
         processor.handler = \"forward\"\n{more}\n"
    )
}

fn copied(scratch: &Scratch, name: &str, lines: usize) {
    until("all lines", || {
        let out = scratch.read(&format!("{name}.out"));
        (out.ends_with('\n') && envelopes(&out).len() == lines).then_some(())
    });
}

/// Asks for a reload, and waits until it is over.
fn reload(process: &Process, scratch: &Scratch, file: &str) {
    scratch.write("m.toml", file);
    process.signal("-HUP");
}

fn end(process: Process) -> String {
    process.signal("-TERM");
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stderr
}

#[test]
fn a_file_with_other_pipelines_starts_new_ones_drains_old_ones_and_leaves_the_same_alone() {
    let scratch = Scratch::new();
    for name in ["same", "gone", "new", "moved"] {
        scratch.write(&format!("{name}.in"), "one\n");
    }
    let moved = copy("moved", "");
    scratch.write(
        "m.toml",
        &[copy("same", ""), copy("gone", ""), moved.clone()].concat(),
    );
    let process = scratch.start(&["run", "m.toml"]);
    for name in ["same", "gone", "moved"] {
        copied(&scratch, name, 1);
    }
    let moved = moved.replace("moved.out", "elsewhere");
    reload(
        &process,
        &scratch,
        &[copy("same", ""), copy("new", ""), moved].concat(),
    );
    process.until_says("reloaded file");
    copied(&scratch, "new", 1);
    for name in ["same", "gone", "new", "moved"] {
        scratch.append(&format!("{name}.in"), "two\n");
    }
    copied(&scratch, "same", 2);
    copied(&scratch, "new", 2);
    until("what goes elsewhere", || {
        scratch.read("elsewhere").contains("two").then_some(())
    });
    let stderr = end(process);
    let line = |pipeline: &str, text: &str| {
        let name = format!("pipeline={pipeline}");
        let quoted = format!("pipeline=\"{pipeline}\"");
        let lines = stderr.lines().filter(|line| line.contains(text));
        lines
            .filter(|line| line.contains(&name) || line.contains(&quoted))
            .count()
    };
    // What has arrived may not be settled yet.
    let drained = |pipeline: &str, how: &str| {
        let whole = stderr
            .lines()
            .filter(|line| line.ends_with(&format!("pipeline=\"{pipeline}\"")));
        whole
            .filter(|line| line.contains(how) && line.contains(" 0 released, 0 lost, 0 left, in "))
            .count()
    };
    assert_eq!(drained("gone", "removed: "), 1, "{stderr}");
    assert_eq!(line("new", "started: it is new"), 1, "{stderr}");
    assert_eq!(line("moved", "because=\"batchers.out.sink\""), 1, "{stderr}");
    assert_eq!(drained("moved", "restarted: "), 1, "{stderr}");
    assert_eq!(line("same", "running"), 1, "it was started once: {stderr}");
    assert_eq!(line("moved", "running"), 2, "{stderr}");
    copied(&scratch, "gone", 1);
}

#[test]
fn numbers_change_while_the_pipeline_runs() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Never; 5]);
    let post = |concurrency: usize| {
        format!(
            "[pipelines.post]\nsource = {{ type = \"file\", path = \"in\" }}\n\
             processor = {{ handler = \"http\", url = \"{}\", concurrency = {concurrency} }}\n",
            server.url()
        )
    };
    scratch.write(
        "m.toml",
        &format!("[host]\nshutdown_timeout = \"1h\"\n{}", post(1)),
    );
    scratch.write("in", &"line\n".repeat(5));
    let process = scratch.start(&["run", "m.toml"]);
    server.until_has(1);
    let short = "[host]\nshutdown_timeout = \"3s\"\nlog_format = \"json\"\n";
    reload(&process, &scratch, &format!("{short}{}", post(4)));
    server.until_has(4);
    process.until_says("reloaded file");
    let stderr = end(process);
    for part in [
        "changed while it runs",
        "processor.concurrency 1 -> 4",
        "`shutdown_timeout` changed",
        "keys=\"log_format\"",
        "5 released",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_wrong_file_is_refused_whole() {
    let scratch = Scratch::new();
    for name in ["one", "two"] {
        scratch.write(&format!("{name}.in"), "line\n");
    }
    scratch.write("m.toml", &copy("one", ""));
    let process = scratch.start(&["run", "m.toml"]);
    copied(&scratch, "one", 1);
    let wrong = copy("one", "limits.in_flight = 7\nlimits.in_fligt = 8");
    reload(&process, &scratch, &[copy("two", ""), wrong].concat());
    process.until_says("not reloaded, all goes on as it was");
    process.until_says("did you mean");
    scratch.append("one.in", "line\n");
    copied(&scratch, "one", 2);
    assert_eq!(scratch.read("two.out"), "");
    // Right again, and the same as at first: nothing is to be done.
    reload(&process, &scratch, &copy("one", ""));
    process.until_says("reloaded file");
    let stderr = end(process);
    assert!(
        stderr.contains("m.toml:") && stderr.contains("in_fligt"),
        "{stderr}"
    );
    assert!(!stderr.contains("changed while it runs"), "{stderr}");
}

#[test]
fn p6_a_signal_to_end_is_heard_while_a_reload_waits_for_a_drain() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Never]);
    let post = |path: &str| {
        format!(
            "[host]\nshutdown_timeout = \"1h\"\n[pipelines.post]\n\
             source = {{ type = \"file\", path = \"{path}\" }}\n\
             processor = {{ handler = \"http\", url = \"{}\" }}\n",
            server.url()
        )
    };
    scratch.write("in", "one\n");
    scratch.write("other", "two\n");
    scratch.write("m.toml", &post("in"));
    let process = scratch.start(&["run", "m.toml"]);
    server.until_has(1);
    reload(&process, &scratch, &post("other"));
    process.until_says("restarting with other settings");
    process.signal("-TERM");
    process.until_says("SIGTERM: draining");
    process.signal("-TERM");
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("1 released"), "{}", ended.stderr);
    assert_eq!(server.requests().len(), 1, "what was to be started was not");
}
