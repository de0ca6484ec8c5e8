//! Limits of keys: who is over the limit waits at the source, and takes nothing from the others.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{Capabilities, Context, Failure, Flow, Message, Ordering, Processor, RateLimit};
use parking_lot::Mutex;

use crate::support::{Rig, non_zero, until};

const SECOND: Duration = Duration::from_secs(1);

/// Counts what it runs by tenant, with the order in which it comes.
#[derive(Clone, Default)]
struct ByTenant(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl ByTenant {
    fn count(&self, tenant: &str) -> usize {
        self.0.lock().get(tenant).map_or(0, Vec::len)
    }
}

impl Processor for ByTenant {
    type Input = String;
    type Output = ();

    async fn process(&self, payload: String, cx: &mut Context<'_>) -> Result<(), Failure> {
        assert_eq!(cx.attempt(), 1, "a limit burns no attempt");
        let tenant = cx.headers().get("tenant").unwrap_or_default().to_owned();
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.0.lock().entry(tenant).or_default().push(payload);
        Ok(())
    }
}

/// So many in a second for each tenant, and as many at once.
fn limit(messages: u32, burst: u32) -> RateLimit {
    RateLimit {
        messages: NonZeroU32::new(messages).unwrap(),
        per: SECOND,
        burst: NonZeroU32::new(burst).unwrap(),
        key: Some("tenant".to_owned()),
        weights: [("gold".to_owned(), NonZeroU32::new(4).unwrap())].into(),
    }
}

fn of(tenant: &str, payload: &str) -> Message {
    Message::new(payload.to_owned()).with_header("tenant", tenant)
}

/// What four tenants within their limit got done in a minute, and what one got that sends so many in each tenth of a
/// second.
async fn a_minute_beside(queue: MemoryQueue, greedy: usize) -> (Vec<usize>, usize, Rig) {
    let done = ByTenant::default();
    let rig = Rig::on(queue, Flow::process(done.clone()), |spec| {
        spec.rate_limit = Some(limit(100, 20));
        spec.limits.in_flight = non_zero(200);
    });
    for tenth in 0..600 {
        let others = ["a", "b", "c", "d"];
        let modest = others
            .iter()
            .flat_map(|tenant| (0..9).map(|_| of(tenant, "modest")));
        rig.queue.publish_all(modest);
        rig.queue
            .publish_all((0..greedy).map(|number| of("greedy", &format!("{}", tenth * greedy + number))));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let others = ["a", "b", "c", "d"].map(|tenant| done.count(tenant)).to_vec();
    (others, done.count("greedy"), rig)
}

#[tokio::test(start_paused = true)]
async fn p5_a_tenant_at_ten_times_its_limit_takes_nothing_from_the_others() {
    for queue in [MemoryQueue::new, || {
        MemoryQueue::with_capabilities(Capabilities {
            keeps_rejected: true,
            ..Capabilities::default()
        })
    }] {
        let (alone, _, _) = a_minute_beside(queue(), 0).await;
        let (beside, greedy, rig) = a_minute_beside(queue(), 100).await;
        for (alone, beside) in alone.iter().zip(&beside) {
            assert!(
                *beside as f64 >= *alone as f64 * 0.95,
                "{beside} beside the greedy one, {alone} alone"
            );
        }
        assert!(
            (5_400..=6_060).contains(&greedy),
            "{greedy} of the greedy one in a minute at a hundred a second"
        );
        let counts = rig.pipeline().status().counts;
        let received = 600 * (36 + 100);
        assert!(
            counts.received < received * 5 / 4,
            "{} deliveries of {received} messages: what is over the limit spins",
            counts.received
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_one_tenant_drains_at_its_limit_and_its_weight() {
    let done = ByTenant::default();
    let rig = Rig::start(Flow::process(done.clone()), |spec| {
        spec.rate_limit = Some(limit(10, 1));
    });
    for number in 0..400 {
        rig.queue
            .publish_all([of("iron", &number.to_string()), of("gold", &number.to_string())]);
    }
    tokio::time::sleep(10 * SECOND).await;
    let [iron, gold] = ["iron", "gold"].map(|tenant| done.count(tenant));
    assert!((95..=105).contains(&iron), "{iron} of iron");
    assert!((380..=400).contains(&gold), "{gold} of gold");
    let began = tokio::time::Instant::now();
    rig.settled().await;
    assert!(began.elapsed() < 35 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn p3_under_an_ordering_what_is_over_the_limit_waits_in_its_place() {
    let done = ByTenant::default();
    let rig = Rig::start(Flow::process(done.clone()), |spec| {
        spec.rate_limit = Some(limit(10, 1));
        spec.ordering = Ordering::Key;
    });
    let numbers: Vec<_> = (0..30).map(|number| number.to_string()).collect();
    let keyed = numbers.iter().map(|number| of("a", number).with_key("k"));
    rig.queue.publish_all(keyed);
    rig.settled().await;
    assert_eq!(done.0.lock()["a"], numbers);
    assert_eq!(rig.pipeline().status().counts.returned, 0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_while_it_runs_holds_at_once() {
    let done = ByTenant::default();
    let rig = Rig::start(Flow::process(done.clone()), |spec| {
        spec.rate_limit = Some(RateLimit {
            key: None,
            ..limit(1, 1)
        });
    });
    rig.queue.publish_all((0..500).map(|_| of("a", "m")));
    until(|| done.count("a") == 2).await;
    let set = |limit: Option<RateLimit>| rig.pipeline().change(|spec| spec.rate_limit = limit).unwrap();
    set(Some(RateLimit {
        key: None,
        ..limit(100, 1)
    }));
    tokio::time::sleep(SECOND).await;
    assert!((90..=110).contains(&done.count("a")), "{}", done.count("a"));
    let began = tokio::time::Instant::now();
    set(None);
    rig.settled().await;
    assert!(began.elapsed() < SECOND);
}

/// P8, and foxtive-worker's limit, which failed what was over it: it waits, whatever a first attempt's failure would mean.
#[tokio::test(start_paused = true)]
async fn what_is_over_a_limit_waits_and_is_no_failure() {
    for key in [None, Some("tenant".to_owned())] {
        for queue in [
            MemoryQueue::new(),
            MemoryQueue::with_capabilities(Capabilities::default()),
        ] {
            let done = ByTenant::default();
            let rig = Rig::on(queue, Flow::process(done.clone()), |spec| {
                spec.rate_limit = Some(RateLimit {
                    key: key.clone(),
                    ..limit(10, 1)
                });
                spec.retry.attempts = NonZeroU32::MIN;
                spec.dead_letter = millstream_core::DeadLetter::Discard;
            });
            let began = tokio::time::Instant::now();
            rig.queue.publish_all((0..50).map(|_| of("a", "m")));
            rig.settled().await;
            assert!(began.elapsed() > 4 * SECOND, "{:?}", began.elapsed());
            let counts = rig.pipeline().status().counts;
            assert_eq!(
                (counts.failed, counts.rejected, counts.discarded),
                (0, 0, 0),
                "{key:?}"
            );
            assert_eq!(done.count("a"), 50);
        }
    }
}
