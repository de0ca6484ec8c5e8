//! `check` and `schema`.

use crate::support::Scratch;

const GOOD: &str = r#"
    [pipelines.copy]
    source = { type = "file", path = "in" }
    processor = { handler = "forward" }
    batchers.out = { sink = { type = "stdout" } }

    [pipelines.post]
    source = { type = "memory" }
    processor = { handler = "http", url = "http://127.0.0.1:1/" }
"#;

#[test]
fn a_good_file_is_counted() {
    let scratch = Scratch::new();
    scratch.write("m.toml", GOOD);
    let ended = scratch.run(&["check", "m.toml"]);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(0), "ok: 2 pipelines\n"),
        "{ended:?}"
    );
    assert!(!scratch.path("in.position").exists());
}

/// P5: where what is over a key's limit holds places of all keys, `check` says so, and what to do; elsewhere it says nothing.
#[test]
fn a_limit_of_each_key_that_crowds_out_the_other_keys_is_warned_of() {
    let scratch = Scratch::new();
    let kafka = "type = \"kafka\", brokers = \"127.0.0.1:1\", group = \"g\", topics = [\"in\"]";
    let rabbit = "type = \"rabbitmq\", url = \"amqp://127.0.0.1:1\", queue = \"in\"";
    let sqlite = "type = \"sqlite\", path = \"in.db\", queue = \"in\"";
    let ordered = "ordering = \"key\"";
    for (source, set, warned) in [
        (kafka, "", Some("set `retry.strategy` to \"redeliver\"")),
        (kafka, "retry.strategy = \"redeliver\"", None),
        (kafka, ordered, Some("remove `ordering`")),
        (rabbit, "", None),
        (rabbit, ordered, Some("remove `ordering`")),
        (sqlite, ordered, None),
    ] {
        let file = format!(
            "[pipelines.a]\nrate_limit = {{ messages = 9, key = \"header:tenant\" }}\nsource = {{ {source} }}\n{set}\n\
             processor = {{ handler = \"http\", url = \"http://127.0.0.1:1/\" }}\ndead_letter = \"discard\"\n"
        );
        scratch.write("m.toml", &file);
        let ended = scratch.run(&["check", "m.toml"]);
        assert_eq!(ended.code, Some(0), "{source}, {set}: {ended:?}");
        let Some(remedy) = warned else {
            assert_eq!(
                (&*ended.stdout, &*ended.stderr),
                ("ok: 1 pipeline\n", ""),
                "{source}, {set}"
            );
            continue;
        };
        assert_eq!(ended.stdout, "ok: 1 pipeline, 1 warning\n");
        for part in [
            "m.toml:2:36: warning: what is over the limit of one key waits",
            remedy,
        ] {
            assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
        }
    }
}

#[test]
fn a_bad_file_ends_every_command_with_2_and_all_its_errors_beside_their_place() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        "[host]\nshutdown_timout = \"1s\"\n[pipelines.a.source]\ntype = \"fiel\"\npath = \"in\"\n",
    );
    for arguments in [
        &["check", "m.toml"][..],
        &["run", "m.toml"],
        &["publish", "m.toml", "--pipeline", "a"],
    ] {
        let ended = scratch.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{ended:?}");
        for part in [
            "m.toml:2:1: unknown key `shutdown_timout` in [host]\n  help: did you mean `shutdown_timeout`?\n",
            "m.toml:4:8: unknown connector `fiel`\n  help: did you mean `file`?",
        ] {
            assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
        }
        assert!(!ended.stderr.contains('\u{1b}'));
    }
    assert_eq!(scratch.run(&["check", "absent.toml"]).code, Some(2));
}

#[test]
fn a_log_level_with_a_slip_of_the_pen_is_an_error() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &format!("[host]\nlog = \"inof\"\n{GOOD}"));
    let ended = scratch.run(&["check", "m.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("`inof` is no level"), "{}", ended.stderr);
}

#[test]
fn forward_and_http_say_what_they_need() {
    let scratch = Scratch::new();
    for (pipeline, error) in [
        (
            "processor = { handler = \"forward\" }",
            "`forward` needs a batcher to forward to, and there is none",
        ),
        (
            "processor = { handler = \"forward\" }\nbatchers = { a = { sink = { type = \"stdout\" } }, b = { sink = { type = \"stdout\" } } }",
            "`forward` needs exactly one batcher, and there are 2",
        ),
        ("processor = { handler = \"http\" }", "missing key `url`"),
        (
            "processor = { handler = \"http\", url = \"ftp://h/\" }",
            "`url` is no HTTP URL",
        ),
        (
            "processor = { handler = \"http\", url = \"h\" }",
            "`url` is no URL",
        ),
        (
            "processor = { handler = \"forward\" }\nbatchers.out = { sink = { type = \"memory\" } }",
            "a sink in memory needs a `queue`",
        ),
    ] {
        scratch.write(
            "m.toml",
            &format!("[pipelines.a]\nsource = {{ type = \"memory\" }}\n{pipeline}\n"),
        );
        let ended = scratch.run(&["check", "m.toml"]);
        assert_eq!(ended.code, Some(2), "{pipeline}");
        assert!(ended.stderr.contains(error), "{error} in {}", ended.stderr);
    }
}

#[test]
fn the_schema_has_every_stock_type_and_handler() {
    let ended = Scratch::new().run(&["schema"]);
    assert_eq!(ended.code, Some(0));
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let types = |kind: &str| -> Vec<String> {
        let all = schema["$defs"][kind]["oneOf"].as_array().unwrap();
        all.iter()
            .map(|one| one["properties"]["type"]["const"].as_str().unwrap().to_owned())
            .collect()
    };
    for name in ["file", "memory", "rabbitmq", "sqlite"] {
        assert!(types("source").iter().any(|found| found == name), "{name}");
    }
    assert!(types("sink").iter().any(|found| found == "stdout"));
    assert!(ended.stdout.contains("follow") && ended.stdout.contains("\"url\""));
}

#[test]
fn a_wrong_command_line_is_told() {
    let scratch = Scratch::new();
    for arguments in [&["run", "m.toml", "--until-idle", "2"][..], &["nonsense"], &[]] {
        let ended = scratch.run(arguments);
        assert_eq!(ended.code, Some(2));
        assert!(!ended.stderr.is_empty());
    }
}
