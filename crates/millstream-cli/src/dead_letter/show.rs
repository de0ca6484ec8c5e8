//! `dead-letter show`.

use std::io::{self, IsTerminal};

use anyhow::bail;
use millstream_core::{Letter, SharedLetterBox, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::time::utc;
use crate::args::Show;
use crate::envelope::Envelope;
use crate::program::print_bytes;

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
    if args.raw {
        print_bytes(&letter.payload)?;
        return Ok(String::new());
    }
    Ok(shown(&letter, io::stdout().is_terminal()))
}

/// What it is, a line each, and below an empty line its payload: as it is, or so that a terminal only shows it.
fn shown(letter: &Letter, on_terminal: bool) -> String {
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
        Ok(payload) if on_terminal => harmless(payload),
        Ok(payload) => payload.to_owned(),
        Err(_) => format!(
            "{} bytes that are no text: --raw prints them as they are, --json in base64",
            letter.payload.len()
        ),
    };
    text.push_str(&format!("\n{payload}\n"));
    text
}

/// The text with its control characters as escapes, but for the ends of its lines and tabs.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' | '\t' => shown.push(character),
            '\r' if characters.peek() == Some(&'\n') => {}
            // Those that change the direction of what follows have it read as something else.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A payload is whatever somebody has sent; a terminal would do what it says.
    #[test]
    fn a_terminal_shows_a_payload_and_does_not_obey_it() {
        let payload = "{\"name\":\t\"Zo\u{eb}\"}\r\n\u{1b}]0;title\u{7}\u{9b}2J\u{8}\rdone\u{202e}";
        let letter = Letter {
            id: "7".to_owned(),
            payload: payload.into(),
            headers: [("name", "\u{1b}[2J")].into_iter().collect(),
            ..Letter::default()
        };
        assert_eq!(
            shown(&letter, true),
            "id: 7\nname: \\u{1b}[2J\n\n{\"name\":\t\"Zo\u{eb}\"}\n\\u{1b}]0;title\\u{7}\\u{9b}2J\\u{8}\\rdone\\u{202e}\n"
        );
        assert!(shown(&letter, false).ends_with(&format!("\n{payload}\n")));
    }
}
