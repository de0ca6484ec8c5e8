//! The `http` handler against a server.

use std::net::TcpListener;

use crate::support::{Answer, Scratch, Server, envelopes, until};

fn post(url: &str, retry: &str) -> String {
    format!(
        "[pipelines.post]\n\
         source = {{ type = \"file\", path = \"in\", format = \"envelopes\" }}\n\
         processor = {{ handler = \"http\", url = \"{url}\", concurrency = 1 }}\n\
         retry = {{ backoff = \"1ms\", {retry} }}\n"
    )
}

const ONCE: [&str; 4] = ["run", "m.toml", "--until-idle", "100ms"];

#[test]
fn a_payload_is_posted_with_all_that_is_known_of_its_message() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::Status(503), Answer::Status(204)]);
    scratch.write("m.toml", &post(&server.url(), ""));
    scratch.write(
        "in",
        "{\"payload\":\"p\",\"key\":\"ключ\",\"headers\":{\"Tenant\":\"acme corp\",\"größe\":\"5%\",\"a\":\"1\",\"a\":\"2\"}}\n",
    );
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    let (headers, body) = &requests[1];
    assert_eq!(body, "p");
    for (name, value) in [
        ("x-millstream-pipeline", "post"),
        ("x-millstream-key", "%D0%BA%D0%BB%D1%8E%D1%87"),
        ("x-millstream-attempt", "2"),
        ("x-millstream-origin", "in@1"),
        ("x-millstream-header-tenant", "acme corp"),
        ("x-millstream-header-gr%c3%b6%c3%9fe", "5%25"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    let twice: Vec<_> = headers.get_all("x-millstream-header-a").iter().collect();
    assert_eq!(twice, ["1", "2"]);
}

#[test]
fn the_status_decides_and_no_payload_gets_into_logs_or_dead_letters_errors() {
    let scratch = Scratch::new();
    let server = Server::new([
        Answer::After(429, "0"),
        Answer::Status(500),
        Answer::Status(201),
        Answer::After(400, "1"),
        Answer::Status(302),
    ]);
    scratch.write("m.toml", &post(&server.url(), "attempts = 3"));
    scratch.write(
        "in",
        "{\"payload\":\"one\"}\n{\"payload\":\"hunter2\"}\n{\"payload\":\"three\"}\n",
    );
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    // A retry waits out of the others' way.
    assert_eq!(server.requests().len(), 5);
    let dead = envelopes(&scratch.read("in.dead"));
    for envelope in &dead {
        let error = envelope["headers"]["millstream-error"].as_str().unwrap();
        assert!(
            error.starts_with(&server.url()) && !error.contains("hunter2"),
            "{error}"
        );
    }
    assert_eq!(dead.len(), 2);
    assert!(!ended.stderr.contains("hunter2"));
}

#[test]
fn the_server_says_when_to_come_again() {
    let scratch = Scratch::new();
    let server = Server::new([Answer::After(503, "1")]);
    scratch.write("m.toml", &post(&server.url(), ""));
    scratch.write("in", "{\"payload\":\"p\"}\n");
    let begin = millstream_core::rt::Instant::now();
    assert_eq!(scratch.run(&ONCE).code, Some(0));
    assert!(begin.elapsed().as_secs_f64() >= 1.0);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_is_not_there_yet_is_tried_again_and_no_password_is_logged() {
    let scratch = Scratch::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    scratch.write(
        "m.toml",
        &post(
            &format!("http://me:hunter2@127.0.0.1:{port}/?token=swordfish"),
            "attempts = 3",
        ),
    );
    scratch.write("in", "{\"payload\":\"p\"}\n");
    let ended = scratch.run(&ONCE);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let dead = until("the dead letter", || envelopes(&scratch.read("in.dead")).pop());
    let error = dead["headers"]["millstream-error"].as_str().unwrap();
    assert!(
        error.contains("onnection refused") && error.contains(&port.to_string()),
        "{error}"
    );
    assert_eq!(dead["headers"]["millstream-attempts"], "3");
    for secret in ["hunter2", "swordfish"] {
        assert!(!error.contains(secret) && !ended.stderr.contains(secret));
    }
}
