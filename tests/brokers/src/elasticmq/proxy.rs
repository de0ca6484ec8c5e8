//! What tests put between SQS and its client, to count calls and to spoil some: [`SqsProxy`].

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::line::Line;

/// An HTTP proxy before a broker that speaks SQS' JSON protocol.
///
/// It knows calls by the names of their actions, such as `DeleteMessageBatch`.
#[derive(Debug)]
pub struct SqsProxy {
    line: Line,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    broker: u16,
    cut: AtomicBool,
    plans: Mutex<HashMap<String, Plan>>,
}

/// What was asked of an action, and what shall become of its next calls.
#[derive(Debug, Default)]
struct Plan {
    calls: usize,
    entries: usize,
    under_way: usize,
    most_at_once: usize,
    failing: usize,
    /// Whether all entries of one delivery fail: whose, once one has come.
    failing_delivery: Option<Option<String>>,
    held: Vec<Duration>,
    doubled: usize,
    /// Calls whose answers are lost.
    lost: usize,
}

impl SqsProxy {
    /// Starts one before the broker at this port.
    ///
    /// # Errors
    /// If there is no port for it.
    pub fn start(broker: u16) -> io::Result<Self> {
        let state = Arc::new(State {
            broker,
            cut: AtomicBool::new(false),
            plans: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        let line = Line::open(move |client| serving.serve(client))?;
        Ok(Self { line, state })
    }

    /// What clients take for the endpoint of SQS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.line.port())
    }

    /// How often this action was called.
    #[must_use]
    pub fn calls(&self, action: &str) -> usize {
        self.state.plans.lock().get(action).map_or(0, |plan| plan.calls)
    }

    /// How many entries the calls of this action had; none for an action that has none.
    #[must_use]
    pub fn entries(&self, action: &str) -> usize {
        self.state.plans.lock().get(action).map_or(0, |plan| plan.entries)
    }

    /// The most calls of this action that were under way at a time.
    #[must_use]
    pub fn most_at_once(&self, action: &str) -> usize {
        let plans = self.state.plans.lock();
        plans.get(action).map_or(0, |plan| plan.most_at_once)
    }

    /// How many calls there were of any action.
    #[must_use]
    pub fn all_calls(&self) -> usize {
        self.state.plans.lock().values().map(|plan| plan.calls).sum()
    }

    /// The next so many entries of calls of this action fail by the service's fault, and the broker hears nothing of
    /// them.
    pub fn fail_entries(&self, action: &str, entries: usize) {
        self.plan(action, |plan| plan.failing = entries);
    }

    /// From now on all entries of calls of this action that are for one delivery fail: the one whose entry comes first.
    pub fn fail_delivery(&self, action: &str) {
        self.plan(action, |plan| plan.failing_delivery = Some(None));
    }

    /// The answer to a next call of this action comes so much later than the broker gives it.
    pub fn hold(&self, action: &str, time: Duration) {
        self.plan(action, |plan| plan.held.push(time));
    }

    /// The next so many receives that bring messages bring the first of them twice, as SQS may.
    pub fn double(&self, receives: usize) {
        self.plan(RECEIVE, |plan| plan.doubled = receives);
    }

    /// The next so many calls of this action are answered with an error by the service's fault, though the broker has
    /// done what they asked for.
    pub fn lose_answers(&self, action: &str, calls: usize) {
        self.plan(action, |plan| plan.lost = calls);
    }

    /// From now on, whoever calls finds the line dead; what the broker still answers to earlier calls is lost.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::Release);
    }

    /// Calls go through again.
    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::Release);
    }

    fn plan(&self, action: &str, change: impl FnOnce(&mut Plan)) {
        change(self.state.plans.lock().entry(action.to_owned()).or_default());
    }
}

impl Drop for SqsProxy {
    fn drop(&mut self) {
        self.cut();
    }
}

impl State {
    /// Serves one client until it has gone; what goes wrong on the way ends the connection, as it would elsewhere.
    fn serve(&self, client: TcpStream) {
        client.set_nodelay(true).ok();
        let Ok(mut answers) = client.try_clone() else {
            return;
        };
        let mut requests = BufReader::new(client);
        while let Ok(Some(request)) = Request::read(&mut requests) {
            if self.is_cut() {
                return;
            }
            let action = request.action.clone();
            let answer = self.answer(request);
            if let Some(plan) = self.plans.lock().get_mut(&action) {
                plan.under_way -= 1;
            }
            let Ok(answer) = answer else {
                return;
            };
            if self.is_cut() || answers.write_all(&answer).is_err() {
                return;
            }
        }
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    fn answer(&self, mut request: Request) -> io::Result<Vec<u8>> {
        let mut body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let entries = body.get_mut("Entries").and_then(Value::as_array_mut);
        let mut failed = Vec::new();
        let mut left = None;
        let (held, lost) = {
            let mut plans = self.plans.lock();
            let plan = plans.entry(request.action.clone()).or_default();
            plan.calls += 1;
            plan.under_way += 1;
            plan.most_at_once = plan.most_at_once.max(plan.under_way);
            if let Some(entries) = entries {
                plan.entries += entries.len();
                let failing = plan.failing.min(entries.len());
                plan.failing -= failing;
                failed.extend(entries.drain(..failing));
                if let Some(delivery) = &mut plan.failing_delivery {
                    let receipt = |entry: &Value| {
                        let receipt = entry.get("ReceiptHandle").and_then(Value::as_str);
                        receipt.unwrap_or_default().to_owned()
                    };
                    let chosen = match entries.first() {
                        Some(first) => delivery.get_or_insert_with(|| receipt(first)).clone(),
                        None => String::new(),
                    };
                    failed.extend(entries.extract_if(.., |entry| receipt(entry) == chosen));
                }
                left = Some(entries.len());
            }
            let lost = plan.lost > 0;
            plan.lost -= usize::from(lost);
            let held = (!plan.held.is_empty()).then(|| plan.held.remove(0));
            (held, lost)
        };
        let answer = if failed.is_empty() {
            self.doubled(&request.action, self.ask(&request)?)?
        } else {
            let (head, mut said) = match left {
                Some(0) => (OK.to_owned(), json!({ "Successful": [] })),
                _ => {
                    request.body = body.to_string().into_bytes();
                    let (head, said) = parts(&self.ask(&request)?)?;
                    (head, serde_json::from_slice(&said)?)
                }
            };
            let failed = failed.iter().map(|entry| {
                json!({ "Id": entry.get("Id"), "SenderFault": false, "Code": "InternalError", "Message": "as planned" })
            });
            if let Some(said) = said.as_object_mut() {
                said.insert("Failed".to_owned(), failed.collect());
            }
            whole(&head, said.to_string().as_bytes())
        };
        if let Some(time) = held {
            std::thread::sleep(time);
        }
        if lost {
            return Ok(whole(BROKEN, BROKEN_BODY.as_bytes()));
        }
        Ok(answer)
    }

    /// The answer, with its first message twice where that is planned.
    fn doubled(&self, action: &str, answer: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut plans = self.plans.lock();
        let Some(plan) = plans.get_mut(action).filter(|plan| plan.doubled > 0) else {
            return Ok(answer);
        };
        let (head, body) = parts(&answer)?;
        let mut said: Value = serde_json::from_slice(&body)?;
        if let Some(messages) = said.get_mut("Messages").and_then(Value::as_array_mut)
            && let Some(first) = messages.first().cloned()
        {
            messages.push(first);
            plan.doubled -= 1;
        }
        Ok(whole(&head, said.to_string().as_bytes()))
    }

    /// What the broker says to it.
    fn ask(&self, request: &Request) -> io::Result<Vec<u8>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.broker));
        let mut broker = TcpStream::connect(address)?;
        broker.set_nodelay(true)?;
        // HTTP/1.0, so that the answer ends with the connection and comes in one piece.
        let length = request.body.len();
        let mut asked = format!(
            "POST / HTTP/1.0\r\n{}Content-Length: {length}\r\n\r\n",
            request.headers
        );
        asked.push_str(std::str::from_utf8(&request.body).map_err(io::Error::other)?);
        broker.write_all(asked.as_bytes())?;
        let mut answer = Vec::new();
        broker.read_to_end(&mut answer)?;
        let (head, body) = parts(&answer)?;
        Ok(whole(&head, &body))
    }
}

const RECEIVE: &str = "ReceiveMessage";
const BROKEN: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/x-amz-json-1.0";
const BROKEN_BODY: &str = r#"{"__type":"com.amazonaws.sqs#InternalError","message":"as planned"}"#;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0";

/// The head of an answer without what goes with its connection, and its body.
fn parts(answer: &[u8]) -> io::Result<(String, Vec<u8>)> {
    let text = std::str::from_utf8(answer).map_err(io::Error::other)?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other("an answer without a body"))?;
    let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let mut kept = status.replacen("HTTP/1.0", "HTTP/1.1", 1);
    for line in headers.lines().filter(|line| !of_the_connection(line)) {
        kept.push_str("\r\n");
        kept.push_str(line);
    }
    Ok((kept, body.as_bytes().to_vec()))
}

fn whole(head: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn of_the_connection(line: &str) -> bool {
    let name = line.split(':').next().unwrap_or_default();
    ["connection", "content-length", "keep-alive"].contains(&name.to_ascii_lowercase().as_str())
}

struct Request {
    action: String,
    /// Header lines but for those that go with the connection, each with its line's end.
    headers: String,
    body: Vec<u8>,
}

impl Request {
    /// The next request; none if the client has gone.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let (mut action, mut headers, mut length) = (String::new(), String::new(), 0);
        loop {
            line.clear();
            from.read_line(&mut line)?;
            let trimmed = line.trim_end();
            let Some((name, value)) = trimmed.split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
                "x-amz-target" => {
                    action = value.trim().rsplit('.').next().unwrap_or_default().to_owned();
                }
                _ => {}
            }
            if !of_the_connection(trimmed) {
                headers.push_str(trimmed);
                headers.push_str("\r\n");
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(Self {
            action,
            headers,
            body,
        }))
    }
}
