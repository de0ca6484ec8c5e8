//! Five tenants of one pipeline with a limit for each, on real stores: one that sends ten times its limit takes nothing
//! from the others (P5), and what it has too much keeps the order of its keys where the store keeps one (P3).

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt::{self, Instant};
use millstream_core::{
    Context, DeadLetter, Delivered, DynSink, Failure, Flow, Host, Message, Ordering, Outgoing, PipelineSpec,
    Processor, RateLimit, SharedConnector, SharedSinkConnector,
};
use millstream_sqlite::{SqliteConnector, SqliteSink};
use millstream_tests::{QUEUE, Report, Scale};
use parking_lot::Mutex;

use crate::alone;
use crate::place::{Place, SOON};
use crate::stores::{OnKafka, OnRabbitMq, OnSqlite, OnSqs, Store};

const MODEST: [&str; 4] = ["ash", "beech", "cedar", "elm"];
const GREEDY: &str = "greedy";
/// Whose message shows that the pipeline reads.
const FIRST: &str = "first";

/// How often tenants send.
const TICK: Duration = Duration::from_millis(50);
/// What is done in the first moments is not counted.
const WARM: Duration = Duration::from_secs(2);

#[test]
fn p5_a_tenant_at_ten_times_its_limit_takes_nothing_from_the_others_on_sqlite() {
    takes_nothing_from_the_others::<OnSqlite>("tenants_sqlite");
}

#[test]
fn p5_a_tenant_at_ten_times_its_limit_takes_nothing_from_the_others_on_rabbitmq() {
    takes_nothing_from_the_others::<OnRabbitMq>("tenants_rabbitmq");
}

#[test]
fn p5_a_tenant_at_ten_times_its_limit_takes_nothing_from_the_others_on_kafka() {
    takes_nothing_from_the_others::<OnKafka>("tenants_kafka");
}

#[test]
fn p5_a_tenant_at_ten_times_its_limit_takes_nothing_from_the_others_on_sqs() {
    takes_nothing_from_the_others::<OnSqs>("tenants_sqs");
}

fn takes_nothing_from_the_others<S: Store>(test: &'static str) {
    let _machine = alone();
    let scale = Scale::of(test);
    let mut report = Report::begin(&scale, "");
    let counted = Duration::from_secs(scale.get("seconds"));
    // What each tenant may have done in a second.
    let limit: u32 = scale.get("limit");
    let store = S::start();
    report.add("store", store.name());
    let (source, sink) = (store.inlet(QUEUE), store.outlet(QUEUE));
    let (without, beside) = in_threads(async {
        let without = Shift::work(&source, &sink, counted, limit, false).await;
        (without, Shift::work(&source, &sink, counted, limit, true).await)
    });
    report.add("seconds counted", counted.as_secs());
    report.add(
        "messages a tenant may have done in them",
        limit * seconds(counted),
    );
    report.add("sent by the greedy one, warming up included", beside.greedy_sent);
    for (case, shift) in [("without the greedy one", &without), ("beside it", &beside)] {
        for tenant in MODEST.into_iter().chain([GREEDY]) {
            report.add(&format!("done of {tenant}, {case}"), shift.done(tenant));
        }
        report.add(
            &format!("the last was sent late by, ms, {case}"),
            shift.late.as_millis(),
        );
        let lags = shift.lags();
        let at = |percent: usize| lags[(lags.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        report.add(
            &format!("lag of the others at 50, 99, 100 %, ms, {case}"),
            format_args!("{:.0}, {:.0}, {:.0}", at(50), at(99), at(100)),
        );
    }
    report.print();

    for tenant in MODEST {
        let (without, beside) = (without.done(tenant), beside.done(tenant));
        assert!(
            beside as f64 >= without as f64 * 0.95,
            "{beside} of {tenant} beside the greedy one, {without} without it"
        );
    }
    let allowed = limit * seconds(counted);
    let greedy = u32::try_from(beside.done(GREEDY)).unwrap();
    assert!(greedy <= allowed + limit, "{greedy} of the greedy one");
    assert!(greedy >= allowed * 8 / 10, "{greedy} of the greedy one");
    let all = seconds(counted + WARM);
    assert!(beside.greedy_sent >= limit * 9 * all, "it was not so greedy");
}

fn in_threads<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(task)
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap()
}

/// A pipeline with its tenants for a while.
struct Shift {
    began: Instant,
    counted: Duration,
    greedy_sent: u32,
    /// How much later than it should the last message was sent.
    late: Duration,
    done: Vec<Done>,
}

/// A message that was done.
struct Done {
    tenant: String,
    /// When it was sent, after the shift began.
    sent: Duration,
    at: Instant,
}

impl Shift {
    async fn work(
        source: &SharedConnector,
        sink: &SharedSinkConnector,
        counted: Duration,
        limit: u32,
        greedily: bool,
    ) -> Self {
        let desk = Desk::default();
        let host = start(source, desk.clone(), limit, |_| {});
        let first = [Outgoing::new("0").with_header("tenant", FIRST)];
        publish(&mut *sink.open().await.unwrap(), &first).await;
        desk.until_done(1, |tenant| tenant == FIRST).await;

        let began = Instant::now();
        let until = began + WARM + counted;
        let (modest, greedy_sent) = tokio::join!(
            send(sink, &MODEST, limit * 8 / 10, began, until),
            send(
                sink,
                &[GREEDY],
                if greedily { 10 * limit } else { 0 },
                began,
                until
            ),
        );
        let late = until.elapsed();
        desk.until_done(modest as usize, |tenant| MODEST.contains(&tenant))
            .await;
        host.drain(Duration::from_secs(10)).await;
        Self {
            began,
            counted,
            greedy_sent,
            late,
            done: std::mem::take(&mut desk.0.lock()),
        }
    }

    /// How many messages of this tenant were done in the time that is counted.
    fn done(&self, tenant: &str) -> usize {
        let from = self.began + WARM;
        let counted = from..from + self.counted;
        self.done
            .iter()
            .filter(|done| done.tenant == tenant && counted.contains(&done.at))
            .count()
    }

    /// From when messages of the modest were sent until they were done, sorted.
    fn lags(&self) -> Vec<Duration> {
        let mut lags: Vec<_> = self
            .done
            .iter()
            .filter(|done| MODEST.contains(&&*done.tenant) && done.sent >= WARM)
            .map(|done| done.at - (self.began + done.sent))
            .collect();
        lags.sort();
        lags
    }
}

/// Starts a pipeline with a limit for each tenant: so many a second, and at once.
fn start(
    source: &SharedConnector,
    processor: impl Processor<Output = ()>,
    limit: u32,
    more: impl FnOnce(&mut PipelineSpec),
) -> Host {
    let mut spec = PipelineSpec::new("tenants", Arc::clone(source), Flow::process(processor));
    spec.dead_letter = DeadLetter::Discard;
    // Fewer places than the greedy one has messages over its limit.
    spec.limits.in_flight = NonZero::new(1_000).unwrap();
    spec.rate_limit = Some(RateLimit {
        messages: NonZero::new(limit).unwrap(),
        per: Duration::from_secs(1),
        burst: NonZero::new(limit).unwrap(),
        key: Some("tenant".to_owned()),
        weights: BTreeMap::new(),
    });
    more(&mut spec);
    Host::start([spec]).unwrap()
}

/// Sends so many messages a second of each of these, evenly; how many in all.
async fn send(
    sink: &SharedSinkConnector,
    tenants: &[&str],
    rate: u32,
    began: Instant,
    until: Instant,
) -> u32 {
    let mut sink = sink.open().await.unwrap();
    let mut sent = 0;
    let mut tick = began;
    while tick < until {
        rt::sleep_until(tick + TICK).await;
        // A late tick sends what those would have sent that it has missed.
        tick = Instant::now().min(until);
        let due = ((tick - began).as_secs_f64() * f64::from(rate)) as u32;
        let at = began.elapsed().as_micros().to_string();
        let messages: Vec<_> = (sent..due)
            .flat_map(|_| tenants)
            .map(|tenant| Outgoing::new(at.clone()).with_header("tenant", tenant))
            .collect();
        publish(&mut *sink, &messages).await;
        sent = due;
    }
    sent * u32::try_from(tenants.len()).unwrap()
}

async fn publish(sink: &mut dyn DynSink, messages: &[Outgoing]) {
    let mut results = Vec::new();
    sink.send(messages, &mut results).await.unwrap();
    assert!(
        results.iter().all(|result| *result == Delivered::Confirmed),
        "{results:?}"
    );
}

/// Writes down what is done of whom, and when.
#[derive(Clone, Default)]
struct Desk(Arc<Mutex<Vec<Done>>>);

impl Desk {
    async fn until_done(&self, messages: usize, of: impl Fn(&str) -> bool) {
        let soon = Instant::now() + SOON;
        loop {
            let done = self.0.lock().iter().filter(|done| of(&done.tenant)).count();
            if done >= messages {
                return;
            }
            assert!(Instant::now() < soon, "{done} of {messages} are done");
            rt::sleep(TICK).await;
        }
    }
}

impl Processor for Desk {
    type Input = Message;
    type Output = ();

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<(), Failure> {
        let sent: u64 = std::str::from_utf8(&message.payload)?.parse()?;
        self.0.lock().push(Done {
            tenant: tenant(&message),
            sent: Duration::from_micros(sent),
            at: Instant::now(),
        });
        Ok(())
    }
}

fn tenant(message: &Message) -> String {
    message.headers.get("tenant").unwrap_or_default().to_owned()
}

/// Keys that tenants share: what waits for one of them holds what the others have behind it in its key.
#[test]
fn p3_what_goes_back_over_its_tenants_limit_keeps_the_order_of_its_key_on_sqlite() {
    const EACH: u32 = 100;
    let _machine = alone();
    let scale = Scale::of("tenants_in_order");
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let keys: u32 = scale.get("keys");
    let place = Place::new();
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    let all: Vec<_> = (0..messages)
        .map(|number| {
            // Half of all are the greedy one's.
            let tenant = MODEST.get(chance.usize(..8)).unwrap_or(&GREEDY);
            Outgoing::new(number.to_string())
                .with_key(chance.u32(..keys).to_string())
                .with_header("tenant", tenant)
        })
        .collect();
    let sink: SharedSinkConnector = Arc::new(SqliteSink::new(place.path(), QUEUE));
    let source: SharedConnector = Arc::new(SqliteConnector::new(place.path(), QUEUE).ordered(true));
    let lanes = Lanes::default();
    let (took, status) = in_threads(async {
        publish(&mut *sink.open().await.unwrap(), &all).await;
        let began = Instant::now();
        let host = start(&source, lanes.clone(), EACH, |spec| spec.ordering = Ordering::Key);
        while lanes.0.lock().len() < all.len() {
            let done = lanes.0.lock().len();
            assert!(began.elapsed() < SOON, "{done} of {messages} are done");
            rt::sleep(TICK).await;
        }
        let took = began.elapsed();
        host.drain(Duration::from_secs(10)).await;
        (took, host.pipelines().next().unwrap().status())
    });

    let done = lanes.0.lock();
    let mut greedy = 0;
    let mut by_key: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (key, tenant, number) in &*done {
        greedy += u32::from(tenant == GREEDY);
        by_key.entry(key).or_default().push(*number);
    }
    report.add("messages", messages);
    report.add("of them the greedy one's", greedy);
    report.add("given back", status.counts.returned);
    report.add(
        "seconds until all were done",
        format_args!("{:.1}", took.as_secs_f64()),
    );
    report.print();
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted_by(|a, b| a < b), "of key {key} ran {numbers:?}");
    }
    assert_eq!(done.len(), all.len(), "each ran once");
    assert!(status.counts.returned > 0, "nothing went back");
    let allowed = f64::from(EACH) * took.as_secs_f64() + f64::from(EACH);
    assert!(f64::from(greedy) <= allowed, "{greedy} in {took:?}");
    let counts = place.queue().counts().unwrap();
    assert_eq!(
        counts.ready + counts.delayed + counts.leased + counts.dead,
        0,
        "{counts:?}"
    );
}

/// Key, tenant and number of what ran, in the order in which it did.
#[derive(Clone, Default)]
struct Lanes(Arc<Mutex<Vec<(String, String, u32)>>>);

impl Processor for Lanes {
    type Input = Message;
    type Output = ();

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<(), Failure> {
        let key = message.key.as_deref().unwrap_or_default();
        let number = std::str::from_utf8(&message.payload)?.parse()?;
        let ran = (
            String::from_utf8_lossy(key).into_owned(),
            tenant(&message),
            number,
        );
        self.0.lock().push(ran);
        Ok(())
    }
}
