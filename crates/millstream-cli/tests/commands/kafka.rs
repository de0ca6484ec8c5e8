//! `type = "kafka"` in a file.

use crate::support::Scratch;

/// What `check` says of a pipeline that reads Kafka.
fn check(rest: &str, policies: &str) -> (Option<i32>, String) {
    let scratch = Scratch::new();
    let text = format!(
        "[pipelines.orders]\n{rest}\n\
         [pipelines.orders.source]\ntype = \"kafka\"\nbrokers = \"localhost\"\ngroup = \"pricing\"\ntopics = [\"orders\"]\n\
         [pipelines.orders.processor]\nhandler = \"http\"\nurl = \"http://localhost/\"\n{policies}\n"
    );
    scratch.write("orders.toml", &text);
    let ended = scratch.run(&["check", "orders.toml"]);
    (ended.code, ended.stderr)
}

#[test]
fn what_is_given_up_must_go_somewhere_or_stop_its_partition() {
    let (code, said) = check("", "");
    assert_eq!(code, Some(2));
    assert!(
        said.contains("does not keep the messages that are given up"),
        "{said}"
    );
    for dead_letter in ["halt", "discard"] {
        let (code, said) = check(&format!("dead_letter = \"{dead_letter}\""), "");
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn it_redelivers_where_nothing_is_in_order() {
    let redeliver = "[pipelines.orders.retry]\nstrategy = \"redeliver\"";
    let (code, said) = check("dead_letter = \"halt\"", redeliver);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = check("dead_letter = \"halt\"\nordering = \"key\"", redeliver);
    assert_eq!(code, Some(2));
    assert!(said.contains("breaks `ordering`"), "{said}");
}
