//! The stock binary on a file, with brokers named in its environment.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// What is said where there is nothing to be said.
pub(crate) const OK: &str = "ok: 1 pipeline\n";

/// What of a file is replaced by what.
pub(crate) type Changes = &'static [(&'static str, &'static str)];

/// A file, and what it names from the environment.
pub(crate) struct Checked {
    folder: TempDir,
    text: String,
    environment: Vec<(&'static str, String)>,
}

impl Checked {
    pub(crate) fn new(text: &str, environment: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            text: text.to_owned(),
            environment: environment.into_iter().collect(),
        }
    }

    /// What `check --connect` says of the file with these parts of it replaced: standard output, then standard error,
    /// then the status unless it is 0. The ports of brokers, which differ each time, are left out.
    pub(crate) fn with(&self, changes: &[(&str, &str)]) -> String {
        let mut text = self.text.clone();
        for (from, to) in changes {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replace(from, to);
        }
        let (said, complaints, code) = self.run(&["check", "m.toml", "--connect"], &text, "");
        let mut all = said + &complaints;
        if code != Some(0) {
            writeln!(all, "status {code:?}").unwrap();
        }
        without_ports(&all)
    }

    /// Has `publish` write one message to where the source of this file reads, which makes what is declared.
    pub(crate) fn publish(&self, text: &str, pipeline: &str) {
        let arguments = ["publish", "m.toml", "--pipeline", pipeline];
        let (said, complaints, _) = self.run(&arguments, text, "one\n");
        assert_eq!(said, "published 1 message\n", "{complaints}");
    }

    /// Standard output, standard error and status.
    pub(crate) fn run(&self, arguments: &[&str], text: &str, input: &str) -> (String, String, Option<i32>) {
        std::fs::write(self.folder.path().join("m.toml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("AWS_ACCESS_KEY_ID", "x")
            .env("AWS_SECRET_ACCESS_KEY", "x")
            .env("AWS_REGION", "elasticmq")
            .env_remove("AWS_PROFILE")
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        let mut child = command.spawn().unwrap();
        // One that ends early does not read on.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code())
    }

    /// A file or folder of the directory that it runs in.
    pub(crate) fn exists(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }
}

fn without_ports(text: &str) -> String {
    let mut parts = text.split("127.0.0.1:");
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        plain.push_str("127.0.0.1:PORT");
        plain.push_str(part.trim_start_matches(|sign: char| sign.is_ascii_digit()));
    }
    plain
}
