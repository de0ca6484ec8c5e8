//! What is asked of the management API when a reader opens.

use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Connector, EngineHandle, OpenError};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::{OnFailure, RabbitConnector, ReaderSettings, Topology};

use crate::tools::{Client, dial};

/// A handle of an engine that leaves rejected messages to the source is a detached one.
async fn open(settings: ReaderSettings) -> Result<(), OpenError> {
    let (engine, _) = EngineHandle::detached();
    assert!(engine.rejects_to_source());
    RabbitConnector::new(settings).open(engine).await.map(drop)
}

#[tokio::test]
async fn p1_a_reader_refuses_to_open_where_a_rejected_message_would_be_lost() {
    let broker = RabbitMq::builder(Series::V3).management(true).start().unwrap();
    let client = Client::of(&broker).await;
    client.declare("kept", table("x-dead-letter-exchange", "")).await;
    client.declare("by policy", FieldTable::default()).await;
    client.declare("lost", FieldTable::default()).await;
    broker
        .ctl(&[
            "set_policy",
            "dlx",
            "^by policy$",
            r#"{"dead-letter-exchange": "amq.fanout"}"#,
        ])
        .unwrap();
    let settings = |queue: &str| {
        let mut settings = ReaderSettings::new(dial(&broker), Topology::new(queue));
        settings.management_url = Some(broker.management_url());
        settings
    };
    // The API may be some seconds behind AMQP.
    for queue in ["kept", "by policy"] {
        let opens = async {
            while let Err(error) = open(settings(queue)).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(error);
            }
        };
        tokio::time::timeout(Duration::from_secs(30), opens)
            .await
            .expect(queue);
    }
    let why = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Err(OpenError::Refused(why)) = open(settings("lost")).await {
                return why;
            }
        }
    });
    let why = why.await.unwrap();
    assert!(
        why.starts_with(
            "the classic queue `lost` has no dead-letter exchange, so a rejected message would be lost"
        ),
        "{why}"
    );
    let mut requeues = settings("lost");
    requeues.on_failure = OnFailure::Requeue;
    open(requeues).await.unwrap();

    let mut wrong = settings("kept");
    wrong.management_url = Some(broker.management_url().replace("guest:guest", "guest:hunter2"));
    let Err(OpenError::Refused(why)) = open(wrong).await else {
        panic!("it is refused");
    };
    assert!(why.contains("user `guest`") && !why.contains("hunter2"), "{why}");
}

fn table(name: &str, value: &str) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert(name.into(), AMQPValue::LongString(value.into()));
    table
}
