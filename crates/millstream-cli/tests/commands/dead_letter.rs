//! `dead-letter` over the stores that need no broker.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use std::time::Duration;

use millstream_brokers::{ElasticMq, SqsProxy};
use millstream_core::{Headers, Outgoing};
use millstream_sqlite::Queue;

use crate::support::{Process, Scratch, envelopes, until};

const QUEUES: &str = r#"
    [pipelines.orders]
    source = { type = "sqlite", path = "q.db", queue = "orders", poll = "5ms" }
    processor = { handler = "http", url = "http://127.0.0.1:9/" }
    dead_letter = { type = "sqlite", path = "q.db", queue = "dead" }
"#;

const FILES: &str = r#"
    [pipelines.orders]
    source = { type = "sqlite", path = "q.db", queue = "orders", poll = "5ms" }
    processor = { handler = "http", url = "http://127.0.0.1:9/" }
    dead_letter = { type = "file", path = "dead.jsonl" }
"#;

/// A dead letter of this tenant, as the engine writes it.
fn letter(payload: &str, pipeline: &str, reason: &str, tenant: &str, replays: &str) -> Outgoing {
    let mut headers: Headers = [
        ("tenant", tenant),
        ("millstream-pipeline", pipeline),
        ("millstream-stage", "processor"),
        ("millstream-reason", reason),
        ("millstream-error", "no such sku"),
        ("millstream-attempts", "5"),
        ("millstream-deliveries", "1"),
        ("millstream-origin", "orders@1"),
        ("millstream-first-failed-at", "1700000000000"),
        ("millstream-failed-at", "1700000001000"),
    ]
    .into_iter()
    .collect();
    if !replays.is_empty() {
        headers.push("millstream-replays", replays);
    }
    Outgoing {
        headers,
        ..Outgoing::new(payload.to_owned()).with_key(format!("key of {payload}"))
    }
}

fn four() -> [Outgoing; 4] {
    [
        letter("secret-1", "orders", "attempts", "a", ""),
        letter("secret-2", "orders", "decode", "a", "1"),
        letter("secret-3", "orders", "attempts", "b", "3"),
        letter("secret-4", "invoices", "attempts", "a", ""),
    ]
}

fn queue(scratch: &Scratch, name: &str) -> Queue {
    Queue::open(scratch.path("q.db"), name).unwrap()
}

fn payloads(queue: &Queue) -> Vec<String> {
    let stored = queue.list(0, usize::MAX).unwrap().into_iter();
    stored
        .map(|stored| String::from_utf8(stored.payload.to_vec()).unwrap())
        .collect()
}

/// What each command says over these four letters, whatever they lie in.
fn looks_after(scratch: &Scratch) {
    let run = |arguments: &str| {
        let mut words: Vec<_> = arguments.split(' ').collect();
        words.splice(0..0, ["dead-letter"]);
        words.extend(["--pipeline", "orders"]);
        let ended = scratch.run(&words);
        assert_eq!(ended.code, Some(0), "{arguments}: {ended:?}");
        ended
    };

    let listed = run("list m.toml");
    assert_eq!(listed.stdout.lines().count(), 4, "{listed:?}");
    assert!(
        listed
            .stdout
            .contains("2023-11-14T22:13:21Z  attempts  processor  5"),
        "{listed:?}"
    );
    assert!(!listed.stdout.contains("secret"), "{listed:?}");
    assert!(
        listed.stderr.contains("passed over 1 letter of other pipelines"),
        "{listed:?}"
    );

    let listed = envelopes(&run("list m.toml --json --filter header:tenant=a").stdout);
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[1]["payload"], "secret-2");
    let id = listed[1]["id"].as_str().unwrap();
    let shown = run(&format!("show m.toml {id}")).stdout;
    assert!(
        shown.contains("millstream-reason: decode\n") && shown.ends_with("\nsecret-2\n"),
        "{shown}"
    );

    assert!(run("list m.toml --filter age<1h").stdout.is_empty());
    let would = run("replay m.toml --dry-run --filter reason=attempts");
    assert!(would.stdout.ends_with("would replay 1 message\npassed over 1 letter that came back 3 times already: --max-replays lets them\n"), "{would:?}");

    let replayed = run("replay m.toml --filter reason=decode --filter age>1h");
    assert_eq!(replayed.stdout, "replayed 1 message\n", "{replayed:?}");
    let orders = queue(scratch, "orders");
    let [again] = &orders.list(0, 9).unwrap()[..] else {
        panic!("{:?}", payloads(&orders));
    };
    assert_eq!(
        (&*again.payload, again.key.as_deref()),
        (&b"secret-2"[..], Some(&b"key of secret-2"[..]))
    );
    assert_eq!(
        again.headers.iter().collect::<Vec<_>>(),
        [
            ("tenant", "a"),
            ("millstream-first-failed-at", "1700000000000"),
            ("millstream-replays", "2")
        ]
    );

    assert_eq!(
        run("replay m.toml").stdout.lines().next(),
        Some("replayed 1 message")
    );
    assert_eq!(payloads(&orders), ["secret-2", "secret-1"]);
    let lasts = run("replay m.toml --max-replays 4 --rate 100");
    assert_eq!(lasts.stdout, "replayed 1 message\n");

    assert_eq!(
        run("purge m.toml --dry-run --filter pipeline=invoices")
            .stdout
            .lines()
            .last(),
        Some("would purge 1 letter")
    );
    assert_eq!(
        run("purge m.toml --filter pipeline=invoices").stdout,
        "purged 1 letter\n"
    );
    assert_eq!(run("list m.toml --filter pipeline!=none").stdout, "");
}

#[test]
fn letters_in_a_queue_are_looked_after() {
    let scratch = Scratch::new();
    scratch.write("m.toml", QUEUES);
    queue(&scratch, "dead").publish(&four()).unwrap();
    looks_after(&scratch);
}

#[test]
fn letters_in_a_file_are_looked_after() {
    let scratch = Scratch::new();
    scratch.write("m.toml", FILES);
    // The file sink writes them, through a pipeline that forwards.
    scratch.write(
        "fill.toml",
        r#"
            [pipelines.fill]
            source = { type = "sqlite", path = "q.db", queue = "fill", poll = "5ms" }
            processor.handler = "forward"
            batchers.out = { sink = { type = "file", path = "dead.jsonl" }, max_age = "5ms" }
        "#,
    );
    queue(&scratch, "fill").publish(&four()).unwrap();
    let filled = scratch.run(&["run", "fill.toml", "--until-idle", "300ms"]);
    assert_eq!(filled.code, Some(0), "{filled:?}");
    looks_after(&scratch);
}

/// What a queue keeps beside itself is replayed to the group that gave it up, and to no other.
#[test]
fn letters_kept_beside_their_queue_go_back_to_their_group() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        r#"
            [pipelines.orders]
            source = { type = "sqlite", path = "q.db", queue = "orders", group = "a", poll = "5ms" }
            processor = { handler = "http", url = "http://127.0.0.1:9/" }
            retry = { attempts = 2, backoff = "10ms", jitter = false }
        "#,
    );
    let orders = queue(&scratch, "orders");
    orders.add_group("a").unwrap();
    orders
        .publish(&[Outgoing::new("one").with_header("tenant", "t")])
        .unwrap();
    // Group b has the message too.
    orders.add_group("b").unwrap();
    let ended = scratch.run(&["run", "m.toml", "--until-idle", "300ms"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let chosen = ["m.toml", "--pipeline", "orders", "--json"];
    let listed = scratch.run(&[&["dead-letter", "list"][..], &chosen].concat());
    let [letter] = &envelopes(&listed.stdout)[..] else {
        panic!("{listed:?}");
    };
    let headers = &letter["headers"];
    assert_eq!(
        (&headers["millstream-reason"], &headers["tenant"]),
        (&"attempts".into(), &"t".into())
    );
    let time = |name: &str| headers[name].as_str().unwrap().parse::<u64>().unwrap();
    let (first, last) = (time("millstream-first-failed-at"), time("millstream-failed-at"));
    assert!(first + 10 <= last, "{first} {last}");
    let replayed = scratch.run(&["dead-letter", "replay", "m.toml", "--pipeline", "orders"]);
    assert_eq!(replayed.stdout, "replayed 1 message\n", "{replayed:?}");
    assert_eq!(orders.group_counts("a").unwrap().ready, 1);
    assert_eq!(orders.group_counts("b").unwrap().ready, 1);
    assert_eq!(orders.counts().unwrap().dead, 0);
}

/// P1: a replay that is killed loses nothing, and what it repeats is what it had sent and not removed: a chunk, which is
/// a tenth of a second's worth.
#[test]
fn a_replay_that_is_killed_is_taken_up_again() {
    const LETTERS: usize = 1_000;
    let scratch = Scratch::new();
    scratch.write("m.toml", QUEUES);
    let letters: Vec<_> = (0..LETTERS)
        .map(|number| letter(&number.to_string(), "orders", "attempts", "a", ""))
        .collect();
    let dead = queue(&scratch, "dead");
    dead.publish(&letters).unwrap();
    let orders = queue(&scratch, "orders");
    let replay = ["dead-letter", "replay", "m.toml", "--pipeline", "orders"];
    let slow = scratch.start(&[&replay[..], &["--rate", "300"]].concat());
    until("some are replayed", || {
        (orders.counts().unwrap().ready > 100).then_some(())
    });
    slow.signal("-KILL");
    assert_eq!(slow.end().code, None);
    let before = orders.counts().unwrap().ready as usize;
    assert!(before < LETTERS, "all were replayed before it was killed");

    let ended = Process::start(&mut scratch.command(&replay)).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(dead.counts().unwrap().ready, 0);
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for payload in payloads(&orders) {
        *times.entry(payload.parse().unwrap()).or_default() += 1;
    }
    assert_eq!(times.len(), LETTERS, "some were lost");
    let repeats: usize = times.values().map(|times| times - 1).sum();
    assert!(repeats <= 30, "{repeats} were repeated");
}

/// One that is asked to end has removed what it sent.
#[test]
fn a_replay_that_is_interrupted_repeats_nothing() {
    let scratch = Scratch::new();
    scratch.write("m.toml", QUEUES);
    let letters: Vec<_> = (0..500)
        .map(|number| letter(&number.to_string(), "orders", "attempts", "a", ""))
        .collect();
    let (dead, orders) = (queue(&scratch, "dead"), queue(&scratch, "orders"));
    dead.publish(&letters).unwrap();
    let slow = scratch.start(&[
        "dead-letter",
        "replay",
        "m.toml",
        "--pipeline",
        "orders",
        "--rate",
        "100",
    ]);
    until("some are replayed", || {
        (orders.counts().unwrap().ready > 20).then_some(())
    });
    slow.signal("-TERM");
    let ended = slow.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("SIGTERM"), "{ended:?}");
    assert_eq!(dead.counts().unwrap().ready + orders.counts().unwrap().ready, 500);
}

/// How many there are is said beside the table, also where that is empty; who has read enough of it waits for no more.
#[test]
fn a_list_says_how_many_there_are_and_ends_with_its_reader() {
    let scratch = Scratch::new();
    scratch.write("m.toml", QUEUES);
    let letters: Vec<_> = (0..1_200)
        .map(|number| letter(&number.to_string(), "orders", "attempts", "a", ""))
        .collect();
    queue(&scratch, "dead").publish(&letters).unwrap();
    let list = ["dead-letter", "list", "m.toml", "--pipeline", "orders"];
    for (filter, said) in [
        ("reason=attempts", "1,200 letters\n"),
        ("reason=age", "0 letters\n"),
    ] {
        let listed = scratch.run(&[&list[..], &["--filter", filter]].concat());
        assert_eq!((listed.code, listed.stderr.as_str()), (Some(0), said));
    }
    let mut child = scratch
        .command(&list)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "", "it has read on");
}

/// A pipeline has its place in a file by bytes, which a visit that removes lines moves: one waits for the other.
#[test]
fn a_file_of_letters_is_read_by_no_pipeline_while_they_are_replayed() {
    let scratch = Scratch::new();
    scratch.write("m.toml", FILES);
    scratch.write(
        "again.toml",
        r#"
            [pipelines.again]
            source = { type = "file", path = "dead.jsonl", format = "envelopes", follow = true }
            processor = { handler = "forward" }
            dead_letter = "discard"
            batchers.out = { size = 1, sink = { type = "sqlite", path = "q.db", queue = "again" } }
        "#,
    );
    let lines: String = (0..200)
        .map(|number| format!("{{\"payload\":\"{number}\"}}\n"))
        .collect();
    scratch.write("dead.jsonl", &lines);
    let orders = queue(&scratch, "orders");
    let replay = ["dead-letter", "replay", "m.toml", "--pipeline", "orders"];
    let slow = scratch.start(&[&replay[..], &["--rate", "20"]].concat());
    until("some are replayed", || {
        (orders.counts().unwrap().ready > 4).then_some(())
    });
    let again = scratch.start(&["run", "again.toml"]);
    again.until_says("or removing lines of it");
    slow.signal("-TERM");
    assert_eq!(slow.end().code, Some(1));
    let replayed = orders.counts().unwrap().ready;
    let read = queue(&scratch, "again");
    until("the rest is read", || {
        (read.counts().unwrap().ready + replayed == 200).then_some(())
    });
    again.signal("-TERM");
    let ended = again.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let all: std::collections::BTreeSet<_> = payloads(&orders).into_iter().chain(payloads(&read)).collect();
    assert_eq!(all.len(), 200, "each once");
}

/// While nothing is chosen there is nothing to wait for: a command that is asked to end does so, and says what was done.
#[test]
fn a_command_that_is_interrupted_while_it_looks_ends_at_once() {
    let broker = ElasticMq::start_in_memory().unwrap_or_else(|error| panic!("{error}"));
    broker.create_queue("dead", &[]).unwrap();
    let scratch = Scratch::new();
    for (arguments, said) in [
        ("replay --filter reason=none", "replayed 0 messages: SIGINT"),
        ("replay --dry-run", "would replay 0 messages: SIGINT"),
        ("purge --filter reason=none", "purged 0 letters: SIGINT"),
        ("list", "error: SIGINT"),
        ("show 7", "error: SIGINT"),
    ] {
        // The broker is slow to answer, for longer than a test waits.
        let proxy = SqsProxy::start(broker.port()).unwrap();
        proxy.hold("ReceiveMessage", Duration::from_secs(300));
        scratch.write(
            "m.toml",
            &format!(
                r#"
                    [pipelines.orders]
                    source = {{ type = "sqlite", path = "q.db", queue = "orders" }}
                    processor = {{ handler = "http", url = "http://127.0.0.1:9/" }}
                    dead_letter = {{ type = "sqs", queue = "dead", endpoint_url = "{}" }}
                "#,
                proxy.url()
            ),
        );
        let mut words: Vec<_> = arguments.split(' ').collect();
        words.insert(0, "dead-letter");
        words.insert(2, "m.toml");
        words.extend(["--pipeline", "orders"]);
        let mut command = scratch.command(&words);
        command
            .env("AWS_ACCESS_KEY_ID", "x")
            .env("AWS_SECRET_ACCESS_KEY", "x")
            .env("AWS_REGION", "elasticmq");
        let looking = Process::start(&mut command);
        until("it looks", || (proxy.calls("ReceiveMessage") > 0).then_some(()));
        looking.signal("-INT");
        let ended = looking.end();
        assert_eq!(ended.code, Some(1), "{arguments}: {ended:?}");
        assert!(ended.stderr.contains(said), "{arguments}: {ended:?}");
    }
}

/// A letter goes back with the priority that its message had.
#[test]
fn a_replay_keeps_priorities() {
    let scratch = Scratch::new();
    scratch.write(
        "m.toml",
        r#"
            [pipelines.orders]
            source = { type = "sqlite", path = "q.db", queue = "orders", poll = "5ms" }
            processor = { handler = "http", url = "http://127.0.0.1:9/" }
            retry = { attempts = 1 }
        "#,
    );
    let orders = queue(&scratch, "orders");
    let priorities = [0, 7, i32::MAX];
    let messages = priorities.map(|priority| Outgoing {
        priority,
        ..Outgoing::new(priority.to_string())
    });
    orders.publish(&messages).unwrap();
    let ended = scratch.run(&["run", "m.toml", "--until-idle", "300ms"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(orders.counts().unwrap().dead, 3);
    let replayed = scratch.run(&["dead-letter", "replay", "m.toml", "--pipeline", "orders"]);
    assert_eq!(replayed.stdout, "replayed 3 messages\n", "{replayed:?}");
    for stored in orders.list(0, 9).unwrap() {
        assert_eq!(stored.payload, stored.priority.to_string());
    }

    // They keep it in a queue of their own too.
    scratch.write("m.toml", &format!("{QUEUES}    retry = {{ attempts = 1 }}\n"));
    let ended = scratch.run(&["run", "m.toml", "--until-idle", "300ms"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let counts = orders.counts().unwrap();
    assert_eq!((counts.ready, counts.dead), (0, 0));
    let dead = queue(&scratch, "dead").list(0, 9).unwrap();
    let replayed = scratch.run(&["dead-letter", "replay", "m.toml", "--pipeline", "orders"]);
    assert_eq!(replayed.stdout, "replayed 3 messages\n", "{replayed:?}");
    let all = orders.list(0, 9).unwrap();
    assert_eq!((dead.len(), all.len()), (3, 3));
    for stored in dead.into_iter().chain(all) {
        assert_eq!(stored.payload, stored.priority.to_string());
    }
}

/// What cannot be shown safely on a terminal is in a pipe as it is.
#[test]
fn a_payload_comes_out_as_it_is_where_no_terminal_is() {
    let scratch = Scratch::new();
    scratch.write("m.toml", QUEUES);
    let payload = b"\x1b[2J\xff\x00\n".to_vec();
    queue(&scratch, "dead")
        .publish(&[Outgoing::new("\u{1b}[2J"), Outgoing::new(payload.clone())])
        .unwrap();
    let show = |arguments: &[&str]| {
        let words = [
            &["dead-letter", "show", "m.toml", "--pipeline", "orders"],
            arguments,
        ]
        .concat();
        let output = scratch.command(&words).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        output.stdout
    };
    assert!(show(&["1"]).ends_with(b"\n\n\x1b[2J\n"));
    let said = String::from_utf8(show(&["2"])).unwrap();
    assert!(said.contains("7 bytes that are no text: --raw"), "{said}");
    assert_eq!(show(&["2", "--raw"]), payload);
}

#[test]
fn what_cannot_be_read_again_says_what_to_do() {
    let scratch = Scratch::new();
    let refused = |dead_letter: &str| {
        scratch.write(
            "m.toml",
            &format!(
                "[pipelines.orders]\nsource = {{ type = \"sqlite\", path = \"q.db\", queue = \"orders\" }}\n\
                 processor = {{ handler = \"http\", url = \"http://127.0.0.1:9/\" }}\ndead_letter = {dead_letter}\n"
            ),
        );
        let ended = scratch.run(&["dead-letter", "list", "m.toml", "--pipeline", "orders"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.stderr
    };
    let said = refused("{ type = \"stdout\" }");
    assert!(
        said.contains("name a queue, a topic or a file in [pipelines.orders.dead_letter]"),
        "{said}"
    );
    let said = refused("\"discard\"");
    assert!(
        said.contains("keeps no dead letters: `dead_letter` is \"discard\""),
        "{said}"
    );

    scratch.write("m.toml", QUEUES);
    let said = scratch.run(&["dead-letter", "list", "m.toml", "--pipeline", "order"]);
    assert_eq!(
        (said.code, &*said.stderr),
        (
            Some(1),
            "error: there is no pipeline `order`; the file has `orders`\n"
        )
    );
    let said = scratch.run(&["dead-letter", "show", "m.toml", "7", "--pipeline", "orders"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("there is no letter `7`"), "{said:?}");
    let said = scratch.run(&[
        "dead-letter",
        "list",
        "m.toml",
        "--pipeline",
        "orders",
        "--filter",
        "colour=red",
    ]);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("write FIELD=VALUE"), "{said:?}");
    scratch.write("m.toml", "[pipelines.orders]\n");
    let said = scratch.run(&["dead-letter", "list", "m.toml", "--pipeline", "orders"]);
    assert_eq!(said.code, Some(2));
}
