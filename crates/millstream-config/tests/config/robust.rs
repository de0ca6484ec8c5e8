//! No text makes parsing panic, and no error is without position and remedy.

use millstream_config::Config;
use proptest::prelude::*;

use super::support::{environment, registry};

fn check(text: &str) {
    if let Err(errors) = Config::parse(text, "test.toml", &registry(), &environment) {
        assert!(!errors.is_empty());
        assert_eq!(errors.source().len(), text.len());
        for error in &errors {
            assert!(error.line >= 1 && error.column >= 1);
            assert!(errors.source().get(error.span.clone()).is_some(), "{error}");
            assert!(!error.message.is_empty() && !error.help.is_empty(), "{error}");
        }
    }
}

/// Values of every type, right and wrong.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("\"sqlite\"".to_owned()),
        Just("\"5s\"".to_owned()),
        Just("\"1MiB\"".to_owned()),
        Just("\"${QUEUE}$$${NONE:-x}\"".to_owned()),
        Just("\"${NONE}\"".to_owned()),
        Just("{ type = \"print\", prefix = 3 }".to_owned()),
        Just("[1, \"a\", { b = nan }]".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("'a://b:c@d'".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        (0u32..5).prop_map(|number| number.to_string()),
        any::<f32>()
            .prop_filter("finite", |number| number.is_finite())
            .prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|truth| truth.to_string()),
    ]
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "type",
        "path",
        "queue",
        "lease",
        "url",
        "size",
        "bytes",
        "sink",
        "handler",
        "timeout",
        "limits",
        "source",
        "ordering",
        "order_by",
        "dead_letter",
        "factor",
        "backoff",
        "strategy",
        "messages",
        "\"\"",
        "nonsense",
        "in_flight",
        "concurrency",
        "listen",
        "batchers.db.size",
        "retry.attempts",
        "password",
    ])
}

fn header() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "[host]",
        "[pipelines.audit]",
        "[pipelines.orders]",
        "[pipelines.orders.source]",
        "[pipelines.orders.processor]",
        "[pipelines.orders.batchers]",
        "[pipelines.orders.batchers.out]",
        "[pipelines.orders.limits]",
        "[pipelines.orders.retry]",
        "[pipelines.orders.dead_letter]",
        "[pipelines.orders.rate_limit]",
        "[[pipelines.orders.breaker]]",
        "[pipelines.\"\"]",
        "[other]",
    ])
}

proptest! {
    #[test]
    fn any_text_is_a_config_or_diagnostics(text in "(?s).{0,200}") {
        check(&text);
    }

    #[test]
    fn text_that_looks_like_toml_is_a_config_or_diagnostics(text in "[a-z\\[\\]={}.\"'$#:@/\\-0-9 \n\\\\ü]{0,80}") {
        check(&text);
    }

    #[test]
    fn toml_of_the_right_words_is_a_config_or_diagnostics(
        tables in prop::collection::vec((header(), prop::collection::vec((key(), value()), 0..6)), 0..8),
    ) {
        let mut text = String::new();
        for (header, entries) in tables {
            text.push_str(header);
            text.push('\n');
            for (key, value) in entries {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        check(&text);
    }
}
