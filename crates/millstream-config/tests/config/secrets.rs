//! No diagnostic, and nothing that it gives a renderer, holds a secret.

use super::support::parse;

#[test]
fn no_error_shows_a_secret_wherever_it_comes_from() {
    for settings in [
        "url = \"tcp://admin:hunter2@host\"",
        "url = 'tcp://admin:hun\"ter2@host'\nurls = 'tcp://a:hunter2@b'",
        "url = \"tcp://admin:${PASSWORD}@host\"",
        "url = \"hunter2\"",
        "url = '''\nhunter2'''",
        "url = \"${PASSWORD}\"",
        "url = [\"hunter2\"]",
        "urll = \"hunter2\"\ndeclare = { durble = [\"hunter2\"] }",
        "url = { user = \"hunter2\" }",
        "properties = { \"sasl.password\" = \"hunter2\", start = 3 }",
        "api_key = \"hunter2\"",
        "start = \"${PASSWORD}\"",
        "url = 'stream://x'\npartition = \"${PASSWORD}\"",
        "url = 'stream://x'\nlinger = \"${TIMEOUT}\"",
        "url = 'tcp://admin:hun\"ter2@host'",
        "declare = \"${STREAM_URL}\"",
        "topics = [\"stream://me:hunter2@host\", 3]",
        "url = \"stream://me:hunter2@host\" # and http://hunter2@host\nprefetch = 0",
        "url = \"stream://me:hunter2@host\"\nurl = 3",
        "password = \"hunter2\"\n[oops",
        "url = \"${PASSWORD:-hunter2}x${NONE}\"",
    ] {
        let text = format!("[pipelines.audit.source]\ntype = \"stream\"\n{settings}\n");
        let errors = parse(&text).expect_err(settings);
        let shown = format!("{errors}\n{errors:?}\n{}", errors.source());
        for secret in [
            "hunter2",
            "hun\"ter2",
            "ter2",
            "zebra",
            "quartz",
            "maple",
            "onyx",
            "seconds",
        ] {
            assert!(!shown.contains(secret), "{settings}: {shown}");
        }
        assert_eq!(errors.source().len(), text.len());
    }
}

#[test]
fn a_variable_is_named_where_its_value_would_be() {
    let errors = parse(
        "[pipelines.audit.source]\ntype = \"sqlite\"\npath = \"audit.db\"\n\
         [pipelines.audit.processor]\ntimeout = \"${TIMEOUT}\"\n",
    )
    .unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("`timeout` cannot be what it is set to"),
        "{errors}"
    );
    assert!(errors.source().contains("${TIMEOUT}"));
}

#[test]
fn a_name_that_sounds_secret_hides_values_and_not_tables() {
    let errors = parse("[pipelines.tokens.source]\ntype = \"sqlit\"\npath = \"x.db\"\n").unwrap_err();
    assert!(
        errors.to_string().contains("unknown connector `sqlit`"),
        "{errors}"
    );
}
