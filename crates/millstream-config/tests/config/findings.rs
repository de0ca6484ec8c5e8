//! What is found out about a file that is right, at its places.

use millstream_core::{Finding, Severity};

use super::support::parse;

const TEXT: &str = r#"
[pipelines.audit]
dead_letter = { type = "print" }

[pipelines.audit.source]
type = "stream"
url = "${STREAM_URL}"

[pipelines."a.b"]
source = { type = "sqlite", path = "orders.db", queue = "orders" }
processor = { handler = "audit" }
"#;

const SOURCE: &[&str] = &["source"];

/// The findings about the source of this pipeline as they are shown.
fn shown(pipeline: &str, found: impl IntoIterator<Item = Finding>) -> String {
    let config = parse(TEXT).unwrap_or_else(|errors| panic!("{errors}"));
    let found: Vec<_> = found.into_iter().collect();
    let found = found.iter().map(|finding| {
        let path = finding.path(&["pipelines", pipeline], SOURCE);
        (path, finding.clone())
    });
    config
        .diagnose(found)
        .map_or_else(String::new, |diagnostics| diagnostics.to_string())
}

#[test]
fn a_finding_is_shown_at_its_key_or_at_the_table_that_would_have_it() {
    let finding = Finding::error("cause", "remedy");
    for (at, expected) in [
        (finding.clone().at("url"), "test.toml:7:7"),
        (finding.clone().at("prefetch"), "test.toml:5:1"),
        (finding.clone(), "test.toml:5:1"),
        (
            finding.clone().in_pipeline(["dead_letter", "type"]),
            "test.toml:3:24",
        ),
        (
            finding.clone().in_pipeline(["processor", "timeout"]),
            "test.toml:2:1",
        ),
    ] {
        assert_eq!(shown("audit", [at]), format!("{expected}: cause\n  help: remedy"));
    }
    assert_eq!(
        shown("a.b", [finding.at("queue")]),
        "test.toml:10:57: cause\n  help: remedy"
    );
}

#[test]
fn findings_come_in_the_order_of_the_file_and_say_what_they_are() {
    let found = [
        Finding::note("not looked at", "look").at("url"),
        Finding::warning("too short", "make it longer").in_pipeline(["dead_letter"]),
        Finding::error("gone", "bring it back"),
    ];
    assert_eq!(
        shown("audit", found.clone()),
        "test.toml:3:15: warning: too short\n  help: make it longer\n\
         test.toml:5:1: gone\n  help: bring it back\n\
         test.toml:7:7: note: not looked at\n  help: look"
    );
    assert_eq!(shown("audit", []), "");
    let config = parse(TEXT).unwrap();
    let all = config.diagnose(found.map(|finding| (vec!["pipelines"], finding)));
    assert_eq!(all.unwrap().count(Severity::Warning), 1);
}

#[test]
fn no_finding_shows_a_secret() {
    let config = parse(TEXT).unwrap();
    let finding = Finding::error(
        "stream://admin:maple onyx@host:1 does not answer",
        "try amqp://me:hunter2@host instead of stream://admin:maple onyx@host:1",
    );
    let diagnostics = config.diagnose([(vec!["pipelines", "audit", "source", "url"], finding)]);
    let diagnostics = diagnostics.unwrap();
    let everything = format!(
        "{diagnostics}\n{diagnostics:?}\n{config:?}\n{}",
        diagnostics.source()
    );
    for secret in ["maple", "onyx", "hunter2"] {
        assert!(!everything.contains(secret), "{secret} in {everything}");
    }
    assert!(diagnostics.source().contains("${STREAM_URL}"));
}
