//! Processes that share a queue of SQS and are killed, stand still, come and go, while their broker is restarted and
//! their calls fail (P1, P2, P3).

use std::time::Duration;

use millstream_brokers::ElasticMq;
use millstream_core::SinkConnector;
use millstream_core::rt::Instant;
use millstream_sqs::SqsSink;
use millstream_tests::ledger::Ledger;
use millstream_tests::{Fault, Harm, History, QUEUE, Report, Scale, Work};

use crate::alone;
use crate::sqs_crew::{Blow, Crew, Hiring};

/// Long enough for a broker that starts on a busy machine, and for what it hides.
const SOON: Duration = Duration::from_secs(180);

#[test]
fn p1_p2_a_standard_queue_loses_nothing_and_runs_nothing_twice_at_once() {
    fault_after_fault("sqs_faults", &[]);
}

/// While its lease holds, no message of a group runs beside another one of it, wherever. What a process has in hand
/// that stood still for longer than its leases last may run beside what has been given to others, and never before
/// what precedes it: SQS cannot tell a process that it takes something from it.
///
/// Here the broker is away and not restarted: ElasticMQ forgets the order of what was out.
#[test]
fn p1_p3_a_fifo_queue_keeps_the_order_of_groups_too() {
    fault_after_fault("sqs_faults_fifo", &[("FifoQueue", "true")]);
}

fn fault_after_fault(test: &'static str, attributes: &[(&str, &str)]) {
    let _machine = alone();
    let scale = Scale::of(test);
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let in_flight: u32 = scale.get("in_flight");
    let visibility = Duration::from_secs(scale.get("visibility_s"));
    let work = Work {
        seed: scale.seed(),
        keys: scale.get("keys"),
        bytes: 64,
    };
    let broker = ElasticMq::start().unwrap_or_else(|error| panic!("{error}"));
    let suffix = if work.keys > 0 { ".fifo" } else { "" };
    let queue = broker
        .create_queue(&format!("{QUEUE}{suffix}"), attributes)
        .unwrap();
    let began = Instant::now();
    publish(&broker.url(), &queue, &work, messages);
    report.add(
        "seconds to publish",
        format_args!("{:.1}", began.elapsed().as_secs_f64()),
    );

    let plan = plan(&scale, messages);
    let blows = plan.len();
    let (ledger, records) = Ledger::new().unwrap();
    // A slow message takes longer than it would be hidden without a heartbeat.
    let arguments = [
        "discard=true".to_owned(),
        format!("in_flight={in_flight}"),
        format!("by_key={}", work.keys > 0),
        "conduct=busy".to_owned(),
        // So that each has as much in hand as the broker gives.
        "longest_us=200000".to_owned(),
        "slow_one_of=500".to_owned(),
        format!("slow_ms={}", (visibility + visibility / 5).as_millis()),
        "within_ms=30000".to_owned(),
    ];
    let began = Instant::now();
    let crew = Crew::hire(Hiring {
        broker,
        queue,
        visibility,
        arguments: arguments.to_vec(),
        ledger: ledger.another().unwrap(),
        seed: scale.seed(),
    });
    let (got, reader) = records.in_background();
    let mut history = History::new(work, messages).in_hand(in_flight);
    let mut plan = plan.into_iter().peekable();
    while history.completed() < messages {
        let record = got.recv_timeout(SOON).unwrap_or_else(|error| {
            panic!(
                "{error}: {} of {messages} completed, {} blows to come",
                history.completed(),
                plan.len()
            )
        });
        history.add(record);
        while let Some((_, blow)) = plan.next_if(|(after, _)| history.completed() >= *after) {
            crew.deal(blow);
        }
    }
    let crew = crew.mended();
    report.add(
        "seconds to complete all",
        format_args!("{:.1}", began.elapsed().as_secs_f64()),
    );
    // Repeats of what had been completed may still run.
    let (began, until) = (Instant::now(), Instant::now() + SOON);
    while crew.counts() != (0, 0) {
        let counts = crew.counts();
        assert!(Instant::now() < until, "waiting and out: {counts:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    report.add(
        "  and then to empty the queue",
        format_args!("{:.1}", began.elapsed().as_secs_f64()),
    );
    let calls = crew.calls();
    let left = crew.dismiss();
    drop(ledger);
    reader.join().unwrap();
    got.try_iter().for_each(|record| history.add(record));

    assert_eq!(left, (0, 0), "nothing is left in the queue, waiting or out");
    assert_eq!(history.completed(), messages, "nothing is lost");
    report.add("blows", blows);
    report.add("messages completed", history.completed());
    report.add("messages of the hottest key", history.hottest());
    report.add("handler runs", history.begun());
    report.add("  of which cut short", history.begun() - history.ended());
    report.add("times that a key went to another process", history.passed_on());
    report.add(
        "calls a message",
        format_args!("{:.2}", calls as f64 / f64::from(messages)),
    );
    let dealt = history.faults(in_flight);
    for (what, harm) in [
        ("killed", Harm::Killed),
        ("frozen", Harm::Frozen),
        ("cut off", Harm::CutOff),
    ] {
        let these: Vec<&Fault> = dealt.iter().filter(|fault| fault.harm == harm).collect();
        report.add(&format!("times that a process was {what}"), these.len());
        let repeats = || these.iter().map(|fault| fault.repeats);
        report.add("  run again", repeats().sum::<u32>());
        report.add("  at most, after one", repeats().max().unwrap_or_default());
        if harm == Harm::Frozen {
            let strays = these.iter().map(|fault| fault.strays);
            report.add("  run by the frozen process itself", strays.sum::<u32>());
        }
    }
    report.add("at once while leases held, out of order, lost", 0);
    report.print();
}

/// What is done after how many completed messages, sorted: all of it from the seed, and none of it so late that
/// nothing is left.
fn plan(scale: &Scale, messages: u32) -> Vec<(u32, Blow)> {
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    let mut blows = Vec::new();
    for what in [
        "kills", "freezes", "joins", "leaves", "restarts", "outages", "cuts", "spoils",
    ] {
        for _ in 0..scale.get::<usize>(what) {
            blows.push(match what {
                "kills" => Blow::Kill,
                "freezes" => Blow::Freeze,
                "joins" => Blow::Join,
                "leaves" => Blow::Leave,
                "restarts" => Blow::Restart { kill: chance.bool() },
                "outages" => Blow::Outage { whole: false },
                "cuts" => Blow::Outage { whole: true },
                _ => Blow::Spoil {
                    entries: chance.usize(1..30),
                    answers: chance.usize(1..6),
                },
            });
        }
    }
    chance.shuffle(&mut blows);
    let latest = messages - messages / 20;
    let mut moments: Vec<u32> = blows.iter().map(|_| chance.u32(1..latest)).collect();
    moments.sort_unstable();
    moments.into_iter().zip(blows).collect()
}

fn publish(endpoint: &str, queue: &str, work: &Work, messages: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let connector = SqsSink::new(queue).client(millstream_tests::sqs::client(endpoint));
    runtime.block_on(async {
        let mut sink = SinkConnector::open(&connector).await.unwrap();
        work.publish(&mut sink, 0..messages).await;
    });
}
