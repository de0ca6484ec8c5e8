//! The suite itself, on paused time: each way of breaking a promise fails the cases that guard it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod pages;

use broken::{Broken, Fault};
use millstream_testkit::conformance::{self, Scale, Verdict};

#[tokio::test(start_paused = true)]
async fn a_queue_that_keeps_its_promises_passes() {
    let report = conformance::run(Broken::at(None), Scale::Small).await;
    assert!(report.is_conformant(), "{report}");
    assert_eq!(report.rows.len(), conformance::cases().len());
}

#[tokio::test(start_paused = true)]
async fn so_does_one_whose_retry_sink_holds_messages_back() {
    let report = conformance::run(Broken::at(None).with_a_retry_sink(), Scale::Small).await;
    assert!(report.is_conformant(), "{report}");
    let ran = |name| {
        let mut rows = report.rows.iter();
        rows.any(|row| row.case.name == name && matches!(row.verdict, Verdict::Passed))
    };
    assert!(ran("retry_delay") && ran("redelivered_attempts"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_sink_that_keeps_no_delay_is_noticed() {
    for case in ["retry_delay", "redelivered_attempts"] {
        let broken = Broken::at(Some(Fault::NoDelay)).with_a_retry_sink();
        let row = conformance::run_one(broken, Scale::Small, case).await;
        assert!(
            matches!(row.verdict, Verdict::Failed(_)),
            "{case}: {}",
            row.verdict
        );
    }
}

/// Runs these cases on a queue with this fault, and says which of them passed all the same.
async fn unnoticed(fault: Fault, cases: &[&'static str]) -> Vec<&'static str> {
    let mut passed = Vec::new();
    for case in cases {
        let row = conformance::run_one(Broken::at(Some(fault)), Scale::Small, case).await;
        if !matches!(row.verdict, Verdict::Failed(_)) {
            passed.push(*case);
        }
    }
    passed
}

macro_rules! noticed {
    ($($test:ident: $fault:ident fails [$($case:ident),+];)+) => {$(
        #[tokio::test(start_paused = true)]
        async fn $test() {
            let unnoticed = unnoticed(Fault::$fault, &[$(stringify!($case)),+]).await;
            assert!(unnoticed.is_empty(), "{unnoticed:?} passed");
        }
    )+};
}

noticed! {
    p1_a_queue_that_loses_messages_is_noticed: LosesMessages fails [
        publish_subscribe, concurrent_subscribe_multiple_topics, publish_subscribe_in_order, resend_on_error,
        continue_after_subscribe_close, continue_after_errors, publisher_close, reconnect, subscribe_ctx,
        new_subscriber_receives_old_messages, parallel_lossy, parallel_lossy_through_reconnect, drain,
        saturated_unacked, messages_in_flight, bytes_in_flight, credit, send_batch_count_isolated
    ];
    p1_acknowledgements_that_do_nothing_are_noticed: ForgetsAcks fails [
        publish_subscribe, topic, no_ack, checkpoint_capture, at_least_once_delivery, continue_after_errors,
        resend_on_error, stale_generation, cut_connection, drain
    ];
    p1_releases_that_acknowledge_are_noticed: ReleaseAcks fails [
        resend_on_error, continue_after_errors, checkpoint_capture, parallel_lossy,
        parallel_lossy_through_reconnect, message_ctx, drain, redelivery_count
    ];
    p1_messages_that_die_with_their_consumer_are_noticed: ClosesAck fails [
        at_least_once_delivery, continue_after_subscribe_close, subscribe_ctx, stale_generation, redelivery_count
    ];
    p1_a_sink_that_confirms_what_it_drops_is_noticed: ConfirmsAndDrops fails [
        publish_subscribe, publisher_close, send_batch_count_isolated, topic, keys
    ];
    p2_a_settlement_of_an_older_generation_that_counts_is_noticed: IgnoresGenerations fails [
        stale_generation, cut_connection
    ];
    p2_a_lost_connection_that_nobody_is_told_of_is_noticed: SilentCuts fails [cut_connection];
    p2_a_read_that_is_not_cancel_safe_is_noticed: DropsReads fails [subscribe_ctx];
    p3_a_queue_that_hands_out_backwards_is_noticed: Backwards fails [
        publish_subscribe_in_order, new_subscriber_receives_old_messages
    ];
    p4_a_source_that_exceeds_its_credit_is_noticed: ExceedsCredit fails [
        credit, messages_in_flight, bytes_in_flight, no_ack, saturated_unacked
    ];
    keys_and_headers_that_do_not_arrive_are_noticed: BarePayloads fails [headers, keys];
    delays_that_are_not_kept_are_noticed: NoDelay fails [retry_delay, redelivered_attempts];
    rejects_that_are_not_kept_are_noticed: RejectAcks fails [rejected_are_kept];
    a_count_that_does_not_count_is_noticed: CountsOne fails [redelivery_count];
    a_connector_that_says_something_else_is_noticed: SaysLess fails [says_what_it_declares];
}

#[tokio::test(start_paused = true)]
async fn what_is_declared_and_not_implemented_fails() {
    for case in ["consumer_groups", "reconnect"] {
        let row = conformance::run_one(Broken::at(Some(Fault::DeclaresTooMuch)), Scale::Small, case).await;
        let Verdict::Failed(how) = row.verdict else {
            panic!("`{case}`: {}", row.verdict);
        };
        assert!(how.contains("is declared, and"), "{how}");
    }
}
