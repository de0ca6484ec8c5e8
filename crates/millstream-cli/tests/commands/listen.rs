//! `[host] listen`: where it listens, and where it cannot.

use std::net::TcpListener;

use crate::files::copy;
use crate::support::{Scratch, envelopes, get, until};

fn listening(address: &str) -> String {
    format!("[host]\nlisten = \"{address}\"\n{}", copy(""))
}

#[test]
fn metrics_and_health_are_where_the_log_says() {
    let scratch = Scratch::new();
    scratch.write("m.toml", &listening("127.0.0.1:0"));
    scratch.write("in", "one\ntwo\n");
    let process = scratch.start(&["run", "m.toml"]);
    let address = process.address();
    assert!(!address.ends_with(":0"));
    until("readiness", || {
        get(&address, "/readyz").contains(" 200 OK").then_some(())
    });
    until("both lines", || {
        (envelopes(&scratch.read("out")).len() == 2).then_some(())
    });
    until("both lines in the metrics", || {
        get(&address, "/metrics")
            .contains("millstream_settled_total{pipeline=\"copy\",outcome=\"acked\"} 2\n")
            .then_some(())
    });
    assert!(get(&address, "/healthz").ends_with("alive\n"));
    assert!(get(&address, "/").contains(" 404 "));
    process.signal("-TERM");
    let ended = process.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn an_address_that_is_taken_is_an_error_that_names_it_before_anything_is_read() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    scratch.write("m.toml", &listening(&address));
    scratch.write("in", "one\n");
    let ended = scratch.run(&["run", "m.toml"]);
    assert_eq!(ended.code, Some(1));
    let expected = format!("error: `listen` of [host] cannot be had: cannot listen at {address}: ");
    assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    assert_eq!(scratch.read("out"), "");
    assert_eq!(scratch.run(&["check", "m.toml"]).code, Some(0));
}
