//! The engine beside a bare loop over the chunks of the same source: no-op handler, payloads of 100 bytes.
//!
//! `cargo run --release -p millstream-bench --bin engine [MESSAGES] [RUNS] [CASE]`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_bench::{median, millions};
use millstream_core::memory::MemoryQueue;
use millstream_core::rt;
use millstream_core::{
    Acknowledger, Batch, BatchHandler, BatcherSpec, Chunk, Connector, Context, Credit, EngineHandle, Failure,
    Flow, Host, Message, Ordering, PipelineSpec, Processor, Settle, Settlement, SharedFlow, Source,
};

static PAYLOAD: [u8; 100] = [7; 100];

/// Each case, with the rate it is to reach: so many million a second, or half of the bare loop if that is less.
const CASES: [(&str, f64); 3] = [("unordered", 10.0), ("1,000 keys", 6.0), ("batcher of 100", 6.0)];

struct NoOp;

impl Processor for NoOp {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, _: Bytes, _: &mut Context<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

impl BatchHandler for NoOp {
    type Input = ();

    async fn handle(&self, _: &mut Batch<()>) -> Result<(), Failure> {
        Ok(())
    }
}

fn queue(messages: usize, keys: usize) -> MemoryQueue {
    let names: Vec<Bytes> = (0..keys)
        .map(|key| Bytes::from(format!("key-{key:04}").into_bytes().leak() as &[u8]))
        .collect();
    let queue = MemoryQueue::new();
    queue.publish_all((0..messages).map(|number| Message {
        payload: Bytes::from_static(&PAYLOAD),
        key: names.get(number % keys.max(1)).cloned(),
        ..Message::default()
    }));
    queue
}

/// Reads chunks and settles them, with nothing in between.
async fn bare(queue: &MemoryQueue) -> Duration {
    let (engine, _) = EngineHandle::detached();
    let Ok((mut source, mut acknowledger)) = Connector::open(queue, engine).await else {
        return Duration::MAX;
    };
    let (mut chunk, mut settles, mut outcomes) = (Chunk::new(), Vec::new(), Vec::new());
    let started = rt::now();
    while !queue.is_empty() {
        let credit = Credit {
            messages: 1024,
            bytes: usize::MAX,
        };
        if source.read(credit, &mut chunk).await.is_err() {
            break;
        }
        settles.extend(chunk.drain().map(|(ticket, message)| {
            std::hint::black_box(&message.payload);
            Settle {
                ticket,
                settlement: Settlement::Ack,
            }
        }));
        acknowledger.settle(&settles, &mut outcomes).await;
        settles.clear();
        outcomes.clear();
    }
    started.elapsed()
}

async fn engine(queue: &MemoryQueue, flow: impl Into<SharedFlow>, ordering: Ordering) -> Duration {
    let mut spec = PipelineSpec::new("bench", Arc::new(queue.clone()), flow);
    spec.ordering = ordering;
    spec.batchers.extend(
        spec.flow
            .steps()
            .iter()
            .map(|step| (step.name.clone(), BatcherSpec::default()))
            .collect::<Vec<_>>(),
    );
    let started = rt::now();
    let Ok(host) = Host::start([spec]) else {
        return Duration::MAX;
    };
    host.idle(Duration::ZERO).await;
    while !queue.is_empty() {
        host.idle(Duration::ZERO).await;
        tokio::task::yield_now().await;
    }
    let took = started.elapsed();
    host.drain(Duration::from_secs(5)).await;
    took
}

async fn run(case: usize, messages: usize) -> (f64, f64) {
    let keys = if case == 1 { 1_000 } else { 0 };
    let bare_took = bare(&queue(messages, keys)).await;
    let queue = queue(messages, keys);
    let took = match case {
        0 => engine(&queue, Flow::process(NoOp), Ordering::None).await,
        1 => engine(&queue, Flow::process(NoOp), Ordering::Key).await,
        _ => engine(&queue, Flow::process(NoOp).batch("out", NoOp), Ordering::None).await,
    };
    (millions(messages, bare_took), millions(messages, took))
}

fn main() -> ExitCode {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok());
    let messages = arguments.next().unwrap_or(2_000_000);
    let runs = arguments.next().unwrap_or(5);
    let only = arguments.next();
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    else {
        return ExitCode::FAILURE;
    };
    println!("{messages} messages of 100 bytes, medians of {runs} runs, million messages a second");
    println!(
        "{:<16}{:>10}{:>10}{:>8}{:>10}",
        "case", "bare loop", "engine", "ratio", "wanted"
    );
    let mut reached = true;
    for (case, (name, wanted)) in CASES
        .into_iter()
        .enumerate()
        .filter(|(case, _)| only.is_none_or(|only| only == *case))
    {
        let (bare, engine): (Vec<_>, Vec<_>) = (0..runs)
            .map(|_| {
                runtime.block_on(async move {
                    rt::spawn(run(case, messages))
                        .await
                        .unwrap_or((f64::NAN, f64::NAN))
                })
            })
            .unzip();
        let (bare, engine) = (median(bare), median(engine));
        let wanted = wanted.min(bare / 2.0);
        reached &= engine >= wanted;
        println!(
            "{name:<16}{bare:>10.1}{engine:>10.1}{:>8.2}{wanted:>10.1}",
            engine / bare
        );
    }
    println!("{}", if reached { "reached" } else { "not reached" });
    ExitCode::SUCCESS
}
