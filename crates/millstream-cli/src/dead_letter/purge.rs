//! `dead-letter purge`.

use anyhow::Context as _;
use millstream_core::{SharedLetterBox, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::table::Table;
use crate::args::Purge;
use crate::named::counted;
use crate::program::{print_part, say};
use crate::progress::Progress;

pub(super) async fn purge(letters: SharedLetterBox, args: &Purge) -> anyhow::Result<String> {
    let visit = if args.dry_run { Visit::Look } else { Visit::Purge };
    let mut pass = Pass::open(&letters, visit, &args.chosen).await?;
    let mut done = Done::default();
    let ended = purge_all(&mut pass, args.dry_run, &mut done).await;
    say(&pass.elsewhere());
    let closed = pass.close().await;
    let kept = closed.as_ref().map_or(0, |kept| *kept);
    let purged = counted(done.purged.saturating_sub(kept), "letter");
    let mut said = if args.dry_run {
        format!("would purge {purged}\n")
    } else {
        format!("purged {purged}\n")
    };
    if done.taken > 0 {
        said.push_str(&format!(
            "left {} to others, who took them meanwhile\n",
            counted(done.taken, "letter")
        ));
    }
    if kept > 0 {
        said.push_str(&format!(
            "kept {} behind letters that stay: this store removes only what comes first\n",
            counted(kept, "letter")
        ));
    }
    ended
        .and(closed.map(drop))
        .with_context(|| said.trim_end().replace('\n', "; "))?;
    Ok(said)
}

/// What has become of the letters that were chosen.
#[derive(Default)]
struct Done {
    purged: u64,
    /// Were taken by others before they could be removed.
    taken: u64,
}

async fn purge_all(pass: &mut Pass, dry_run: bool, done: &mut Done) -> anyhow::Result<()> {
    let mut table = Table::default();
    let mut progress = (!dry_run).then(|| Progress::counting("purged"));
    loop {
        let letters = pass.next(CHUNK).await?;
        if letters.is_empty() {
            return Ok(());
        }
        let all = letters.len() as u64;
        if dry_run {
            done.purged += all;
            if !print_part(table.lines(&letters).as_bytes())? {
                return Ok(());
            }
        } else {
            let handles: Vec<_> = letters.iter().map(|letter| letter.handle).collect();
            let removed = pass.remove(&handles).await?;
            done.purged += removed;
            done.taken += all.saturating_sub(removed);
        }
        if let Some(progress) = &mut progress {
            progress.advance(0, done.purged);
        }
    }
}
