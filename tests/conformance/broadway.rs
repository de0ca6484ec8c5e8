//! `tests/broadway.md` names tests: each is there.

use std::collections::HashMap;
use std::path::Path;

/// Where a file without a directory is.
const ENGINE: &str = "crates/millstream-core/tests/engine";

#[test]
fn every_test_that_broadways_table_names_is_there() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(tests.join("broadway.md")).unwrap();
    let mut sources: HashMap<String, String> = HashMap::new();
    let mut wrong = Vec::new();
    let mut named = 0;
    let rows = page.lines().filter(|line| line.starts_with('|')).skip(2);
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
            let path = if file.contains('/') {
                file.to_owned()
            } else {
                format!("{ENGINE}/{file}")
            };
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
    assert!(wrong.is_empty(), "tests/broadway.md:\n{}", wrong.join("\n"));
    assert!(named > 0, "tests/broadway.md names no test");
}
