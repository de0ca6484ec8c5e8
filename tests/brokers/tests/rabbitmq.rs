//! RabbitMQ started, killed, started again, told, and left behind by a test that was killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use millstream_brokers::{Builder, RabbitMq, Series, StartError};

/// Blocking, as the harness is, on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn connect(broker: &RabbitMq) -> (Connection, Channel) {
    let connection = Connection::connect(&broker.url(), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    (connection, channel)
}

async fn declare(channel: &Channel) {
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("q".into(), durable, FieldTable::default())
        .await
        .unwrap();
}

async fn publish(channel: &Channel, payload: &[u8]) {
    let persistent = BasicProperties::default().with_delivery_mode(2);
    channel
        .basic_publish(
            "".into(),
            "q".into(),
            BasicPublishOptions::default(),
            payload,
            persistent,
        )
        .await
        .unwrap()
        .await
        .unwrap();
}

async fn get(channel: &Channel) -> Option<Vec<u8>> {
    let got = channel
        .basic_get("q".into(), BasicGetOptions::default())
        .await
        .unwrap();
    got.map(|got| got.delivery.data.clone())
}

/// The processes that have this in their environment, as all of a broker's have its folder.
fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(text) {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&command).replace('\0', " "));
        }
    }
    found
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not so after 10 s: {what}");
}

fn data_survives_a_kill(builder: &Builder) {
    let mut broker = builder.start().unwrap();
    let (url, id) = (broker.url(), broker.id());
    block_on(async {
        let (_connection, channel) = connect(&broker).await;
        declare(&channel).await;
        publish(&channel, b"kept").await;
    });
    broker.flush_declarations().unwrap();
    broker.kill();
    assert!(!broker.runs());
    assert!(std::net::TcpStream::connect(("127.0.0.1", broker.port())).is_err());
    broker.start_again().unwrap();
    assert_eq!(broker.url(), url);
    assert_ne!(broker.id(), id);
    block_on(async {
        let (_connection, channel) = connect(&broker).await;
        assert_eq!(get(&channel).await.as_deref(), Some(&b"kept"[..]));
    });
}

#[test]
fn a_persistent_message_survives_a_kill_of_rabbitmq_3() {
    data_survives_a_kill(&RabbitMq::builder(Series::V3));
}

#[test]
fn a_persistent_message_survives_a_kill_of_rabbitmq_4() {
    data_survives_a_kill(&RabbitMq::builder(Series::V4));
}

#[test]
fn two_brokers_run_side_by_side_and_each_does_as_it_is_told() {
    let mut three = RabbitMq::builder(Series::V3)
        .management(true)
        .tls(true)
        .start()
        .unwrap();
    let mut four = RabbitMq::builder(Series::V4)
        .management(true)
        .tls(true)
        .start()
        .unwrap();
    assert!(three.version().starts_with("3."));
    assert!(four.version().starts_with("4."));
    for broker in [&three, &four] {
        is_told(broker);
    }
    let folders = [&three, &four].map(|broker| broker.log_path().parent().unwrap().to_owned());
    three.stop().unwrap();
    let log = std::fs::read_to_string(three.log_path()).unwrap();
    assert!(log.contains("SIGTERM"), "it was asked to: {log}");
    four.stop().unwrap();
    drop((three, four));
    for folder in folders {
        assert!(!folder.exists());
    }
}

fn is_told(broker: &RabbitMq) {
    assert_eq!(broker.eval("1 + 2").unwrap(), "3");
    assert!(broker.eval("error(asked_for)").is_err());
    assert_eq!(broker.connections().unwrap(), 0);
    block_on(async {
        let (connection, channel) = connect(broker).await;
        declare(&channel).await;
        assert_eq!(broker.connections().unwrap(), 1);

        broker.raise_memory_alarm().unwrap();
        let blocked = tokio::time::timeout(Duration::from_millis(200), publish(&channel, b"held back")).await;
        assert!(blocked.is_err(), "published in spite of the alarm");
        broker.clear_memory_alarm().unwrap();
        publish(&channel, b"let through").await;

        assert_eq!(broker.close_all_connections("a test's doing").unwrap(), 1);
        until("the connection is closed", || !connection.status().connected());
    });
    assert_eq!(
        broker.ctl(&["list_queues", "name", "messages"]).unwrap().trim(),
        "q\t2"
    );
    let refused = broker.ctl(&["list_nothing"]).unwrap_err();
    assert!(refused.to_string().contains("list_nothing"), "{refused}");

    let overview = broker.management("/api/overview").unwrap();
    assert_eq!(overview.get("rabbitmq_version").unwrap(), broker.version());
    assert!(broker.management("/api/nothing").is_err());
}

#[test]
fn a_delivery_held_for_too_long_is_taken_back() {
    let broker = RabbitMq::builder(Series::V4)
        .consumer_timeout(Duration::from_secs(1))
        .start()
        .unwrap();
    block_on(async {
        let (_connection, channel) = connect(&broker).await;
        declare(&channel).await;
        publish(&channel, b"held").await;
        let _consumer = channel
            .basic_consume(
                "q".into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        until("the channel is closed", || !channel.status().connected());
    });
    until("the log says why", || {
        let log = std::fs::read_to_string(broker.log_path()).unwrap();
        log.contains("timed out waiting for a consumer acknowledgement")
    });
}

#[test]
fn nothing_is_left_of_a_broker_whose_test_was_killed() {
    let mut test = Command::new(env!("CARGO_BIN_EXE_brokers"))
        .arg("rabbitmq4")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let [url, log] = [(); 2].map(|()| lines.next().unwrap().unwrap());
    let folder = Path::new(&log).ancestors().nth(2).unwrap();
    assert!(folder.exists(), "{log}");
    let port = url.trim().trim_end_matches("/%2f").rsplit(':').next().unwrap();
    let name = format!("RABBITMQ_NODENAME=rabbit{port}@localhost");
    assert_ne!(processes_with(&name), Vec::<String>::new(), "{url}");
    test.kill().unwrap();
    test.wait().unwrap();
    until("its processes are gone", || processes_with(&name).is_empty());
    until("its folder is gone", || !folder.exists());
}

#[test]
fn nothing_is_left_of_a_broker_that_is_dropped() {
    for series in [Series::V3, Series::V4] {
        let broker = RabbitMq::builder(series).start().unwrap();
        let log = broker.log_path();
        // As it is called in the environment of the broker, within another root or not.
        let folder = log
            .ancestors()
            .nth(2)
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap();
        assert_ne!(processes_with(folder), Vec::<String>::new());
        // What it does every minute: it looks for epmd, and would start one.
        broker
            .eval("rabbit_epmd_monitor ! check, _ = sys:get_state(rabbit_epmd_monitor, 60000), ok")
            .unwrap();
        drop(broker);
        until("its processes are gone", || processes_with(folder).is_empty());
    }
}

#[test]
fn a_broker_that_cannot_start_says_why() {
    let error = RabbitMq::builder(Series::V4)
        .setting("no.such.setting", "at all")
        .start()
        .unwrap_err();
    assert!(matches!(error, StartError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("no.such.setting"), "{error}");
}
