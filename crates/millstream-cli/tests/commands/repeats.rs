//! `deduplicate` and `sequence` through the commands.

use crate::support::{Scratch, envelopes};

fn file(tables: &str) -> String {
    format!(
        r#"
        [pipelines.orders]
        ordering = "key"
        source = {{ type = "sqlite", path = "q.db", queue = "orders" }}
        processor.handler = "forward"
        batchers.out = {{ sink = {{ type = "stdout" }}, max_age = "5ms" }}
        {tables}
        "#
    )
}

fn publish(scratch: &Scratch, header: &str, lines: &str) {
    let published = scratch.feed(
        &[
            "publish",
            "m.toml",
            "--pipeline",
            "orders",
            "--key",
            "k",
            "--header",
            header,
        ],
        lines,
    );
    assert_eq!(published.code, Some(0), "{}", published.stderr);
}

fn run(scratch: &Scratch) -> Vec<String> {
    let ended = scratch.run(&["run", "m.toml", "--until-idle", "300ms"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let printed = envelopes(&ended.stdout);
    printed
        .iter()
        .map(|envelope| envelope["payload"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn what_one_run_has_done_the_next_one_knows_by_its_store() {
    let scratch = Scratch::new();
    let store = r#"deduplicate = { by = "header:id", store = { type = "sqlite", path = "done.db" } }"#;
    scratch.write("m.toml", &file(store));
    publish(&scratch, "id=7", "one\ntwin\n");
    assert_eq!(run(&scratch), ["one"]);
    publish(&scratch, "id=7", "again\n");
    publish(&scratch, "id=8", "other\n");
    assert_eq!(run(&scratch), ["other"]);
}

#[test]
fn what_is_mixed_up_is_put_in_order() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &file(r#"sequence = { by = "json:/n", wait = "20s" }"#));
    publish(&scratch, "a=b", "{\"n\": 1}\n{\"n\": 3}\n{\"n\": 2}\n");
    assert_eq!(run(&scratch), [r#"{"n": 1}"#, r#"{"n": 2}"#, r#"{"n": 3}"#]);
}

#[test]
fn the_settings_of_stores_are_checked() {
    for (store, said) in [
        ("{ type = \"sqlite\", path = \"\" }", "`path` is empty"),
        (
            "{ type = \"redis\", url = \"http://:zebra@host\" }",
            "it is no URL of Redis",
        ),
        (
            "{ type = \"redis\", url = \"rediss://:zebra@host\" }",
            "through TLS",
        ),
        ("{ type = \"rediss\" }", "did you mean `redis`"),
        ("{ type = \"memory\", path = \"x\" }", "unknown key `path`"),
    ] {
        let scratch = Scratch::new();
        scratch.write("m.toml", &file(&format!("deduplicate = {{ store = {store} }}")));
        let ended = scratch.run(&["check", "m.toml"]);
        assert_eq!(ended.code, Some(2));
        assert!(ended.stderr.contains(said), "{said}\nin {}", ended.stderr);
        assert!(!ended.stderr.contains("zebra"), "{}", ended.stderr);
    }
    let scratch = Scratch::new();
    let redis = "deduplicate = { max_entries = 5, store = { type = \"redis\", url = \"redis://host\" } }";
    scratch.write("m.toml", &file(redis));
    let ended = scratch.run(&["check", "m.toml"]);
    assert!(
        ended.stderr.contains("`max_entries` has no effect"),
        "{}",
        ended.stderr
    );
}

#[test]
fn ids_that_the_source_cannot_give_are_told_of() {
    let scratch = Scratch::new();
    let text = file("deduplicate = {}").replace(
        "type = \"sqlite\", path = \"q.db\", queue = \"orders\"",
        "type = \"file\", path = \"lines\"",
    );
    scratch.write("m.toml", &text);
    let ended = scratch.run(&["check", "m.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("this source gives messages no id"),
        "{}",
        ended.stderr
    );
}

#[test]
fn two_runs_keep_one_limit_by_its_store() {
    let scratch = Scratch::new();
    let limit =
        r#"rate_limit = { messages = 5, per = "1h", store = { type = "sqlite", path = "limits.db" } }"#;
    scratch.write("m.toml", &file(limit));
    publish(&scratch, "id=7", "one\ntwo\n");
    assert_eq!(run(&scratch), ["one", "two"]);
    publish(&scratch, "id=7", "three\nfour\n");
    assert_eq!(run(&scratch), ["three", "four"]);
    let database = millstream_sqlite::rusqlite::Connection::open(scratch.path("limits.db")).unwrap();
    let taken: f64 = database
        .query_row(
            "SELECT taken FROM millstream_rates WHERE pipeline = 'orders'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!((3.5..=4.0).contains(&taken), "{taken} of the burst of five");
}
