//! The pages of connectors: what they show is right, and they have every key.

use crate::support::Scratch;

/// A connector's name, and what a user reads of it.
const PAGES: [(&str, &str); 2] = [
    ("rabbitmq", include_str!("../../../../docs/rabbitmq.md")),
    ("sqs", include_str!("../../../../docs/sqs.md")),
];

#[test]
fn what_a_page_shows_is_right() {
    let scratch = Scratch::new();
    for (name, page) in PAGES {
        let blocks = page.split("```toml\n").skip(1);
        let blocks: Vec<_> = blocks.map(|rest| rest.split_once("```").unwrap().0).collect();
        let (first, others) = blocks.split_first().unwrap();
        assert!(others.len() >= 3, "{name}: {others:?}");
        let parts = others.iter().map(|part| format!("{first}\n{part}"));
        for text in parts.chain([first.to_string(), blocks.join("\n")]) {
            scratch.write("page.toml", &text);
            let ended = scratch.run(&["check", "page.toml"]);
            assert_eq!(ended.code, Some(0), "{name}: {}\n{text}", ended.stderr);
        }
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
    for (name, page) in PAGES {
        let (source, sink) = page.split_once("## The sink's keys").unwrap();
        for (side, page) in [("source", source), ("sink", sink)] {
            let kinds = schema.pointer(&format!("/$defs/{side}/oneOf")).unwrap();
            let is_it =
                |kind: &&serde_json::Value| kind.to_string().contains(&format!("\"const\":\"{name}\""));
            let mut found = Vec::new();
            keys(kinds.as_array().unwrap().iter().find(is_it).unwrap(), &mut found);
            assert!(found.len() > 4, "{name}: {found:?}");
            for key in found.iter().filter(|key| *key != "type") {
                // What tables such as `declare` take is told at the source.
                let told =
                    page.contains(&format!("\n| `{key}` |")) || source.contains(&format!("\n| `{key}` |"));
                assert!(told, "{name}, {side}: {key}");
            }
        }
    }
}
