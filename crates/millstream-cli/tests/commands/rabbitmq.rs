//! The `rabbitmq` connector's settings through `check`.

use crate::support::Scratch;

/// What `check` says of a pipeline with this source and these lines.
fn check(source: &str, rest: &str) -> String {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        &format!("[pipelines.a]\nprocessor = {{ handler = \"http\", url = \"http://127.0.0.1:1/\" }}\n{rest}\n[pipelines.a.source]\ntype = \"rabbitmq\"\n{source}\n"),
    );
    let ended = scratch.run(&["check", "m.toml"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    if ended.code == Some(0) {
        ended.stdout
    } else {
        ended.stderr
    }
}

const DISCARD: &str = "dead_letter = \"discard\"";

#[test]
fn good_settings_are_good() {
    for (source, rest) in [
        ("url = \"amqp://localhost\"\nqueue = \"q\"", DISCARD),
        (
            "url = [\"amqp://a:hunter2@one/v\", \"amqps://a:hunter2@two/v\"]\nqueue = \"q\"\nprefetch = 100\nconnections = 3\n\
             on_failure = \"requeue\"\nca_file = \"ca.pem\"\nheartbeat = \"5s\"\nconsumer_tag = \"me\"\narguments = { x-priority = 5 }",
            "",
        ),
        (
            "url = \"amqp://localhost\"\nqueue = \"q\"\ndeclare = { arguments = { x-queue-type = \"quorum\", x-dead-letter-exchange = \"dlx\" } }\n\
             bindings = [{ exchange = \"e\", routing_key = \"k.#\" }, { exchange = \"h\", arguments = { x-match = \"any\", a = 1 } }]",
            "retry = { strategy = \"redeliver\" }",
        ),
        (
            "url = \"amqp://localhost\"\nqueue = \"q\"\nmanagement_url = \"http://a:hunter2@localhost:15672\"",
            "",
        ),
        (
            "url = \"amqp://localhost\"\nqueue = \"\"\ndeclare = { exclusive = true, durable = false }",
            DISCARD,
        ),
        (
            "url = \"amqp://localhost\"\nqueue = \"q\"",
            "dead_letter = { type = \"rabbitmq\", url = \"amqp://localhost\", queue = \"dead\", declare = {} }",
        ),
        (
            "url = \"amqp://localhost\"\nqueue = \"q\"",
            "dead_letter = { type = \"rabbitmq\", url = \"amqp://localhost\", exchange = \"dead\", routing_key = \"k\", routing_key_from = \"header:amqp-routing-key\" }",
        ),
    ] {
        assert_eq!(check(source, rest), "ok: 1 pipeline\n", "{source}");
    }
}

/// One line of the source, where it is at fault, and what is said.
#[test]
fn broken_settings_are_told_where_why_and_what_to_do() {
    let url = "url = \"amqp://localhost\"";
    let queue = "queue = \"q\"";
    for (lines, at, why) in [
        (
            [queue, "url = \"http://a:hunter2@one\""],
            "7:7",
            "this URL cannot be used\n  help: the scheme is amqp:// or amqps://",
        ),
        (
            [queue, "url = \"amqp://a:hun/hunter2@one\""],
            "7:7",
            "this URL cannot be used\n  help: a special character in the password",
        ),
        (
            [queue, "url = [\"amqp://one\", \"two\"]"],
            "7:7",
            "URL 2 of the list cannot be used",
        ),
        (
            [queue, "url = []"],
            "7:7",
            "this URL cannot be used\n  help: no URL is given",
        ),
        ([queue, "url = 5"], "7:7", ""),
        ([queue, "url = [\"amqp://one\", 5]"], "7:22", ""),
        (
            [url, "queue = \"\""],
            "7:9",
            "`queue` is empty and nothing declares one",
        ),
    ] {
        let said = check(&lines.join("\n"), DISCARD);
        let expected = format!("m.toml:{at}: {why}");
        assert!(said.contains(&expected), "{expected} in {said}");
    }
    for (line, at, why) in [
        ("prefetch = 0", "8:12", "a `prefetch` of 0 sets no bound"),
        ("connections = 0", "8:15", "without connections nothing is read"),
        ("heartbeat = \"500ms\"", "8:13", "`heartbeat` is below a second"),
        (
            "ca_file = \"ca.pem\"",
            "8:11",
            "`ca_file` without a URL that is amqps://",
        ),
        (
            "bindings = [{ exchange = \"\" }]",
            "8:12",
            "nothing can be bound to the default exchange",
        ),
        (
            "management_url = \"a:hunter2@localhost\"",
            "8:18",
            "this URL cannot be used",
        ),
        ("on_failure = \"ignore\"", "8:14", "`on_failure` cannot be"),
        ("declare = { durabel = true }", "8:13", "unknown key `durabel`"),
        ("prefetch = 70000", "8:12", ""),
        (
            "connections = 2\ndeclare = { exclusive = true }",
            "8:15",
            "an exclusive queue can be read by one connection",
        ),
        (
            "connections = 2\ndeclare = { arguments = { x-queue-type = \"stream\" } }",
            "8:15",
            "each connection would read the whole stream",
        ),
        (
            "on_failure = \"requeue\"\narguments = { x-stream-offset = \"first\" }",
            "8:14",
            "nothing can be put back into a stream",
        ),
        (
            "declare = { durable = false, arguments = { x-queue-type = \"stream\" } }",
            "8:11",
            "a stream is durable",
        ),
        (
            "arguments = { x-stream-offset = \"begin\" }",
            "8:13",
            "a stream cannot be begun there",
        ),
        (
            "arguments = { x-stream-offset = -1 }",
            "8:13",
            "a stream cannot be begun there",
        ),
    ] {
        let said = check(&format!("{url}\n{queue}\n{line}"), DISCARD);
        let expected = format!("m.toml:{at}: {why}");
        assert!(said.contains(&expected), "{expected} in {said}");
    }
}

#[test]
fn what_is_given_up_must_be_kept_somewhere() {
    let said = check("url = \"amqp://localhost\"\nqueue = \"q\"", "");
    assert!(
        said.contains("this source does not keep the messages that are given up"),
        "{said}"
    );
}

#[test]
fn an_order_and_several_connections_do_not_go_together() {
    let said = check(
        "url = \"amqp://localhost\"\nqueue = \"q\"\nconnections = 2",
        "dead_letter = \"discard\"\nordering = \"key\"",
    );
    assert!(
        said.contains("between two connections messages lose their order"),
        "{said}"
    );
}

#[test]
fn a_sink_writes_to_a_queue_or_to_an_exchange() {
    let url = "url = \"amqp://localhost\"";
    for (keys, why) in [
        ("", "a sink writes either to a `queue` or to an `exchange`"),
        (
            "queue = \"a\", exchange = \"b\"",
            "a sink writes either to a `queue` or to an `exchange`",
        ),
        ("queue = \"\"", "`queue` is empty"),
        (
            "queue = \"a\", routing_key = \"b\"",
            "`routing_key` has no meaning for a queue",
        ),
        (
            "queue = \"a\", declare = { exclusive = true }",
            "an exclusive queue goes with the connection",
        ),
        ("exchange = \"a\", declare = {}", "`declare` is for a queue"),
        (
            "exchange = \"a\", routing_key_from = \"header:\"",
            "there is no routing key to be had from there",
        ),
    ] {
        let comma = if keys.is_empty() { "" } else { ", " };
        let said = check(
            "url = \"amqp://localhost\"\nqueue = \"q\"",
            &format!("dead_letter = {{ type = \"rabbitmq\", {url}{comma}{keys} }}"),
        );
        assert!(said.contains(why), "{why} in {said}");
    }
}
