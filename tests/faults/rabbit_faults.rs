//! A consumer on RabbitMQ that is killed, whose connections are closed and whose broker is restarted (P1, P2, P3, P4).

use millstream_brokers::{RabbitMq, Series};
use millstream_core::SinkConnector;
use millstream_rabbitmq::lapin::types::AMQPValue;
use millstream_rabbitmq::{Declare, Dial, RabbitSink, Topology};
use millstream_tests::ledger::{Event, Ledger, NOT_MEASURED, Record};
use millstream_tests::{Actor, Fault, Harm, History, QUEUE, Report, Scale, Work, moments};

use crate::alone;
use crate::blows::Blows;
use crate::place::{SOON, until};

#[test]
fn p1_p3_a_classic_queue_loses_nothing_and_keeps_the_order_of_keys_whatever_is_killed() {
    fault_after_fault("rabbit_faults_classic", Series::V3, "classic");
}

#[test]
fn p1_p3_so_does_a_quorum_queue() {
    fault_after_fault("rabbit_faults_quorum", Series::V4, "quorum");
}

fn fault_after_fault(test: &'static str, series: Series, queue_type: &str) {
    let _machine = alone();
    let scale = Scale::of(test);
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let in_flight: u32 = scale.get("in_flight");
    let work = Work {
        seed: scale.seed(),
        keys: scale.get("keys"),
        bytes: 64,
    };
    let broker = RabbitMq::builder(series)
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    report.add("RabbitMQ", broker.version());
    publish(&broker.url(), queue_type, &work, messages);

    let plan = plan(&scale, messages);
    let faults = plan.len();
    let (ledger, records) = Ledger::new().unwrap();
    let target = Target::new(broker, ledger.another().unwrap(), &scale);
    let mut blows = Blows::planned(plan, target, Target::deal);
    let (got, reader) = records.in_background();
    let mut history = History::new(work, messages);
    let mut mended = 0;
    while history.completed() < messages || mended < faults {
        let record = got.recv_timeout(SOON).unwrap_or_else(|error| {
            panic!(
                "{error}: {} of {messages} completed, {mended} of {faults} faults",
                history.completed()
            )
        });
        mended += usize::from(matches!(record.event, Event::Dead | Event::Mended));
        history.add(record);
        blows.fall(history.completed());
    }
    let left = blows.over().dismiss();
    drop(ledger);
    reader.join().unwrap();
    got.try_iter().for_each(|record| history.add(record));

    assert_eq!(left, (0, 0), "nothing is left in the queue, ready or unsettled");
    assert_eq!(history.completed(), messages, "nothing is lost");
    let dealt = history.faults(in_flight);
    assert_eq!(dealt.len(), faults);
    report.add("messages completed", history.completed());
    report.add("keys", work.keys);
    report.add("messages of the hottest key", history.hottest());
    report.add("handler runs", history.begun());
    report.add("  of which cut short", history.begun() - history.ended());
    for (what, harm) in [
        ("killed", Harm::Killed),
        ("cut off from its broker", Harm::CutOff),
    ] {
        let these: Vec<&Fault> = dealt.iter().filter(|fault| fault.harm == harm).collect();
        report.add(&format!("times that the consumer was {what}"), these.len());
        let measured: Vec<_> = these
            .iter()
            .filter_map(|fault| Some((fault.unsettled?, fault.repeats)))
            .collect();
        report.add(
            "  unsettled and run again, where measured",
            format_args!("{measured:?}"),
        );
        let repeats = these.iter().map(|fault| fault.repeats);
        report.add("  run again, at most", repeats.max().unwrap_or_default());
    }
    report.add("runs out of order, overlapping, lost", 0);
    report.print();
}

/// What is done to the consumer, and whether what it has unsettled is counted first, while it stands still.
#[derive(Clone, Copy, Debug)]
struct Blow {
    kind: Kind,
    measured: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillConsumer,
    CloseConnections,
    RestartBroker,
}

/// What is done after how many completed messages, sorted: all of it from the seed, and none of it so late that
/// nothing is left. Between two blows there is time for all that was unsettled at the first: what is delivered again
/// and again without an outcome is a suspect, and how those are treated is another test's matter.
fn plan(scale: &Scale, messages: u32) -> Vec<(u32, Blow)> {
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    let apart = 3 * scale.get::<u32>("in_flight");
    let mut plan = Vec::new();
    for (what, kind) in [
        ("kills", Kind::KillConsumer),
        ("closes", Kind::CloseConnections),
        ("restarts", Kind::RestartBroker),
    ] {
        for _ in 0..scale.get::<usize>(what) {
            let blow = Blow {
                kind,
                measured: chance.bool(),
            };
            plan.push(blow);
        }
    }
    chance.shuffle(&mut plan);
    moments(&mut chance, plan.len(), messages, apart)
        .into_iter()
        .zip(plan)
        .collect()
}

/// Declares the queue, and publishes everything.
fn publish(url: &str, queue_type: &str, work: &Work, messages: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let topology = Topology::new(QUEUE).declare(declared(queue_type));
    let connector = RabbitSink::queue(Dial::new([url]).unwrap(), topology);
    runtime.block_on(async {
        let mut sink = SinkConnector::open(&connector).await.unwrap();
        work.publish(&mut sink, 0..messages).await;
    });
}

/// One consumer at a time, so that what one that is gone had comes before what follows it (P3).
fn declared(queue_type: &str) -> Declare {
    let mut declare = Declare::default();
    for (name, value) in [
        ("x-queue-type", AMQPValue::LongString(queue_type.into())),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
    ] {
        declare.arguments.insert(name.into(), value);
    }
    declare
}

/// The broker and its consumer.
struct Target {
    broker: RabbitMq,
    consumer: Actor,
    ledger: Ledger,
    arguments: Vec<String>,
    next: u32,
}

impl Target {
    fn new(broker: RabbitMq, ledger: Ledger, scale: &Scale) -> Self {
        let arguments = vec![
            "consume".to_owned(),
            format!("rabbitmq={}", broker.url()),
            "discard=true".to_owned(),
            format!("in_flight={}", scale.get::<u32>("in_flight")),
            "by_key=true".to_owned(),
            "conduct=busy".to_owned(),
        ];
        Self {
            consumer: Actor::start(env!("CARGO_BIN_EXE_actor"), 0, &ledger, &arguments),
            broker,
            ledger,
            arguments,
            next: 1,
        }
    }

    /// Ends the consumer as it ought to end, and gives what is ready and unsettled then.
    fn dismiss(mut self) -> (u32, u32) {
        // Repeats of what had been completed may still run.
        until("the queue is empty", || self.counts() == (0, 0));
        self.consumer.dismiss();
        assert!(self.consumer.wait().success(), "the consumer drains and ends");
        self.counts()
    }

    fn deal(&mut self, Blow { kind, measured }: Blow) {
        assert_eq!(self.consumer.ended(), None, "the consumer ended by itself");
        let actor = self.consumer.number;
        let mut unsettled = NOT_MEASURED;
        if measured {
            self.consumer.freeze();
            unsettled = self.counts().1;
        }
        let event = match kind {
            Kind::KillConsumer => Event::Killing,
            Kind::CloseConnections | Kind::RestartBroker => Event::Breaking,
        };
        self.note(event, actor, unsettled);
        match kind {
            Kind::KillConsumer => {
                self.consumer.kill();
                self.note(Event::Dead, actor, 0);
                let number = self.next;
                self.next += 1;
                self.consumer =
                    Actor::start(env!("CARGO_BIN_EXE_actor"), number, &self.ledger, &self.arguments);
                return;
            }
            Kind::CloseConnections => {
                self.broker.close_all_connections("by the test").unwrap();
            }
            Kind::RestartBroker => {
                self.broker.stop().unwrap();
                self.broker.start_again().unwrap();
            }
        }
        if measured {
            self.consumer.thaw();
        }
        self.note(Event::Mended, actor, 0);
    }

    fn note(&self, event: Event, actor: u32, number: u32) {
        self.ledger.write(Record::of(event, actor, number));
    }

    /// What the broker has ready, and what it waits for.
    fn counts(&self) -> (u32, u32) {
        counts(&self.broker, QUEUE)
    }
}

/// What a broker has ready in this queue, and what it waits for.
pub(crate) fn counts(broker: &RabbitMq, queue: &str) -> (u32, u32) {
    // A quorum queue's own figures are some seconds old.
    let answer = broker
        .eval(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
             case amqqueue:get_type(Q) of \
                 rabbit_quorum_queue -> \
                     Ask = fun(What) -> {{ok, {{_, N}}, _}} = ra:leader_query(amqqueue:get_pid(Q), What), N end, \
                     {{Ask(fun rabbit_fifo:query_messages_ready/1), \
                      Ask(fun rabbit_fifo:query_messages_checked_out/1)}}; \
                 _ -> \
                     [{{_, Ready}}, {{_, Unsettled}}] = \
                         rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged]), \
                     {{Ready, Unsettled}} \
             end"
        ))
        .unwrap();
    let numbers: Vec<u32> = answer
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    match numbers[..] {
        [ready, unsettled] => (ready, unsettled),
        _ => panic!("{answer}"),
    }
}
