//! `dead-letter show`.

use anyhow::bail;
use millstream_core::{Letter, SharedLetterBox, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::time::utc;
use crate::args::Show;
use crate::envelope::Envelope;

pub(super) async fn show(letters: SharedLetterBox, args: &Show) -> anyhow::Result<String> {
    let mut chosen = args.chosen.clone();
    let id = format!("id={}", args.id).parse();
    chosen.filter.push(id.map_err(anyhow::Error::msg)?);
    let mut pass = Pass::open(&letters, Visit::Look, &chosen).await?;
    let found = pass.next(CHUNK).await;
    let elsewhere = pass.elsewhere();
    let closed = pass.close().await;
    let Some(letter) = found?.into_iter().next() else {
        bail!("there is no letter `{}`\n{elsewhere}", args.id);
    };
    closed?;
    if args.json {
        let mut line = Vec::new();
        Envelope::from(letter).write(&mut line);
        return Ok(String::from_utf8(line)?);
    }
    Ok(shown(&letter))
}

/// What it is, a line each, and below an empty line its payload.
fn shown(letter: &Letter) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name}: {}\n", value.escape_debug()));
    line("id", &letter.id);
    if let Some(at) = letter.failed_at() {
        line("failed at", &utc(at));
    }
    if let Some(key) = &letter.key {
        line("key", &String::from_utf8_lossy(key));
    }
    for (name, value) in letter.headers.iter() {
        line(name, value);
    }
    let payload = match std::str::from_utf8(&letter.payload) {
        Ok(payload) => payload.to_owned(),
        Err(_) => format!(
            "{} bytes that are no text: --json shows them in base64",
            letter.payload.len()
        ),
    };
    text.push_str(&format!("\n{payload}\n"));
    text
}
