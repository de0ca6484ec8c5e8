//! Every file under `tests/broken` has something wrong with it, and is told where, why and what to do.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use millstream_config::Config;

use super::support::{environment, registry};

#[test]
fn every_broken_file_is_told_where_why_and_what_to_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 50, "only {} files", paths.len());
    let registry = registry();
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let errors = Config::parse(&text, name, &registry, &environment).expect_err(name);
        assert!(!errors.is_empty(), "{name}");
        assert_eq!(errors.source().len(), text.len(), "{name}");
        let mut shown = String::new();
        for error in &errors {
            let (line, column) = (error.line, error.column);
            assert!(
                line >= 1 && column >= 1 && !error.message.is_empty() && !error.help.is_empty(),
                "{name}"
            );
            let in_text = text
                .lines()
                .nth(line - 1)
                .is_some_and(|text| column <= text.chars().count() + 1);
            assert!(in_text || text.is_empty(), "{name}: {line}:{column}");
            let excerpt = errors.source().get(error.span.clone()).expect(name);
            writeln!(shown, "{error}\n  at: {excerpt}\n").unwrap();
        }
        let settings = {
            let mut settings = insta::Settings::clone_current();
            settings.set_snapshot_path("../snapshots/broken");
            settings.set_prepend_module_to_snapshot(false);
            settings.set_omit_expression(true);
            settings
        };
        settings.bind(|| insta::assert_snapshot!(name.trim_end_matches(".toml"), shown));
    }
}
