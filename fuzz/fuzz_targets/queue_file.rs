//! Any bytes as a queue's database: it is refused or it works, and nothing panics.
//!
//! The first byte says what the rest is: changes to a file that is right, a file, or what follows a right file's
//! first hundred bytes.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use millstream_core::Outgoing;
use millstream_sqlite::{Error, Queue};
use tempfile::TempDir;

/// In memory where it can be: then nothing waits for a disk.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory can be made")
});

/// A queue with something of everything in it, its log written back.
static RIGHT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = DIRECTORY.path().join("right.db");
    let queue = Queue::open(&path, "orders").expect("a new queue opens");
    queue.add_group("billing").expect("a group can be added");
    queue.add_group("shipping").expect("a group can be added");
    let messages: Vec<_> = (0..20)
        .map(|number| {
            let mut message = Outgoing::new(vec![number; usize::from(number) * 300])
                .with_key(format!("customer-{}", number % 3))
                .with_header("tenant", "acme");
            message.priority = i32::from(number % 2);
            message.delay = std::time::Duration::from_secs(u64::from(number / 15) * 3600);
            message
        })
        .collect();
    queue.publish(&messages).expect("messages can be published");
    drop(queue);
    std::fs::read(&path).expect("the file is there")
});

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    let file = match mode % 4 {
        0 | 1 => {
            let mut file = RIGHT.clone();
            for change in rest.chunks_exact(4) {
                let [low, middle, high, byte] = change else { continue };
                let at = usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high) << 16;
                let at = at % file.len();
                file[at] = *byte;
            }
            file
        }
        2 => rest.to_vec(),
        _ => [&RIGHT[..100], rest].concat(),
    };
    let path = DIRECTORY.path().join("fuzzed.db");
    std::fs::write(&path, file).expect("the file can be written");
    // Either outcome is right, and what matters is that there is one.
    look_after(&path).ok();
    for rest in ["", "-wal", "-shm", "-journal"] {
        std::fs::remove_file(DIRECTORY.path().join(format!("fuzzed.db{rest}"))).ok();
    }
});

/// All that a queue does for those who look after it.
fn look_after(path: &Path) -> Result<(), Error> {
    let queue = Queue::open(path, "orders")?;
    queue.counts()?;
    for group in queue.groups()? {
        queue.group_counts(&group)?;
    }
    let listed = queue.list(0, 1000)?;
    let dead: Vec<_> = queue.dead().take(1000).collect::<Result<_, _>>()?;
    queue.publish(&[Outgoing::new("one more")])?;
    let positions: Vec<_> = listed.iter().map(|stored| stored.position).collect();
    queue.remove(&positions)?;
    let positions: Vec<_> = dead.iter().map(|letter| letter.position).collect();
    queue.replay(&positions)?;
    queue.purge(&positions)?;
    queue.add_group("late")?;
    queue.remove_group("billing")
}
