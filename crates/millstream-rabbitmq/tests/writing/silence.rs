//! A broker, or the way to it, that falls silent in the midst of a call.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use millstream_core::{Delivered, Sink, SinkConnector};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::{Dial, RabbitSink, RetrySink, Topology};

use crate::tools::{BROKER, Client, numbered, send};

/// `basic.publish`, as a frame's payload begins.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];

/// Where the broker is reached over connections of which the first passes on one message and then nothing that the client
/// sends; what comes back it passes on.
fn way_with_one_silence() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let mut broker = TcpStream::connect(("127.0.0.1", BROKER.port())).unwrap();
            let (mut back, mut to) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut back, &mut to));
            thread::spawn(move || match number {
                0 => pass_one(&mut client, &mut broker),
                _ => drop(std::io::copy(&mut client, &mut broker)),
            });
        }
    });
    port
}

/// Passes on all frames up to the second publish, and swallows the rest.
fn pass_one(client: &mut TcpStream, broker: &mut TcpStream) {
    let mut greeting = [0; 8];
    client.read_exact(&mut greeting).unwrap();
    broker.write_all(&greeting).unwrap();
    let mut publishes = 0;
    loop {
        let mut head = [0; 7];
        if client.read_exact(&mut head).is_err() {
            return;
        }
        let [kind, _, _, size @ ..] = head;
        // The payload, and the frame's last byte.
        let mut rest = vec![0; u32::from_be_bytes(size) as usize + 1];
        client.read_exact(&mut rest).unwrap();
        publishes += u32::from(kind == 1 && rest.starts_with(&PUBLISH));
        if publishes < 2 {
            broker.write_all(&head).unwrap();
            broker.write_all(&rest).unwrap();
        }
    }
}

/// One of two is confirmed, so the call ends well; what it was made over would leave the next one waiting too.
async fn is_not_used_again(mut sink: impl Sink) {
    let results = send(&mut sink, &numbered(2)).await.unwrap();
    assert!(
        matches!(&results[..], [Delivered::Confirmed, Delivered::Failed(why)] if why.contains("no confirmation")),
        "{results:?}"
    );
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
}

fn dial() -> Dial {
    let url = BROKER.url();
    let broker = format!(":{}", BROKER.port());
    assert!(url.contains(&broker), "{url}");
    Dial::new([url.replace(&broker, &format!(":{}", way_with_one_silence()))]).unwrap()
}

#[tokio::test]
async fn a_sinks_connection_that_fell_silent_is_not_used_again() {
    let queue = "silence";
    Client::of(&BROKER)
        .await
        .declare(queue, FieldTable::default())
        .await;
    let sink = RabbitSink::queue(dial(), Topology::new(queue)).timeout(Duration::from_secs(2));
    is_not_used_again(sink.open().await.unwrap()).await;
}

#[tokio::test]
async fn a_retry_sinks_connection_that_fell_silent_is_not_used_again() {
    let queue = "silent-retries";
    Client::of(&BROKER)
        .await
        .declare(queue, FieldTable::default())
        .await;
    let sink = RetrySink::new(dial(), queue).timeout(Duration::from_secs(2));
    is_not_used_again(sink.open().await.unwrap()).await;
}
