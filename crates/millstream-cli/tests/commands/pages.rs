//! The pages on connectors, against what the binary takes.

use crate::support::Scratch;

/// What a user reads: by connector, with the fewest keys that each side has and the fewest blocks beside the first.
const PAGES: [(&str, &str, usize, usize); 3] = [
    ("rabbitmq", include_str!("../../../../docs/rabbitmq.md"), 9, 5),
    ("kafka", include_str!("../../../../docs/kafka.md"), 3, 3),
    ("sqs", include_str!("../../../../docs/sqs.md"), 5, 3),
];

#[test]
fn what_a_page_shows_is_right() {
    for (connector, page, _, least) in PAGES {
        let blocks = page.split("```toml\n").skip(1);
        let blocks: Vec<_> = blocks.map(|rest| rest.split_once("```").unwrap().0).collect();
        let (first, others) = blocks.split_first().unwrap();
        assert!(others.len() >= least, "{connector}: {others:?}");
        let scratch = Scratch::new();
        let parts = others.iter().map(|part| format!("{first}\n{part}"));
        for text in parts.chain([first.to_string(), blocks.join("\n")]) {
            scratch.write("page.toml", &text);
            let ended = scratch.run(&["check", "page.toml"]);
            if cfg!(not(feature = "kafka-ssl")) && text.contains("sasl_ssl") {
                assert!(ended.stderr.contains("kafka-ssl"), "{}\n{text}", ended.stderr);
            } else {
                assert_eq!(ended.code, Some(0), "{connector}: {}\n{text}", ended.stderr);
            }
        }
    }
}

/// Pages on a table of a pipeline, and that table.
const TABLES: [(&str, &str); 2] = [
    ("deduplicate", include_str!("../../../../docs/idempotency.md")),
    ("sequence", include_str!("../../../../docs/sequences.md")),
];

#[test]
fn what_a_page_on_a_table_shows_is_right_and_names_its_keys() {
    let ended = Scratch::new().run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    for (table, page) in TABLES {
        let blocks = page.split("```toml\n").skip(1);
        let blocks: Vec<_> = blocks.map(|rest| rest.split_once("```").unwrap().0).collect();
        let (first, others) = blocks.split_first().unwrap();
        assert!(!others.is_empty(), "{table}");
        let head = first.split_once(&format!(".{table}]")).unwrap().0;
        let head = head.rsplit_once('\n').unwrap().0;
        let scratch = Scratch::new();
        let parts = others.iter().map(|part| format!("{head}\n{part}"));
        for text in parts.chain([first.to_string()]) {
            scratch.write("page.toml", &text);
            let ended = scratch.run(&["check", "page.toml"]);
            assert_eq!(ended.code, Some(0), "{table}: {}\n{text}", ended.stderr);
        }
        let properties = format!("/$defs/pipeline/properties/{table}/properties");
        let keys = schema.pointer(&properties).unwrap().as_object().unwrap();
        assert!(keys.len() >= 4, "{keys:?}");
        for key in keys.keys() {
            assert!(page.contains(&format!("\n| `{key}` |")), "{table}: {key}");
        }
    }
}

#[test]
fn the_shared_rate_limit_of_the_page_on_policies_is_right_and_its_keys_are_told() {
    let page = include_str!("../../../../docs/policies.md");
    let (_, section) = page.split_once("### A limit of several processes").unwrap();
    let (block, _) = section
        .split_once("```toml\n")
        .unwrap()
        .1
        .split_once("```")
        .unwrap();
    let scratch = Scratch::new();
    let sqlite = block.replace(
        r#"{ type = "redis", url = "redis://user:password@127.0.0.1:6379/0" }"#,
        r#"{ type = "sqlite", path = "limits.db" }"#,
    );
    assert_ne!(block, sqlite);
    for text in [block, &sqlite] {
        scratch.write("page.toml", text);
        let ended = scratch.run(&["check", "page.toml"]);
        assert_eq!(ended.code, Some(0), "{}\n{text}", ended.stderr);
    }
    scratch.write("page.toml", &block.replace("redis://user", "http://user"));
    let ended = scratch.run(&["check", "page.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(!ended.stderr.contains("password"), "{}", ended.stderr);
    let ended = Scratch::new().run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let keys = schema.pointer("/$defs/pipeline/properties/rate_limit/properties");
    let keys = keys.unwrap().as_object().unwrap();
    assert!(keys.len() >= 7, "{keys:?}");
    for key in keys.keys() {
        assert!(page.contains(&format!("\n{key} = ")), "{key}");
    }
}

/// Every key in this part of a schema, those of tables within it included.
fn keys(schema: &serde_json::Value, found: &mut Vec<String>) {
    for (key, value) in schema
        .get("properties")
        .and_then(|keys| keys.as_object())
        .into_iter()
        .flatten()
    {
        found.push(key.clone());
        keys(value, found);
    }
    if let Some(items) = schema.get("items") {
        keys(items, found);
    }
}

#[test]
fn a_page_has_every_key() {
    let ended = Scratch::new().run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    for (connector, page, least, _) in PAGES {
        let (source, sink) = page.split_once("## The sink's keys").unwrap();
        for (side, page) in [("source", source), ("sink", sink)] {
            let kinds = schema.pointer(&format!("/$defs/{side}/oneOf")).unwrap();
            let is_it =
                |kind: &&serde_json::Value| kind.to_string().contains(&format!("\"const\":\"{connector}\""));
            let mut found = Vec::new();
            keys(kinds.as_array().unwrap().iter().find(is_it).unwrap(), &mut found);
            assert!(found.len() >= least, "{connector}: {found:?}");
            for key in found.iter().filter(|key| *key != "type") {
                // What tables such as `declare` take is told at the source.
                let told =
                    page.contains(&format!("\n| `{key}` |")) || source.contains(&format!("\n| `{key}` |"));
                assert!(told, "{connector}, {side}: {key}");
            }
        }
    }
}
