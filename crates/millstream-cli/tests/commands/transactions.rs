//! `transactional_id` of the `kafka` connector through `check`.

use crate::support::Scratch;

/// What `check` says of a pipeline from Kafka to this sink, with this in its source.
fn check(source: &str, sink: &str, rest: &str) -> String {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        &format!(
            "[pipelines.a]\n{rest}\n[pipelines.a.source]\ntype = \"kafka\"\nbrokers = \"one:9092, two:9092\"\n\
             group = \"g\"\ntopics = [\"in\"]\n{source}\n[pipelines.a.processor]\nhandler = \"forward\"\n\
             [pipelines.a.batchers.out]\nsink = {{ {sink} }}\n"
        ),
    );
    let ended = scratch.run(&["check", "m.toml"]);
    if ended.code == Some(0) {
        ended.stdout
    } else {
        ended.stderr
    }
}

const ID: &str = "transactional_id = \"pricing-1\"";
const DISCARD: &str = "dead_letter = \"discard\"";

#[test]
fn sinks_of_the_same_brokers_join() {
    let here = "type = \"kafka\", brokers = \"two:9092,one:9092\", topic = \"out\"";
    let dead = "dead_letter = { type = \"kafka\", brokers = \"one:9092,two:9092\", topic = \"dead\", \
                properties = { \"linger.ms\" = \"2\" } }";
    for (source, sink, rest) in [
        (ID, here, DISCARD),
        (ID, here, dead),
        (ID, "type = \"stdout\"", DISCARD),
        (
            "",
            "type = \"kafka\", brokers = \"else:9092\", topic = \"out\"",
            DISCARD,
        ),
    ] {
        assert_eq!(
            check(source, sink, rest),
            "ok: 1 pipeline\n",
            "{source} {sink} {rest}"
        );
    }
}

#[test]
fn what_cannot_be_in_a_transaction_is_told_where_and_why() {
    let here = "type = \"kafka\", brokers = \"one:9092,two:9092\", topic = \"out\"";
    let elsewhere = "type = \"kafka\", brokers = \"else:9092\", topic = \"out\"";
    let slow = format!("{here}, properties = {{ \"linger.ms\" = \"5\" }}");
    let other = "dead_letter = { type = \"kafka\", brokers = \"one:9092,two:9092\", topic = \"dead\", \
                 properties = { \"linger.ms\" = \"2\" } }";
    let dirty = format!("{ID}\nproperties = {{ \"isolation.level\" = \"read_uncommitted\" }}");
    let own = format!("{here}, properties = {{ \"transactional.id\" = \"x\" }}");
    for (source, sink, rest, said) in [
        (
            ID,
            elsewhere,
            DISCARD,
            "this sink writes to `else:9092`, and the source's transactions `pricing-1` are those of `one:9092, two:9092`\n  \
             help: name the source's `brokers`, or remove the source's `transactional_id`",
        ),
        (
            ID,
            &slow,
            other,
            "the property `linger.ms` has another value at another sink of the same transactions",
        ),
        (
            &dirty,
            here,
            DISCARD,
            "the property `isolation.level` must be `read_committed`",
        ),
        (ID, &own, DISCARD, "is what the source's `transactional_id` says"),
        (
            "properties = { \"transactional.id\" = \"x\" }",
            here,
            DISCARD,
            "is what `transactional_id` says",
        ),
        (
            "transactional_id = \"\"",
            here,
            DISCARD,
            "`transactional_id` is empty",
        ),
    ] {
        let errors = check(source, sink, rest);
        assert!(errors.contains(said), "{said}\nin {errors}");
    }
}
