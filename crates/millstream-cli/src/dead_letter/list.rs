//! `dead-letter list`.

use millstream_core::{SharedLetterBox, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::table::Table;
use crate::args::List;
use crate::envelope::Envelope;
use crate::named::counted;
use crate::program::{print_part, say};

pub(super) async fn list(letters: SharedLetterBox, args: &List) -> anyhow::Result<String> {
    let mut pass = Pass::open(&letters, Visit::Look, &args.chosen).await?;
    let listed = list_all(&mut pass, args.json).await;
    let elsewhere = pass.elsewhere();
    let closed = pass.close().await;
    if let Ok(Some(all)) = listed {
        say(&format!("{}\n", counted(all, "letter")));
    }
    say(&elsewhere);
    listed?;
    closed?;
    Ok(String::new())
}

/// How many there are; none where nobody reads on.
async fn list_all(pass: &mut Pass, json: bool) -> anyhow::Result<Option<u64>> {
    let mut table = Table::default();
    let mut all = 0;
    loop {
        let letters = pass.next(CHUNK).await?;
        if letters.is_empty() {
            return Ok(Some(all));
        }
        all += letters.len() as u64;
        let wanted = if json {
            let mut lines = Vec::new();
            for letter in letters {
                Envelope::from(letter).write(&mut lines);
            }
            print_part(&lines)?
        } else {
            print_part(table.lines(&letters).as_bytes())?
        };
        if !wanted {
            return Ok(None);
        }
    }
}
