//! Pipelines that end (P6).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millstream_core::rt::{self, Duration};
use millstream_core::{Context, Failure, Flow, Message, Outgoing, Processor};

use crate::conformance::pipe::{Pipe, non_zero};
use crate::conformance::publisher::{numbered, publish};
use crate::conformance::reader::Reader;
use crate::conformance::tally::Tally;
use crate::conformance::trial::{Trial, until};

/// Hangs, with a task beside it that waits for the cancellation.
#[derive(Clone, Default)]
struct Hangs {
    began: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    told: Arc<AtomicUsize>,
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Processor for Hangs {
    type Input = Message;
    type Output = ();

    async fn process(&self, _: Message, cx: &mut Context<'_>) -> Result<(), Failure> {
        let (token, told) = (cx.cancellation().clone(), Arc::clone(&self.told));
        rt::spawn(async move {
            token.cancelled().await;
            told.fetch_add(1, Ordering::SeqCst);
        });
        let _dropped = Dropped(Arc::clone(&self.dropped));
        self.began.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

/// Watermill's message has a context, which is cancelled when its subscriber closes; a run has a cancellation here.
pub(super) async fn message_ctx(trial: Trial) {
    let place = trial.place().await;
    publish(&place.sink(), &[Outgoing::new("one")]).await;
    let hangs = Hangs::default();
    let pipe = Pipe::start(place.connector(), |_| {}, Flow::process(hangs.clone()));
    until("the run to begin", || hangs.began.load(Ordering::SeqCst) == 1).await;
    assert_eq!(hangs.told.load(Ordering::SeqCst), 0);
    pipe.stop().await;
    until("the run to be told", || hangs.told.load(Ordering::SeqCst) == 1).await;
    assert_eq!(hangs.dropped.load(Ordering::SeqCst), 1, "the run went on");
    let mut reader = Reader::open(&place.connector()).await;
    let delivery = reader.one().await;
    assert_eq!(delivery.1.payload, "one");
    reader.ack(&[delivery]).await;
}

pub(super) async fn drain(trial: Trial) {
    const WITHIN: Duration = Duration::from_secs(3);
    let place = trial.place().await;
    let sent = numbered(trial.pick(100, 1_000));
    publish(&place.sink(), &sent).await;
    let done = Tally::default();
    let counted = done.clone();
    let pipe = Pipe::each(
        place.connector(),
        |spec| {
            spec.limits.in_flight = non_zero(40);
            spec.processor.concurrency = non_zero(20);
        },
        move |message| {
            let counted = counted.clone();
            async move {
                if message.payload.ends_with(b"7") {
                    std::future::pending::<()>().await;
                }
                rt::sleep(Duration::from_millis(20)).await;
                counted.add(&message.payload);
                Ok(())
            }
        },
    );
    done.reaches(10).await;
    let began = rt::now();
    let report = pipe.drain(WITHIN).await;
    assert!(
        began.elapsed() <= WITHIN + Duration::from_millis(500),
        "it took {report}"
    );
    assert_eq!(
        report.in_flight,
        report.done + report.given_up + report.released + report.lost + report.left,
        "{report}"
    );
    assert_eq!((report.given_up, report.lost, report.left), (0, 0, 0), "{report}");
    assert!(report.released > 0, "{report}");

    let mut reader = Reader::open(&place.connector()).await;
    let found = Tally::default();
    let missing = || {
        sent.iter()
            .any(|message| !done.has(message) && !found.has(message))
    };
    while missing() {
        let delivery = reader.one().await;
        found.add(&delivery.1.payload);
        reader.ack(&[delivery]).await;
        assert!(found.total() <= sent.len(), "what was done comes again and again");
    }
    if trial.features().settles_singly {
        reader.assert_nothing("what was done does not come again").await;
        assert_eq!(
            found.total() + done.total(),
            sent.len(),
            "some were done and came again"
        );
    }
}
