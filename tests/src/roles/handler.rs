//! What a handler does with its messages: [`Handler`].

use std::time::Duration;

use bytes::Bytes;
use millstream_core::{Batch, BatchHandler, Context, Failure, Processor, rt};
use millstream_tests::Work;
use millstream_tests::ledger::{Event, Ledger, Record};

use crate::Arguments;

/// One of so many messages takes so long; none does if that is zero.
#[derive(Clone, Copy)]
struct Slow {
    one_of: u32,
    time: Duration,
}

/// Writes the begin and the end of each run down, and between them behaves as it was told.
pub(crate) struct Handler {
    ledger: Ledger,
    actor: u32,
    conduct: Conduct,
}

enum Conduct {
    /// Takes up to this long over some of the messages, and no time over the rest; much longer over a few that were
    /// never delivered before.
    Busy { longest: Duration, slow: Slow },
    /// Ends the process with this message, and is busy with the others.
    Aborts { culprit: u32, longest: Duration },
    /// Never comes back from so many of a hundred messages, and is busy with the others.
    Hangs { percent: u32, longest: Duration },
    /// Hands every message on at once.
    Passes,
    /// Fails every message, to be tried again long after the test.
    Postpones,
}

impl Handler {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let longest = Duration::from_micros(arguments.get_or("longest_us", 3000));
        let conduct = match arguments.get::<String>("conduct").as_str() {
            "busy" => Conduct::Busy {
                longest,
                slow: Slow {
                    one_of: arguments.get_or("slow_one_of", 0),
                    time: Duration::from_millis(arguments.get_or("slow_ms", 0)),
                },
            },
            "aborts" => Conduct::Aborts {
                culprit: arguments.get("culprit"),
                longest,
            },
            "hangs" => Conduct::Hangs {
                percent: arguments.get("percent"),
                longest,
            },
            "passes" => Conduct::Passes,
            "postpones" => Conduct::Postpones,
            other => panic!("no handler does `{other}`"),
        };
        Self {
            ledger: Ledger::inherited().expect("the ledger is the standard output"),
            actor: arguments.get("actor"),
            conduct,
        }
    }
}

impl Processor for Handler {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, payload: Bytes, cx: &mut Context<'_>) -> Result<(), Failure> {
        let number = Work::number(&payload).ok_or_else(|| Failure::reject("no number"))?;
        let deliveries = cx.deliveries();
        let record = |event| {
            self.ledger.write(Record {
                deliveries,
                ..Record::of(event, self.actor, number)
            });
        };
        match self.conduct {
            Conduct::Passes => return Ok(()),
            Conduct::Postpones => return Err(Failure::retry_after(Duration::from_hours(1), "not now")),
            Conduct::Busy { .. } | Conduct::Aborts { .. } | Conduct::Hangs { .. } => record(Event::Begin),
        }
        let mut run = Run {
            record: &record,
            ended: false,
        };
        match self.conduct {
            Conduct::Passes | Conduct::Postpones => {}
            Conduct::Busy { slow, .. } if deliveries == 1 && number.checked_rem(slow.one_of) == Some(0) => {
                rt::sleep(slow.time).await;
            }
            Conduct::Busy { longest, .. } => busy(longest).await,
            Conduct::Aborts { culprit, longest } => {
                busy(longest).await;
                if number == culprit {
                    std::process::abort();
                }
            }
            Conduct::Hangs { percent, longest } => {
                if number % 100 < percent {
                    std::future::pending::<()>().await;
                }
                busy(longest).await;
            }
        }
        run.ended = true;
        Ok(())
    }
}

/// Says how a run has ended, also where it is cancelled.
struct Run<'a> {
    record: &'a (dyn Fn(Event) + Sync),
    ended: bool,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        (self.record)(if self.ended { Event::End } else { Event::Cancelled });
    }
}

/// Half of the runs take no time, as with a cache; the others wait, as for a server.
pub(super) async fn busy(longest: Duration) {
    if fastrand::bool() && !longest.is_zero() {
        rt::sleep(longest.mul_f64(fastrand::f64())).await;
    }
}

/// Keeps its batch for ever.
pub(crate) struct Keeps;

impl BatchHandler for Keeps {
    type Input = ();

    async fn handle(&self, _: &mut Batch<()>) -> Result<(), Failure> {
        std::future::pending().await
    }
}
