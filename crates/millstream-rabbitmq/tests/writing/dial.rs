//! Connecting: failover, TLS, refusals.

use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Delivered, OpenError, SinkConnector};
use millstream_rabbitmq::{Declare, Dial, RabbitSink, Topology};
use tokio::net::TcpListener;

use crate::tools::{BROKER, numbered, send, start};

async fn open(dial: Dial) -> Result<millstream_rabbitmq::RabbitPublishing, OpenError> {
    let topology = Topology::new("dialled").declare(Declare::default());
    RabbitSink::queue(dial, topology).open().await
}

#[tokio::test]
async fn the_next_broker_is_taken_when_one_does_not_answer() {
    // One refuses, one accepts and is silent, one is a broker.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = [
        format!("amqp://{closed}"),
        format!("amqp://{}", silent.local_addr().unwrap()),
        BROKER.url(),
    ];
    let dial = Dial::new(&urls).unwrap().timeout(Duration::from_millis(300));
    let mut sink = open(dial.clone()).await.unwrap();
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
    // From now on the one that worked is first: nobody knocks at the silent one.
    let (mut knock, _) = silent.accept().await.unwrap();
    open(dial).await.unwrap();
    let again = tokio::time::timeout(Duration::from_millis(200), silent.accept()).await;
    assert!(again.is_err());
    // And what hung there was hung up.
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut knock, &mut rest);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("it hangs up")
        .ok();
}

#[tokio::test]
async fn when_no_broker_answers_each_is_told_of() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let urls = [
        format!("amqp://app:hunter2@{closed}"),
        "amqp://app:hunter2@nowhere.invalid".to_owned(),
    ];
    let Err(OpenError::Unavailable(why)) = open(Dial::new(&urls).unwrap()).await else {
        panic!("it is unavailable");
    };
    assert!(
        why.contains(&closed.to_string()) && why.contains("nowhere.invalid:5672"),
        "{why}"
    );
    assert!(!why.contains("hunter2"), "{why}");
}

#[tokio::test]
async fn a_refusal_is_final_until_a_connection_was_made() {
    let port = BROKER.port();
    let Err(OpenError::Refused(why)) =
        open(Dial::new([format!("amqp://guest:hunter2@127.0.0.1:{port}")]).unwrap()).await
    else {
        panic!("it is refused");
    };
    assert_eq!(
        why,
        format!("127.0.0.1:{port}: the broker refuses user `guest` with this password")
    );
    let Err(OpenError::Refused(why)) =
        open(Dial::new([format!("amqp://127.0.0.1:{port}/nowhere")]).unwrap()).await
    else {
        panic!("it is refused");
    };
    assert_eq!(
        why,
        format!("127.0.0.1:{port}: there is no virtual host `nowhere` at the broker")
    );

    let broker = start(Series::V3);
    let dial = Dial::new([broker.url()]).unwrap();
    open(dial.clone()).await.unwrap();
    broker.ctl(&["change_password", "guest", "another"]).unwrap();
    let Err(OpenError::Unavailable(why)) = open(dial).await else {
        panic!("it is unavailable");
    };
    assert!(why.contains("refuses user `guest`"), "{why}");
}

#[tokio::test]
async fn connections_have_names() {
    let dial = Dial::new([BROKER.url()]).unwrap().name("millstream orders");
    let _sink = open(dial).await.unwrap();
    let name = BROKER
        .eval(
            "[x || [P] <- rabbit_networking:connection_info_all([client_properties]), \
             {_, _, <<\"millstream orders\">>} <- element(2, P)]",
        )
        .unwrap();
    assert_ne!(name, "[]");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_takes_the_authority_it_is_told_and_no_other() {
    let broker = RabbitMq::builder(Series::V3).tls(true).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, broker.ca_pem()).unwrap();
    let dial = || Dial::new([broker.tls_url()]).unwrap();
    let mut sink = open(dial().ca_file(&ca)).await.unwrap();
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
    // The system does not know this authority.
    assert!(open(dial()).await.is_err());
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let Err(OpenError::Refused(why)) = open(dial().ca_file(&empty)).await else {
        panic!("it is refused");
    };
    assert!(why.contains("there is no certificate in it"), "{why}");
    let Err(OpenError::Refused(why)) = open(dial().ca_file(folder.path().join("missing.pem"))).await else {
        panic!("it is refused");
    };
    assert!(why.contains("missing.pem"), "{why}");
}

#[tokio::test]
async fn a_dropped_sink_says_goodbye() {
    let broker = start(Series::V3);
    drop(
        open(Dial::new([broker.url()]).unwrap().name("polite"))
            .await
            .unwrap(),
    );
    let farewell = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let log = std::fs::read_to_string(broker.log_path()).unwrap();
            let is_farewell =
                |line: &&str| line.contains("closing AMQP connection") && line.contains("polite");
            if let Some(line) = log.lines().find(is_farewell) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the connection closes");
    assert!(farewell.contains("[info]"), "{farewell}");
}
