use rdkafka::ClientConfig;

use super::*;
use crate::shared::Rules;

/// P7, and Backbeat's 2818: one that is put off, until what runs has ended for instance, takes away what was assigned
/// meanwhile; the member looks healthy, and its partition stands still.
#[test]
fn a_revocation_is_over_before_the_next_assignment_and_does_not_undo_it() {
    // What is spawned on it runs when it is blocked on, and no sooner.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let shared = Arc::new(Shared::new(Rules {
        begins: Offset::Beginning,
        window: 100,
        halts: false,
        tells_all: false,
    }));
    let (engine, _) = EngineHandle::detached();
    let callbacks = Callbacks::new(
        Arc::clone(&shared),
        engine.clone(),
        runtime.handle().clone(),
        // Nobody answers.
        Duration::from_millis(100),
        Tiers::none("orders"),
        None,
    );
    let consumer: BaseConsumer<_> = ClientConfig::new()
        .set("group.id", "orders")
        .create_with_context(callbacks)
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition("orders", 0);
    let place = places(&partitions).remove(0);
    let assigned = || shared.assigned(engine.origin(&place.name()));

    let callbacks = consumer.context();
    callbacks.pre_rebalance(&consumer, &Rebalance::Assign(&partitions));
    let first = assigned().unwrap();
    callbacks.pre_rebalance(&consumer, &Rebalance::Revoke(&partitions));
    let between = assigned();
    callbacks.pre_rebalance(&consumer, &Rebalance::Assign(&partitions));
    let second = assigned().unwrap();
    runtime.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(assigned(), Some(second), "the newer assignment was undone");
    assert_eq!(between, None, "the revocation was not over");
    assert_ne!(first, second);
}
