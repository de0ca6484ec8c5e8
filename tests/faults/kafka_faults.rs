//! Members of a group on Kafka that come and go, hang, and are killed and cut off, while their brokers are killed too
//! (P1, P3, P7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use millstream_brokers::Kafka;
use millstream_core::rt::Instant;
use millstream_tests::ledger::{EVERY, Event, Ledger, Record};
use millstream_tests::{Blow, GroupHistory, QUEUE, Report, Scale, Work};

use crate::alone;
use crate::kafka_crew::{Crew, Deed, plan};
use crate::kafka_topic::Topic;
use crate::place::SOON;

/// Something is done to a member every so often.
const TICK: Duration = Duration::from_secs(2);

/// How long a group waits for a member that it does not hear.
const SESSION: Duration = Duration::from_secs(6);

/// How often a member commits.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often somebody looks at what is committed.
const LOOK: Duration = Duration::from_millis(200);

#[test]
fn p1_p3_p7_a_group_on_kafka_loses_nothing_whoever_is_killed() {
    fault_after_fault("kafka_faults", 1);
}

#[test]
fn p1_p3_p7_nor_does_it_where_leaders_are_killed() {
    fault_after_fault("kafka_faults_leaders", 3);
}

fn fault_after_fault(test: &'static str, nodes: usize) {
    let _machine = alone();
    let scale = Scale::of(test);
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let ticks: usize = scale.get("deeds");
    let over = TICK * u32::try_from(ticks).unwrap();
    let work = Work {
        seed: scale.seed(),
        keys: scale.get("keys"),
        bytes: 64,
    };
    let kafka = Kafka::builder()
        .nodes(nodes)
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    report.add("Kafka", kafka.version());
    let brokers = kafka.brokers();
    let topic = Topic::make(&brokers, QUEUE, scale.get("partitions"), nodes);
    let (ledger, records) = Ledger::new().unwrap();
    let (got, reader) = records.in_background();
    let crew = Crew::hire(
        ledger.another().unwrap(),
        arguments(&brokers, &scale),
        ports(&brokers),
    );

    let publisher = Beside::start({
        let topic = topic.clone();
        move |_| topic.publish(&work, messages, over)
    });
    let brokers = Beside::start({
        let (ledger, topic) = (ledger.another().unwrap(), topic.clone());
        let kills = scale.get("broker_kills");
        move |stop| kill_brokers(kafka, &topic, &ledger, kills, over, stop)
    });
    let deeds = Beside::start({
        let plan = plan(scale.seed(), ticks);
        move |stop| deal(crew, plan, stop)
    });
    let looker = Beside::start({
        let (ledger, look) = (ledger.another().unwrap(), topic.looker());
        move |stop| look_on(&ledger, look, stop)
    });

    let began = Instant::now();
    let mut history = GroupHistory::new(work, messages, INTERVAL, SESSION);
    let take = |history: &mut GroupHistory, within| {
        if let Ok(record) = got.recv_timeout(within) {
            history.add(record, began.elapsed());
        }
    };
    while !(publisher.has_ended() && brokers.has_ended() && deeds.has_ended()) {
        assert!(
            began.elapsed() < over + SOON * 3,
            "the faults do not end: {} of {messages} completed",
            history.completed()
        );
        take(&mut history, LOOK);
    }
    publisher.join();
    let (kafka, killed) = brokers.join();
    let mut crew = deeds.join();
    let ended = Instant::now();
    let (ends, look) = (topic.ends(), topic.looker());
    assert_eq!(
        ends.iter().sum::<u64>(),
        u64::from(messages),
        "each was written once"
    );
    let mut looked = Instant::now();
    loop {
        take(&mut history, LOOK);
        if looked.elapsed() < LOOK {
            continue;
        }
        looked = Instant::now();
        let committed = look();
        if committed.as_ref().is_ok_and(|committed| *committed == ends) {
            break;
        }
        assert!(
            ended.elapsed() < SOON,
            "P1: {} of {messages} completed, {committed:?} of {ends:?} committed",
            history.completed()
        );
    }
    let took = ended.elapsed();
    crew.dismiss();
    let looks = looker.join();
    let (done, closed) = (crew.done().0.clone(), crew.done().1);
    drop((crew, ledger));
    reader.join().unwrap();
    got.try_iter()
        .for_each(|record| history.add(record, began.elapsed()));

    assert_eq!(history.completed(), messages, "P1: nothing is lost");
    history.hold_against(&looks, &topic.positions(messages));
    drop(kafka);
    report.add("messages completed", history.completed());
    let (begun, finished) = history.runs();
    report.add("handler runs", begun);
    report.add("  of which cut short", begun - finished as usize);
    report.add(
        "  of which by members that were given up",
        history.begun_unaware(),
    );
    report.add("what was done to members", format_args!("{done:?}"));
    report.add("  connections closed", closed);
    report.add("times that a broker was killed", killed);
    report.add("looks at what was committed", looks.len());
    for (what, is) in [
        ("a member was killed", (|blow| blow.deadly) as fn(&Blow) -> bool),
        ("one was frozen or cut off", |blow| {
            !blow.deadly && blow.actor != EVERY
        }),
        ("a broker was killed", |blow| blow.actor == EVERY),
    ] {
        let these: Vec<&Blow> = history.blows().iter().filter(|blow| is(blow)).collect();
        let sum = |count: fn(&Blow) -> u32| these.iter().map(|blow| count(blow)).sum::<u32>();
        report.add(&format!("runs again since {what}"), sum(|blow| blow.repeats));
        report.add("  of which unsettled", sum(|blow| blow.cut_short));
        let most = these.iter().map(|blow| blow.repeats).max();
        report.add("  at most for one", most.unwrap_or_default());
    }
    report.add("lag was 0 after, in seconds", took.as_secs_f32());
    report.print();
}

fn arguments(brokers: &str, scale: &Scale) -> Vec<String> {
    vec![
        "consume".to_owned(),
        format!("kafka={brokers}"),
        format!("commit_interval_ms={}", INTERVAL.as_millis()),
        format!("session_timeout_ms={}", SESSION.as_millis()),
        "discard=true".to_owned(),
        format!("in_flight={}", scale.get::<u32>("in_flight")),
        "by_key=true".to_owned(),
        "conduct=busy".to_owned(),
    ]
}

fn ports(brokers: &str) -> Vec<u16> {
    let addresses = brokers.split(',');
    addresses
        .filter_map(|address| address.rsplit_once(':')?.1.parse().ok())
        .collect()
}

/// Does what is planned, a tick at a time.
fn deal(mut crew: Crew, plan: Vec<Vec<Deed>>, stop: &AtomicBool) -> Crew {
    let began = Instant::now();
    for (tick, deeds) in (1..).zip(plan) {
        if !until(began + TICK * tick, stop) {
            break;
        }
        deeds.into_iter().for_each(|deed| crew.deal(deed));
    }
    crew
}

/// Kills a node so many times, evenly, and starts it again. While one that is alone is gone all stands still; of three,
/// two go on, with what the third led.
fn kill_brokers(
    mut kafka: Kafka,
    topic: &Topic,
    ledger: &Ledger,
    kills: u32,
    over: Duration,
    stop: &AtomicBool,
) -> (Kafka, u32) {
    let began = Instant::now();
    let mut killed = 0;
    let note = |event| ledger.write(Record::of(event, EVERY, 0));
    let alone = kafka.ids().count() == 1;
    for kill in 0..kills {
        if !until(began + over * (2 * kill + 1) / (2 * kills), stop) {
            break;
        }
        note(Event::Breaking);
        let leader = if alone { Some(0) } else { topic.leader() };
        kafka.kill_node(leader.unwrap_or_default());
        killed += 1;
        if alone {
            kafka.start_again().unwrap();
        } else {
            // The group has its coordinator again when somebody can ask it.
            let (look, soon) = (topic.looker(), Instant::now() + SOON);
            while look().is_err() {
                assert!(Instant::now() < soon, "the others do not go on");
            }
        }
        note(Event::Mended);
        kafka.start_again().unwrap();
    }
    (kafka, killed)
}

/// Looks at what is committed, and puts down when.
fn look_on(
    ledger: &Ledger,
    look: impl Fn() -> Result<Vec<u64>, rdkafka::error::KafkaError>,
    stop: &AtomicBool,
) -> Vec<Vec<u64>> {
    let mut looks = Vec::new();
    while until(Instant::now() + LOOK, stop) {
        // There is nobody to ask while brokers are killed.
        if let Ok(committed) = look() {
            let look = u32::try_from(looks.len()).unwrap();
            ledger.write(Record::of(Event::Looked, EVERY, look));
            looks.push(committed);
        }
    }
    looks
}

/// Waits until then; whether nobody said stop.
fn until(then: Instant, stop: &AtomicBool) -> bool {
    while Instant::now() < then && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
    }
    !stop.load(Ordering::Relaxed)
}

/// A thread that is told to stop when nobody waits for it any more.
struct Beside<T> {
    thread: Option<JoinHandle<T>>,
    stop: Arc<AtomicBool>,
}

impl<T: Send + 'static> Beside<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        Self {
            thread: Some(std::thread::spawn(move || work(&theirs))),
            stop,
        }
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What it came to; one that goes on until it is told to stop is told.
    fn join(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is joined once");
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
