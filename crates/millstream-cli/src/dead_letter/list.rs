//! `dead-letter list`.

use millstream_core::{SharedLetterBox, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::table::Table;
use crate::args::List;
use crate::envelope::Envelope;
use crate::program::{print, say};

pub(super) async fn list(letters: SharedLetterBox, args: &List) -> anyhow::Result<String> {
    let mut pass = Pass::open(&letters, Visit::Look, &args.chosen).await?;
    let listed = list_all(&mut pass, args.json).await;
    say(&pass.elsewhere());
    let closed = pass.close().await;
    listed?;
    closed?;
    Ok(String::new())
}

async fn list_all(pass: &mut Pass, json: bool) -> anyhow::Result<()> {
    let mut table = Table::default();
    loop {
        let letters = pass.next(CHUNK).await?;
        if letters.is_empty() {
            return Ok(());
        }
        if json {
            let mut lines = Vec::new();
            for letter in letters {
                Envelope::from(letter).write(&mut lines);
            }
            print(&String::from_utf8(lines)?)?;
        } else {
            print(&table.lines(&letters))?;
        }
    }
}
