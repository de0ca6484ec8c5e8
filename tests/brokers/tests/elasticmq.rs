//! ElasticMQ as tests use it, and the proxy before it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use millstream_brokers::{ElasticMq, SqsProxy};

fn client(endpoint: &str) -> Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("elasticmq"))
        .credentials_provider(Credentials::new("x", "x", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(Duration::from_secs(30))
                .build(),
        )
        .endpoint_url(endpoint)
        .build();
    Client::from_conf(config)
}

async fn queue(client: &Client, name: &str) -> String {
    let made = client.create_queue().queue_name(name).send().await.unwrap();
    made.queue_url.unwrap()
}

async fn receive(client: &Client, queue: &str) -> Vec<(String, String)> {
    let received = client
        .receive_message()
        .queue_url(queue)
        .wait_time_seconds(5)
        .max_number_of_messages(10)
        .send()
        .await
        .unwrap();
    let messages = received.messages.unwrap_or_default().into_iter();
    messages
        .map(|message| (message.body.unwrap(), message.receipt_handle.unwrap()))
        .collect()
}

#[tokio::test]
async fn what_was_sent_before_a_kill_and_before_a_stop_is_there_after_it() {
    let mut broker = ElasticMq::start().unwrap();
    let client = client(&broker.url());
    let queue = queue(&client, "orders").await;
    for (body, kill) in [("before a kill", true), ("before a stop", false)] {
        client
            .send_message()
            .queue_url(&queue)
            .message_body(body)
            .send()
            .await
            .unwrap();
        if kill {
            broker.kill();
        } else {
            broker.stop().unwrap();
        }
        assert!(!broker.runs());
        assert!(client.list_queues().send().await.is_err());
        broker.start_again().unwrap();
        let received = receive(&client, &queue).await;
        assert_eq!(
            received.iter().map(|(body, _)| body.as_str()).collect::<Vec<_>>(),
            [body]
        );
        let (_, receipt) = &received[0];
        client
            .delete_message()
            .queue_url(&queue)
            .receipt_handle(receipt)
            .send()
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_proxy_counts_calls_and_spoils_those_that_it_is_told_to() {
    let broker = ElasticMq::start_in_memory().unwrap();
    let proxy = SqsProxy::start(broker.port()).unwrap();
    let client = client(&proxy.url());
    let queue = queue(&client, "orders").await;
    for body in ["one", "two"] {
        client
            .send_message()
            .queue_url(&queue)
            .message_body(body)
            .send()
            .await
            .unwrap();
    }
    let received = receive(&client, &queue).await;
    assert_eq!(received.len(), 2);

    proxy.fail_entries("DeleteMessageBatch", 1);
    let mut delete = client.delete_message_batch().queue_url(&queue);
    for (index, (_, receipt)) in received.iter().enumerate() {
        let entry = DeleteMessageBatchRequestEntry::builder()
            .id(index.to_string())
            .receipt_handle(receipt);
        delete = delete.entries(entry.build().unwrap());
    }
    let deleted = delete.clone().send().await.unwrap();
    assert_eq!(
        deleted
            .failed
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>(),
        ["0"]
    );
    assert_eq!(
        deleted
            .successful
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>(),
        ["1"]
    );
    assert_eq!(
        (
            proxy.calls("DeleteMessageBatch"),
            proxy.entries("DeleteMessageBatch")
        ),
        (1, 2)
    );
    assert_eq!((proxy.calls("SendMessage"), proxy.all_calls()), (2, 5));

    proxy.lose_answers("SendMessage", 1);
    let send = client.send_message().queue_url(&queue).message_body("three");
    assert!(send.send().await.is_err());
    assert_eq!(receive(&client, &queue).await.len(), 1);

    proxy.cut();
    assert!(delete.clone().send().await.is_err());
    proxy.mend();
    proxy.hold("ListQueues", Duration::from_millis(300));
    let began = tokio::time::Instant::now();
    client.list_queues().send().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
}
