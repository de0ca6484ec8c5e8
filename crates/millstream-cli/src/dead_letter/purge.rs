//! `dead-letter purge`.

use millstream_core::{SharedLetterBox, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::table::Table;
use crate::args::Purge;
use crate::named::counted;
use crate::program::{print, say};
use crate::progress::Progress;

pub(super) async fn purge(letters: SharedLetterBox, args: &Purge) -> anyhow::Result<String> {
    let visit = if args.dry_run { Visit::Look } else { Visit::Purge };
    let mut pass = Pass::open(&letters, visit, &args.chosen).await?;
    let mut purged = 0;
    let ended = purge_all(&mut pass, args.dry_run, &mut purged).await;
    say(&pass.elsewhere());
    let closed = pass.close().await;
    if let Err(error) = ended {
        return Err(error.context(format!("purged {}", counted(purged, "letter"))));
    }
    let kept = closed?;
    if args.dry_run {
        return Ok(format!("would purge {}\n", counted(purged, "letter")));
    }
    let mut said = format!("purged {}\n", counted(purged - kept, "letter"));
    if kept > 0 {
        said.push_str(&format!(
            "kept {} behind letters that stay: this store removes only what comes first\n",
            counted(kept, "letter")
        ));
    }
    Ok(said)
}

async fn purge_all(pass: &mut Pass, dry_run: bool, purged: &mut u64) -> anyhow::Result<()> {
    let mut table = Table::default();
    let mut progress = (!dry_run).then(|| Progress::counting("purged"));
    loop {
        let letters = pass.next(CHUNK).await?;
        if letters.is_empty() {
            return Ok(());
        }
        if dry_run {
            print(&table.lines(&letters))?;
        } else {
            let handles: Vec<_> = letters.iter().map(|letter| letter.handle).collect();
            pass.remove(&handles).await?;
        }
        *purged += letters.len() as u64;
        if let Some(progress) = &mut progress {
            progress.advance(0, *purged);
        }
    }
}
