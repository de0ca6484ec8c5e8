//! `tests/broadway.md` and `tests/peers.md` name tests: each is there.

use std::collections::HashMap;
use std::path::Path;

/// Where a file of Broadway's table is that has no directory.
const ENGINE: &str = "crates/millstream-core/tests/engine";

/// What is wrong with the tests that this page's rows name in their last cell, as `file: test`. `path` says where a file
/// is, from the top of the repository.
fn wrong(page: &str, path: impl Fn(&str) -> String) -> Vec<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(tests.join(page)).unwrap();
    let mut sources: HashMap<String, String> = HashMap::new();
    let mut wrong = Vec::new();
    let mut named = 0;
    let rows = text.lines().filter(|line| line.starts_with('|')).skip(2);
    for row in rows {
        let Some((_, here)) = row.trim_end_matches(" |").rsplit_once(" | ") else {
            wrong.push(format!("no cells: {row}"));
            continue;
        };
        if here.starts_with("has no counterpart because ") {
            continue;
        }
        for name in here.split(", ") {
            let name = name.trim_matches('`');
            let Some((file, test)) = name.split_once(": ") else {
                wrong.push(format!("neither a test nor a reason: {name}"));
                continue;
            };
            let path = path(file);
            let source = sources.entry(path.clone()).or_insert_with(|| {
                // What cannot be read has no tests.
                std::fs::read_to_string(tests.join("..").join(&path)).unwrap_or_default()
            });
            if !source.contains(&format!("fn {test}(")) {
                wrong.push(format!("{path} has no {test}"));
            }
            named += 1;
        }
    }
    if named == 0 {
        wrong.push("it names no test".to_owned());
    }
    wrong
}

#[test]
fn every_test_that_broadways_table_names_is_there() {
    let wrong = wrong("broadway.md", |file| match file.contains('/') {
        true => file.to_owned(),
        false => format!("{ENGINE}/{file}"),
    });
    assert!(wrong.is_empty(), "tests/broadway.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_test_that_the_table_of_other_consumers_bugs_names_is_there() {
    let wrong = wrong("peers.md", |file| match file.strip_prefix("core/") {
        Some(file) => format!("crates/millstream-core/{file}"),
        None => format!("crates/millstream-kafka/{file}"),
    });
    assert!(wrong.is_empty(), "tests/peers.md:\n{}", wrong.join("\n"));
}
