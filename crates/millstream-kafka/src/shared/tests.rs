use millstream_core::{Outcome, Settle, Settlement};

use super::*;

fn assign(shared: &Shared, committed: u64) -> u32 {
    let place = Place {
        topic: "orders".into(),
        partition: 0,
    };
    shared.assign(OriginId::default(), place, Some((committed, "")), None, false);
    shared.assigned(OriginId::default()).unwrap()
}

fn run(assignment: u32, offsets: std::ops::Range<u64>) -> impl Iterator<Item = (Assigned, Message, Return)> {
    offsets.map(move |position| {
        let from = Assigned {
            assignment,
            ..Assigned::default()
        };
        let message = Message {
            position,
            ..Message::default()
        };
        (from, message, Return::default())
    })
}

/// What is handed out once the group has noted that it is.
fn read(shared: &Shared) -> Vec<(Ticket, Message)> {
    shared.committed(&shared.uncommitted(&[]));
    shared.turn();
    shared.state.lock().buffer.drain(..).collect()
}

/// P1 P7: it would pass for what follows the committed offset, and let a commit go past what lies between.
#[test]
fn what_was_read_before_its_partition_was_assigned_again_is_not_handed_out() {
    let shared = Shared::new(100, false);
    let before = assign(&shared, 80);
    shared.unassign(&[OriginId::default()]);
    let now = assign(&shared, 80);
    shared.take(run(before, 90..95));
    assert!(read(&shared).is_empty());
    shared.take(run(now, 80..82));
    let marks: Vec<_> = shared
        .uncommitted(&[])
        .iter()
        .map(|commit| commit.offset)
        .collect();
    assert!(marks.iter().all(|mark| *mark == 80), "{marks:?}");
    assert_eq!(read(&shared).len(), 2);
}

/// P2: its ticket is stale, and whoever is given the partition next runs it.
#[test]
fn what_is_released_while_its_partition_is_revoked_is_not_handed_out_again() {
    let shared = Shared::new(100, false);
    let assigned = assign(&shared, 0);
    shared.take(run(assigned, 0..1));
    let (ticket, _) = read(&shared).remove(0);
    shared.stop(&[OriginId::default()]);
    shared.settle(
        &[Settle {
            ticket,
            settlement: Settlement::Release,
        }],
        |_, _| {},
    );
    shared.unassign(&[OriginId::default()]);
    assert!(read(&shared).is_empty());
}

/// P5 P3: the place waits with all that was read ahead of it, others go on, and it goes on in order.
#[tokio::test(start_paused = true)]
async fn what_is_given_back_with_a_wait_holds_back_its_place_alone() {
    let shared = Shared::new(100, false);
    let assigned = assign(&shared, 0);
    shared.take(run(assigned, 0..4));
    shared.committed(&shared.uncommitted(&[]));
    shared.turn();
    let mut chunk = Chunk::new();
    let credit = |messages| Credit {
        messages,
        bytes: usize::MAX,
    };
    shared.read(credit(2), &mut chunk);
    let back: Vec<_> = chunk
        .drain()
        .skip(1)
        .map(|(ticket, _)| Settle {
            ticket,
            settlement: Settlement::Retry {
                after: Duration::from_secs(1),
                failures: 0,
            },
        })
        .collect();
    shared.settle(&back, |_, outcome| assert_eq!(outcome, Outcome::Sent));
    assert!(read(&shared).is_empty());
    shared.take(run(assigned, 4..5));
    assert!(read(&shared).is_empty());
    rt::sleep(Duration::from_secs(1)).await;
    let positions: Vec<_> = read(&shared).iter().map(|(ticket, _)| ticket.sequence).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
}

/// P6: a drain asks for a commit, and a revocation waits for what the drain has under way; neither comes first.
#[test]
fn a_commit_that_is_waited_for_is_answered_when_a_revocation_begins() {
    let shared = Shared::new(100, false);
    assign(&shared, 0);
    let mut answer = shared.commit().unwrap();
    shared.stop(&[OriginId::default()]);
    assert_eq!(answer.try_recv(), Ok(true));
    assert!(shared.commit().is_none(), "nor need it be waited for later");
}
