//! Processes of the stock binary, and an HTTP server for them.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use millstream_core::rt::{self, Instant};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longer than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until this gives something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// A directory in which the processes of one test run.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn append(&self, name: &str, text: &str) {
        let file = fs::OpenOptions::new().append(true).open(self.path(name));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The file, or nothing where there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The command `millstream` with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Process::start(&mut self.command(arguments)).end()
    }

    /// Runs it to its end with this on its standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &str) -> Ended {
        let mut process = Process::start(self.command(arguments).stdin(Stdio::piped()));
        // One that ends early does not read on.
        let _ = process.child.stdin.take().unwrap().write_all(input.as_bytes());
        process.end()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        Process::start(&mut self.command(arguments))
    }
}

/// A process that runs; killed if the test gives up.
pub(crate) struct Process {
    pub(crate) child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

/// What a process has come to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdout, read_stdout) = collect(child.stdout.take().unwrap());
        let (stderr, read_stderr) = collect(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
            readers: vec![read_stdout, read_stderr],
        }
    }

    /// Waits until it has written this to standard error.
    pub(crate) fn until_says(&self, text: &str) {
        until(text, || self.stderr.lock().contains(text).then_some(()));
    }

    /// Where it says that it listens.
    pub(crate) fn address(&self) -> String {
        until("the address", || {
            let stderr = self.stderr.lock();
            let (_, rest) = stderr.split_once("listening: http://")?;
            Some(rest.split_once("/metrics")?.0.to_owned())
        })
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([name, &id]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let status = until("the end of a process", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ended {
            code: status.code(),
            stdout: self.stdout.lock().clone(),
            stderr: self.stderr.lock().clone(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> (Arc<Mutex<String>>, thread::JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let to = Arc::clone(&text);
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read) = pipe.read(&mut buffer)
            && read > 0
        {
            to.lock().push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    });
    (text, reader)
}

/// What is answered: status line, head and body.
pub(crate) fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// An HTTP server that keeps what it is sent.
pub(crate) struct Server {
    _runtime: Runtime,
    address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<(HeaderMap, Bytes)>>,
    answers: Mutex<VecDeque<Answer>>,
}

/// How the server answers.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    Status(u16),
    /// A status with `Retry-After`, and the request's body repeated.
    After(u16, &'static str),
    /// Not at all.
    Never,
}

impl Server {
    /// One that gives these answers in turn, and 200 afterwards.
    pub(crate) fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let runtime = Runtime::new().unwrap();
        let state = Arc::new(State {
            answers: Mutex::new(answers.into_iter().collect()),
            ..State::default()
        });
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::clone(&state);
        let router = Router::new()
            .fallback(move |headers: HeaderMap, body: Bytes| answer(Arc::clone(&shared), headers, body));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            _runtime: runtime,
            address,
            state,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/in", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<(HeaderMap, Bytes)> {
        self.state.requests.lock().clone()
    }

    pub(crate) fn until_has(&self, requests: usize) {
        until("requests", || (self.requests().len() >= requests).then_some(()));
    }
}

async fn answer(state: Arc<State>, headers: HeaderMap, body: Bytes) -> (StatusCode, HeaderMap, Bytes) {
    state.requests.lock().push((headers, body.clone()));
    let answer = state.answers.lock().pop_front().unwrap_or(Answer::Status(200));
    let mut headers = HeaderMap::new();
    match answer {
        Answer::Status(status) => (StatusCode::from_u16(status).unwrap(), headers, Bytes::new()),
        Answer::After(status, after) => {
            headers.insert("retry-after", after.parse().unwrap());
            (StatusCode::from_u16(status).unwrap(), headers, body)
        }
        Answer::Never => {
            rt::sleep(PATIENCE * 2).await;
            (StatusCode::OK, headers, body)
        }
    }
}

/// The lines of a file of envelopes.
pub(crate) fn envelopes(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Whether a path is there.
pub(crate) fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
