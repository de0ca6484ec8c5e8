use millstream_core::{Outcome, Settle, Settlement, Ticket};

use super::*;
use crate::copies::Assigned;
use crate::ends::Note;

fn shared() -> Shared {
    Shared::new(Rules {
        begins: Offset::Beginning,
        window: 100,
        halts: false,
        tells_all: false,
    })
}

fn orders() -> Place {
    Place {
        topic: "orders".into(),
        partition: 0,
    }
}

fn assign(shared: &Shared, committed: u64) -> u32 {
    shared.assign(OriginId::default(), orders(), Some((committed, "")), None, false);
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
    shared.committed(&shared.uncommitted());
    shared.turn();
    buffered(shared)
}

fn buffered(shared: &Shared) -> Vec<(Ticket, Message)> {
    let mut state = shared.state.lock();
    let State {
        buffer, assignments, ..
    } = &mut *state;
    let tickets = std::iter::from_fn(|| buffer.pop_front());
    tickets
        .filter_map(|ticket| {
            let message = assignments[&ticket.origin].offsets.out(ticket.sequence)?;
            Some((ticket, message.clone()))
        })
        .collect()
}

fn acked(ticket: Ticket) -> Settle {
    Settle {
        ticket,
        settlement: Settlement::Ack,
    }
}

/// P1 P7, and Parallel Consumer's 875 and 909: it would pass for what follows the committed offset, and let a commit go past
/// what lies between.
#[test]
fn what_was_read_before_its_partition_was_assigned_again_is_not_handed_out() {
    let shared = shared();
    let before = assign(&shared, 80);
    shared.unassign(&[OriginId::default()]);
    let now = assign(&shared, 80);
    shared.take(run(before, 90..95));
    assert!(read(&shared).is_empty());
    shared.take(run(now, 80..82));
    let marks: Vec<_> = shared.uncommitted().iter().map(|commit| commit.offset).collect();
    assert!(marks.iter().all(|mark| *mark == 80), "{marks:?}");
    assert_eq!(read(&shared).len(), 2);
}

/// P2: its ticket is stale, and whoever is given the partition next runs it.
#[test]
fn what_is_released_while_its_partition_is_revoked_is_not_handed_out_again() {
    let shared = shared();
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

/// P7, and Vector's 24543: what failed is not settled, so it holds the mark, whatever is done behind it.
#[test]
fn what_is_done_behind_a_failed_message_does_not_have_it_committed() {
    let back = Settlement::Retry {
        after: Duration::from_secs(3_600),
        failures: 1,
    };
    for (failed, drains) in [(back.clone(), false), (back, true), (Settlement::Release, true)] {
        let shared = shared();
        let assigned = assign(&shared, 80);
        shared.take(run(assigned, 80..83));
        let messages = read(&shared);
        if drains {
            shared.drain();
        }
        let failed = Settle {
            ticket: messages[0].0,
            settlement: failed,
        };
        shared.settle(&[failed, acked(messages[1].0), acked(messages[2].0)], |_, _| {});
        let commits = shared.uncommitted();
        let [commit] = &commits[..] else {
            panic!("{commits:?}");
        };
        assert_eq!(commit.offset, 80, "drains: {drains}");
        assert_eq!(
            metadata::decode(80, &commit.metadata).1,
            std::slice::from_ref(&(81..83))
        );
    }
}

/// P7, and Parallel Consumer's 893: the offset that the group has is that of the next message, and not of one that was
/// done; nor is what was done beyond it all there is.
#[test]
fn the_first_commit_of_an_assignment_does_not_pass_what_is_yet_to_come() {
    let shared = shared();
    let (origin, place) = (OriginId::default(), orders());
    let text = metadata::encode(80, &Note::default(), std::slice::from_ref(&(85..90)));
    shared.assign(origin, place, Some((80, &text)), None, false);
    let marks = || -> Vec<_> { shared.uncommitted().iter().map(|commit| commit.offset).collect() };
    assert!(marks().into_iter().all(|mark| mark == 80));
    shared.take(run(shared.assigned(origin).unwrap(), 80..82));
    let messages = read(&shared);
    assert_eq!(offsets(&messages), [80, 81]);
    shared.settle(&[acked(messages[0].0)], |_, _| {});
    assert_eq!(marks(), [81]);
}

/// P1 P2, and Parallel Consumer's 875 and 909, otel-arrow's 3682: what is known of an offset is known of one assignment.
/// Otherwise the message would pass for one that is in flight, and nobody would run it until the process is started again.
#[test]
fn what_was_in_flight_before_a_rebalance_is_handed_out_again_after_it() {
    let shared = shared();
    let assigned = assign(&shared, 80);
    shared.take(run(assigned, 80..83));
    let before = read(&shared);
    shared.unassign(&[OriginId::default()]);
    let assigned = assign(&shared, 80);
    shared.take(run(assigned, 80..83));
    // What still runs says nothing of what was handed out since.
    shared.settle(&[acked(before[0].0)], |_, outcome| {
        assert_eq!(outcome, Outcome::Stale);
    });
    let after = read(&shared);
    assert_eq!(offsets(&after), [80, 81, 82]);
    let all: Vec<_> = after.iter().map(|(ticket, _)| acked(*ticket)).collect();
    shared.settle(&all, |_, outcome| assert_eq!(outcome, Outcome::Sent));
    assert_eq!(shared.uncommitted()[0].offset, 83);
}

/// P5 P3: the place waits with all that was read ahead of it, others go on, and it goes on in order.
#[tokio::test(start_paused = true)]
async fn what_is_given_back_with_a_wait_holds_back_its_place_alone() {
    let shared = shared();
    let assigned = assign(&shared, 0);
    shared.take(run(assigned, 0..4));
    shared.committed(&shared.uncommitted());
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

/// P6, and Parallel Consumer's 857, Broadway Kafka's 92 and 121: a drain asks for a commit, and a revocation waits for what the
/// drain has under way; neither comes first.
#[test]
fn a_commit_that_is_waited_for_is_answered_when_a_revocation_begins() {
    let shared = shared();
    assign(&shared, 0);
    let mut answer = shared.commit().unwrap();
    shared.stop(&[OriginId::default()]);
    assert_eq!(answer.try_recv(), Ok(true));
    assert!(shared.commit().is_none(), "nor need it be waited for later");
}

fn transactional() -> Shared {
    Shared::new(Rules {
        begins: Offset::Beginning,
        window: 20_000,
        halts: false,
        tells_all: true,
    })
}

/// Has all that is settled committed, and what comes of these, as a transaction does.
fn transact(shared: &Shared, inputs: &[Ticket]) -> Vec<(u64, String)> {
    let commits = shared.uncommitted_with(inputs, shared.rebalances()).unwrap();
    shared.committed(&commits);
    shared.written(inputs);
    commits
        .into_iter()
        .map(|commit| (commit.offset, commit.metadata))
        .collect()
}

fn offsets(messages: &[(Ticket, Message)]) -> Vec<u64> {
    messages.iter().map(|(ticket, _)| ticket.sequence).collect()
}

/// P2: an unclean end is known of by a note, which transactions keep too, and take back.
#[test]
fn a_transaction_of_offsets_alone_keeps_the_note_that_messages_wait_for() {
    let shared = transactional();
    let assigned = assign(&shared, 80);
    shared.take(run(assigned, 80..82));
    shared.turn();
    assert!(buffered(&shared).is_empty() && shared.wants_note());
    let kept = transact(&shared, &[]);
    assert!(!shared.wants_note());
    let [(80, text)] = &kept[..] else {
        panic!("{kept:?}");
    };
    assert_eq!(metadata::decode(80, text).0.ends, 1);
    shared.turn();
    let messages = buffered(&shared);
    assert_eq!(offsets(&messages), [80, 81]);
    shared.give_up(&[OriginId::default()]);
    assert_eq!(transact(&shared, &[messages[0].0]), [(81, String::new())]);
}

/// P1 P7, and no repeats: beside the longest run lengths that are let in there is room for the note.
#[test]
fn what_is_settled_can_be_told_beside_the_note() {
    let shared = transactional();
    let origin = OriginId::default();
    let place = Place {
        topic: "orders".into(),
        partition: 0,
    };
    let found = Note {
        ends: 1,
        until: Some(1 << 62),
        alone: None,
    };
    let text = metadata::encode(0, &found, &[]);
    shared.assign(origin, place, Some((0, &text)), None, false);
    let taken = shared.take(run(shared.assigned(origin).unwrap(), 0..4_000));
    assert_eq!(taken.stuck.len(), 1, "some of it waits outside");
    transact(&shared, &[]);
    shared.turn();
    let messages = buffered(&shared);
    assert!(messages.len() > 3_000, "{}", messages.len());
    let odd: Vec<_> = messages
        .iter()
        .map(|(ticket, _)| *ticket)
        .filter(|ticket| ticket.sequence % 2 == 1)
        .collect();
    let (offset, text) = transact(&shared, &odd).remove(0);
    let (_, told) = metadata::decode(offset, &text);
    assert_eq!((offset, told.len()), (0, odd.len()));
}

/// P3: what waits for room, and what waits at its gate, come in the order of their offsets.
#[test]
fn what_waits_outside_comes_after_what_waits_at_its_gate() {
    let shared = transactional();
    let assigned = assign(&shared, 0);
    shared.take(run(assigned, 0..4_000));
    assert!(!shared.may_take_in(), "there is no room");
    transact(&shared, &[]);
    shared.turn();
    let first = buffered(&shared);
    let handed_out: Vec<_> = first.iter().map(|(ticket, _)| *ticket).collect();
    transact(&shared, &handed_out);
    assert!(shared.turn().open.is_empty(), "some of it waits outside");
    assert!(shared.may_take_in());
    shared.take(run(assigned, 4_000..4_010));
    shared.turn();
    let all = [offsets(&first), offsets(&buffered(&shared))].concat();
    assert!(all.iter().copied().eq(0..4_010), "{all:?}");
    assert_eq!(shared.turn().open.len(), 1);
}

/// Commits of an older state of the assignments would say what is no longer so.
#[test]
fn what_was_handed_out_before_a_rebalance_is_not_committed_after_it() {
    let shared = transactional();
    assign(&shared, 0);
    let before = shared.rebalances();
    shared.unassign(&[OriginId::default()]);
    assign(&shared, 0);
    assert!(shared.uncommitted_with(&[], before).is_none());
}

/// P1 P7 P3: nothing would come for it from the broker, and a commit would pass it.
#[test]
fn what_is_unsettled_before_a_cut_of_the_log_comes_again_ahead_of_what_follows() {
    let shared = shared();
    let assigned = assign(&shared, 90);
    shared.take(run(assigned, 90..150));
    let before = read(&shared);
    let settled = before
        .iter()
        .filter(|(ticket, _)| ![95, 97, 120].contains(&ticket.sequence));
    let settled: Vec<_> = settled.map(|(ticket, _)| acked(*ticket)).collect();
    shared.settle(&settled, |_, outcome| assert_eq!(outcome, Outcome::Sent));
    let taken = shared.take(run(assigned, 100..103));
    assert_eq!(taken.lost.len(), 1);
    let after = read(&shared);
    assert_eq!(offsets(&after), [95, 97, 100, 101, 102]);
    // What runs of the old generation says nothing of the new one.
    shared.settle(&[acked(before[5].0)], |_, outcome| {
        assert_eq!(outcome, Outcome::Stale);
    });
    let last: Vec<_> = after[1..].iter().map(|(ticket, _)| acked(*ticket)).collect();
    shared.settle(&last, |_, _| {});
    assert_eq!(
        shared.state.lock().assignments[&OriginId::default()]
            .offsets
            .mark(),
        Some(95)
    );
    shared.settle(&[acked(after[0].0)], |_, _| {});
    let marks: Vec<_> = shared.uncommitted().iter().map(|commit| commit.offset).collect();
    assert_eq!(marks, [103]);
}

/// It stands still at what is still there; where that is gone, it goes on.
#[test]
fn a_partition_whose_log_is_cut_stands_still_only_at_what_is_left() {
    for (cut, stands) in [(8, true), (3, false)] {
        let shared = shared();
        let assigned = assign(&shared, 0);
        shared.take(run(assigned, 0..10));
        assert_eq!(read(&shared).len(), 10);
        let mut state = shared.state.lock();
        state
            .assignments
            .get_mut(&OriginId::default())
            .unwrap()
            .gate
            .halt(5);
        drop(state);
        shared.take(run(assigned, cut..cut + 1));
        let halted = shared.halted().unwrap();
        assert_eq!(halted.len(), usize::from(stands));
        assert_eq!(read(&shared).is_empty(), stands);
    }
}

/// P1: the group has kept what was settled beyond its offset in a log that has been made anew since.
#[test]
fn what_was_settled_in_an_older_log_is_not_taken_for_what_is_in_the_new_one() {
    let shared = shared();
    let (origin, place) = (OriginId::default(), orders());
    let note = Note {
        ends: 2,
        until: Some(1_100),
        alone: None,
    };
    let text = metadata::encode(1_000, &note, std::slice::from_ref(&(1_005..1_100)));
    shared.assign(origin, place, Some((1_000, &text)), None, false);
    shared.take(run(shared.assigned(origin).unwrap(), 990..1_020));
    let all = read(&shared);
    assert!(offsets(&all).into_iter().eq(990..1_020));
    assert!(
        all.iter().all(|(_, message)| message.deliveries == 1),
        "nobody has had these"
    );
}

/// Once: its outputs are committed, and it is handed out again from memory.
#[test]
fn what_a_transaction_has_written_while_the_log_was_cut_is_settled() {
    let shared = transactional();
    let assigned = assign(&shared, 0);
    shared.take(run(assigned, 0..10));
    transact(&shared, &[]);
    shared.turn();
    let inputs: Vec<_> = buffered(&shared).iter().map(|(ticket, _)| *ticket).collect();
    let commits = shared.uncommitted_with(&inputs, shared.rebalances()).unwrap();
    shared.take(run(assigned, 5..6));
    shared.committed(&commits);
    shared.written(&inputs);
    assert_eq!(offsets(&read(&shared)), [5]);
}

/// P2: its process lives, so none of its messages has ended that.
#[test]
fn a_source_whose_transactions_end_is_no_unclean_end_to_the_next_in_its_process() {
    let left = Arc::new(Left::default());
    let shared = transactional().after(Arc::clone(&left));
    let assigned = assign(&shared, 80);
    shared.take(run(assigned, 80..82));
    let (offset, text) = transact(&shared, &[]).remove(0);
    assert_eq!(metadata::decode(offset, &text).0.ends, 1);
    shared.turn();
    let (ticket, _) = buffered(&shared).remove(0);
    // It is fenced when it writes.
    let commits = shared.uncommitted_with(&[ticket], shared.rebalances()).unwrap();
    shared.commit_failed(&commits);
    shared.leave(&[OriginId::default()]);
    let deliveries = || {
        let next = transactional().after(Arc::clone(&left));
        next.assign(OriginId::default(), orders(), Some((offset, &text)), None, false);
        next.take(run(next.assigned(OriginId::default()).unwrap(), 80..81));
        read(&next)[0].1.deliveries
    };
    assert_eq!(deliveries(), 1);
    assert_eq!(deliveries(), 2, "another that ends without a word is one");
}
