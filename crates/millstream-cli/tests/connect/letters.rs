//! `dead-letter` over brokers.

use millstream_brokers::{ElasticMq, Kafka, RabbitMq, Series};
use serde_json::Value;

use crate::support::Checked;

/// Pipelines over two queues: `orders` reads one and its letters go to the other, into which `fill` publishes; the
/// letters of `seen` are what `orders` would read.
struct Place {
    file: Checked,
    text: String,
}

impl Place {
    fn new(environment: impl IntoIterator<Item = (&'static str, String)>, source: &str, sink: &str) -> Self {
        let http = "processor = { handler = \"http\", url = \"http://127.0.0.1:9/\" }";
        let side = |template: &str, name: &str| template.replace("NAME", name);
        let mut text = String::new();
        for (name, from, dead_letter) in [
            ("orders", "orders", side(sink, "dead")),
            ("fill", "dead", "\"discard\"".to_owned()),
            ("seen", "dead", side(sink, "orders")),
        ] {
            let source = side(source, from);
            text.push_str(&format!(
                "[pipelines.{name}]\nsource = {source}\n{http}\ndead_letter = {dead_letter}\n"
            ));
        }
        Self {
            file: Checked::new(&text, environment),
            text,
        }
    }

    fn publish(&self, pipeline: &str, lines: &str) {
        let arguments = ["publish", "m.toml", "--pipeline", pipeline, "--json"];
        let (said, complaints, code) = self.file.run(&arguments, &self.text, lines);
        assert_eq!(code, Some(0), "{said}{complaints}");
    }

    fn letters(&self, command: &str, pipeline: &str) -> String {
        let arguments = format!("dead-letter {command} --pipeline {pipeline}");
        let arguments: Vec<_> = arguments.split(' ').collect();
        let (said, complaints, code) = self.file.run(&arguments, &self.text, "");
        assert_eq!(code, Some(0), "{command}: {said}{complaints}");
        assert!(!complaints.contains("secret"), "{complaints}");
        said
    }

    /// Payloads, in the order of their texts, and ids.
    fn listed(&self, filter: &str, pipeline: &str) -> Vec<(String, Value)> {
        let said = self.letters(&format!("list m.toml --json{filter}"), pipeline);
        let envelopes = said
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut all: Vec<_> = envelopes
            .map(|envelope| (envelope["payload"].as_str().unwrap().to_owned(), envelope))
            .collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    fn payloads(&self, filter: &str) -> Vec<String> {
        let listed = self.listed(filter, "orders").into_iter();
        listed.map(|(payload, _)| payload).collect()
    }

    /// Four letters, of which one is another pipeline's.
    fn fill(&self) {
        let mut lines = String::new();
        for (payload, pipeline, reason, tenant) in [
            ("secret-1", "orders", "attempts", "a"),
            ("secret-2", "orders", "decode", "a"),
            ("secret-3", "orders", "attempts", "b"),
            ("secret-4", "invoices", "attempts", "a"),
        ] {
            lines.push_str(&format!(
                "{{\"payload\": \"{payload}\", \"key\": \"k\", \"headers\": {{\"tenant\": \"{tenant}\", \
                 \"millstream-pipeline\": \"{pipeline}\", \"millstream-stage\": \"processor\", \
                 \"millstream-reason\": \"{reason}\", \"millstream-error\": \"no such sku\", \
                 \"millstream-attempts\": \"5\", \"millstream-first-failed-at\": \"1700000000000\", \
                 \"millstream-failed-at\": \"1700000001000\"}}}}\n"
            ));
        }
        self.publish("fill", &lines);
    }

    /// Lists, shows and replays; what is left are the first and the third letter, and the other pipeline's.
    fn looks_and_replays(&self) {
        self.fill();
        let listed = self.letters("list m.toml", "orders");
        assert_eq!(listed.lines().count(), 4, "{listed}");
        assert!(!listed.contains("secret"), "{listed}");
        // To look changes nothing.
        let once = self.listed("", "orders");
        let ids = |listed: &[(String, Value)]| {
            listed
                .iter()
                .map(|(_, letter)| letter["id"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&once), ids(&self.listed("", "orders")));
        assert_eq!(self.payloads(""), ["secret-1", "secret-2", "secret-3"]);
        assert_eq!(self.payloads(" --filter pipeline!=none").len(), 4);
        let id = once[1].1["id"].as_str().unwrap();
        let shown = self.letters(&format!("show m.toml {id}"), "orders");
        assert!(
            shown.contains("millstream-reason: decode\n") && shown.ends_with("\nsecret-2\n"),
            "{shown}"
        );

        let replayed = self.letters("replay m.toml --filter reason=decode", "orders");
        assert_eq!(replayed, "replayed 1 message\n");
        let seen = self.listed("", "seen");
        let [(payload, envelope)] = &seen[..] else {
            panic!("{seen:?}");
        };
        assert_eq!((&**payload, &envelope["key"]), ("secret-2", &"k".into()));
        let headers = &envelope["headers"];
        assert_eq!(
            (
                &headers["tenant"],
                &headers["millstream-replays"],
                &headers["millstream-first-failed-at"]
            ),
            (&"a".into(), &"1".into(), &"1700000000000".into())
        );
        assert_eq!(headers.get("millstream-reason"), None);
        assert_eq!(self.payloads(""), ["secret-1", "secret-3"]);
        // It has been replayed, and is not replayed again.
        let again = self.letters("replay m.toml --filter reason=decode", "orders");
        assert_eq!(again, "replayed 0 messages\n");
    }

    /// In a store that can remove any letter.
    fn purges(&self) {
        let purged = self.letters("purge m.toml --filter header:tenant=b", "orders");
        assert_eq!(purged, "purged 1 letter\n");
        assert_eq!(
            self.payloads(" --filter pipeline!=none"),
            ["secret-1", "secret-4"]
        );
        assert_eq!(self.letters("replay m.toml", "orders"), "replayed 1 message\n");
        assert_eq!(
            self.letters("purge m.toml --filter pipeline!=none", "orders"),
            "purged 1 letter\n"
        );
        assert_eq!(self.payloads(" --filter pipeline!=none"), [""; 0]);
        assert_eq!(self.listed("", "seen").len(), 2);
    }
}

#[test]
fn letters_in_rabbitmq_are_looked_after() {
    for (series, kind) in [(Series::V3, "classic"), (Series::V4, "quorum")] {
        let broker = RabbitMq::builder(series)
            .start()
            .unwrap_or_else(|error| panic!("{error}"));
        let declare = format!("declare = {{ arguments = {{ x-queue-type = \"{kind}\" }} }}");
        let place = Place::new(
            [("RABBITMQ", broker.url())],
            &format!("{{ type = \"rabbitmq\", url = \"${{RABBITMQ}}\", queue = \"NAME\", {declare} }}"),
            "{ type = \"rabbitmq\", url = \"${RABBITMQ}\", queue = \"NAME\" }",
        );
        place.looks_and_replays();
        place.purges();
    }
}

/// P1: a quorum queue drops what it has taken back so often; neither looks, nor replays and purges that choose other
/// letters, bring it there.
#[test]
fn letters_in_a_quorum_queue_outlive_whatever_passes_them_over() {
    for series in [Series::V3, Series::V4] {
        let broker = RabbitMq::builder(series)
            .start()
            .unwrap_or_else(|error| panic!("{error}"));
        let declare = "declare = { arguments = { x-queue-type = \"quorum\", x-delivery-limit = 2 } }";
        let place = Place::new(
            [("RABBITMQ", broker.url())],
            &format!("{{ type = \"rabbitmq\", url = \"${{RABBITMQ}}\", queue = \"NAME\", {declare} }}"),
            "{ type = \"rabbitmq\", url = \"${RABBITMQ}\", queue = \"NAME\" }",
        );
        place.fill();
        // A queue to replay to.
        place.publish("orders", "{\"payload\": \"own\"}\n");
        for round in 0..5 {
            let listed = place.letters("list m.toml", "orders");
            assert_eq!(listed.lines().count(), 4, "{round}: {listed}");
            assert_eq!(
                place.letters("replay m.toml --filter reason=none", "orders"),
                "replayed 0 messages\n"
            );
            assert_eq!(
                place.letters("purge m.toml --filter reason=none", "orders"),
                "purged 0 letters\n"
            );
        }
        assert_eq!(place.letters("replay m.toml", "orders"), "replayed 3 messages\n");
    }
}

#[test]
fn letters_in_sqs_are_looked_after() {
    let broker = ElasticMq::start_in_memory().unwrap_or_else(|error| panic!("{error}"));
    for queue in ["orders", "dead"] {
        broker.create_queue(queue, &[]).unwrap();
    }
    let place = Place::new(
        [("SQS", broker.url())],
        "{ type = \"sqs\", queue = \"NAME\", endpoint_url = \"${SQS}\" }",
        "{ type = \"sqs\", queue = \"NAME\", endpoint_url = \"${SQS}\" }",
    );
    place.looks_and_replays();
    place.purges();
}

#[test]
fn letters_in_kafka_are_looked_after() {
    let broker = Kafka::builder()
        .setting("auto.create.topics.enable", "true")
        .setting("num.partitions", "1")
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let place = Place::new(
        [("KAFKA", broker.brokers())],
        "{ type = \"kafka\", brokers = \"${KAFKA}\", group = \"g\", topics = [\"NAME\"] }",
        "{ type = \"kafka\", brokers = \"${KAFKA}\", topic = \"NAME\" }",
    );
    place.looks_and_replays();
    // Only what comes first is removed.
    let purged = place.letters("purge m.toml --filter header:tenant=b", "orders");
    assert_eq!(
        purged,
        "purged 0 letters\nkept 1 letter behind letters that stay: this store removes only what comes first\n"
    );
    assert_eq!(place.payloads(""), ["secret-1", "secret-3"]);
    assert_eq!(place.letters("purge m.toml", "orders"), "purged 2 letters\n");
    assert_eq!(place.payloads(" --filter pipeline!=none"), ["secret-4"]);
    assert_eq!(
        place.letters("purge m.toml --filter pipeline!=none", "orders"),
        "purged 1 letter\n"
    );
    assert_eq!(place.payloads(" --filter pipeline!=none"), [""; 0]);
    // What comes later is there.
    place.fill();
    assert_eq!(place.payloads("").len(), 3);
    // Of what others commit for the group of the replays a command says what that means.
    let others = r#"
        [pipelines.others]
        source = { type = "kafka", brokers = "${KAFKA}", group = "millstream.replay.dead", topics = ["dead"] }
        processor = { handler = "forward" }
        dead_letter = "discard"
        batchers.out = { max_age = "10ms", sink = { type = "stdout" } }
    "#;
    let list = ["dead-letter", "list", "m.toml", "--pipeline", "orders"];
    let warning = "others than a replay have committed";
    let (_, complaints, _) = place.file.run(&list, &place.text, "");
    assert!(!complaints.contains(warning), "{complaints}");
    let (said, complaints, code) = place
        .file
        .run(&["run", "m.toml", "--until-idle", "5s"], others, "");
    assert_eq!((said.lines().count(), code), (4, Some(0)), "{said}{complaints}");
    let (said, complaints, _) = place.file.run(&list, &place.text, "");
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(complaints.contains(warning), "{complaints}");
}
