//! The `sqlite` connector through the commands.

use crate::support::{Scratch, envelopes};

const FILE: &str = r#"
    [pipelines.orders]
    ordering = "key"
    source = { type = "sqlite", path = "q.db", queue = "orders", lease = "5s", poll = "5ms" }
    processor.handler = "forward"
    batchers.out = { sink = { type = "sqlite", path = "q.db", queue = "priced" }, max_age = "5ms" }

    [pipelines.priced]
    source = { type = "sqlite", path = "q.db", queue = "priced", group = "printer" }
    processor.handler = "forward"
    batchers.out = { sink = { type = "stdout" }, max_age = "5ms" }
    dead_letter = { type = "sqlite", path = "q.db", queue = "dead" }
"#;

#[test]
fn messages_go_from_publish_through_two_queues_to_the_end() {
    let scratch = Scratch::new();
    scratch.write("m.toml", FILE);
    let lines: String = (0..500).map(|number| format!("{number}\n")).collect();
    let published = scratch.feed(
        &["publish", "m.toml", "--pipeline", "orders", "--key", "k"],
        &lines,
    );
    assert_eq!(published.stdout, "published 500 messages\n", "{published:?}");
    let ended = scratch.run(&["run", "m.toml", "--until-idle", "300ms"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let printed = envelopes(&ended.stdout);
    assert_eq!(printed.len(), 500);
    assert!(printed.iter().all(|envelope| envelope["key"] == "k"));
}

#[test]
fn its_settings_are_checked() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        &FILE.replace("\"orders\", lease = \"5s\"", "\"\", lease = \"5\""),
    );
    let ended = scratch.run(&["check", "m.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("`5` lacks a unit"), "{}", ended.stderr);
    scratch.write("m.toml", &FILE.replace("\"orders\"", "\"\""));
    assert!(
        scratch
            .run(&["check", "m.toml"])
            .stderr
            .contains("`queue` is empty")
    );
}
