//! Prometheus scrapes what it is told to, and its linter finds what is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use millstream_brokers::{Prometheus, Target, lint};

const METRICS: &str =
    "# HELP wheels_total Wheels.\n# TYPE wheels_total counter\nwheels_total{kind=\"a\"} 4\n";

/// A program that can be scraped; it ends with the test.
fn exporter() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert_ne!(stream.read(&mut [0; 4_096]).unwrap(), 0);
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n{METRICS}"
            )
            .unwrap();
        }
    });
    address
}

#[test]
fn what_is_scraped_can_be_asked_for() {
    let targets = [Target {
        job: "mill".to_owned(),
        address: exporter(),
    }];
    let prometheus = Prometheus::start(&targets, Duration::from_millis(200)).unwrap();
    prometheus.await_targets().unwrap();
    let data = prometheus.query(r#"sum(wheels_total{kind="a"}) + 1"#).unwrap();
    assert_eq!(data.pointer("/result/0/value/1").unwrap(), "5", "{data}");
    assert!(
        prometheus
            .query("sum(")
            .unwrap_err()
            .to_string()
            .contains("parse error")
    );
    let health = prometheus.targets().unwrap();
    assert_eq!(
        (health[0].job.as_str(), health[0].health.as_str()),
        ("mill", "up")
    );
}

#[test]
fn a_target_that_is_not_there_is_down() {
    let targets = [Target {
        job: "gone".to_owned(),
        address: "127.0.0.1:1".to_owned(),
    }];
    let prometheus = Prometheus::start(&targets, Duration::from_millis(100)).unwrap();
    let health = (0..1_000)
        .find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            let health = prometheus.targets().unwrap().pop()?;
            (health.health == "down").then_some(health)
        })
        .unwrap();
    assert!(health.last_error.contains("refused"), "{health:?}");
}

#[test]
fn the_linter_passes_good_metrics_and_names_the_fault_of_others() {
    lint(METRICS).unwrap();
    let fault = lint("# TYPE wheels counter\nwheels 4\n").unwrap_err();
    assert!(fault.contains("_total"), "{fault}");
}
