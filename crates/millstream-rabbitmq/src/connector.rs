//! Reading a queue or a stream: [`RabbitConnector`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use millstream_core::{
    Capabilities, Connector, EngineHandle, Facts, Finding, Ids, OpenError, SharedSinkConnector, rt,
};

use crate::acknowledger::RabbitAcknowledger;
use crate::check;
use crate::inbox::{Inbox, Presence};
use crate::progress::{Keeper, Progress};
use crate::properties;
use crate::reader::Reader;
use crate::settings::ReaderSettings;
use crate::source::RabbitSource;
use crate::stream::undeclared;

/// Reads a queue or a stream.
///
/// The connection is made anew, for ever and with backoff, when it or its channel is lost; meanwhile the pipeline is
/// degraded. A queue that is deleted is declared again where the settings declare it, and waited for elsewhere.
///
/// # What the broker sends ahead
///
/// It is bounded by the prefetch alone, and waits here until there is demand for it. Without a setting, the prefetch
/// is what the pipeline has ever had room for, in messages and, at the size that messages have of late, in bytes, but
/// no more than 2,000. A setting above the room in messages counts as that.
///
/// # Redelivery
///
/// After a lost connection what was unsettled comes again. Runs that still go on are cancelled, so that a message is not
/// worked on twice at a time in this process, except where its handler blocks.
///
/// Classic queues do not count deliveries, so a message that ends the process that runs it comes again without end;
/// quorum queues do. Up to RabbitMQ 4.2 they also count a message that is given back untouched.
///
/// # Streams
///
/// A stream keeps its messages, and each reader has a position in it. RabbitMQ has no place for that in AMQP 0-9-1, so it
/// is stored in a durable classic queue, `STREAM.position.NAME`, where the name is the consumer tag or, without one,
/// [`ReaderSettings::reader`]. It never passes a message that is not done, is stored every second while it moves, and
/// once more at the end of a drain. A process that is killed repeats what it did since.
///
/// Without a stored position a stream is read from its first message, or from where `x-stream-offset` among the
/// arguments of the consumer has it: `first`, `last`, `next`, a number, an age such as `1h`, or a timestamp. With
/// `last` and `next` that is found anew at every connection until the first message has come. Later, the argument has
/// no effect: purge the queue with the position to begin anew, as after the stream was deleted and made again.
///
/// One connection at a time reads under a name. A second process waits, and takes over when the first is gone; with a
/// name of its own it reads all messages too.
///
/// A message that is given back is fetched again, behind what was fetched before; what is done or still runs is not
/// handed out again. A lost connection repeats nothing. A stream keeps nothing that is rejected, which must go to a dead-letter
/// sink or be discarded. It does not count deliveries, nor say how many messages wait.
#[derive(Clone, Debug)]
pub struct RabbitConnector {
    settings: Arc<ReaderSettings>,
    generations: Arc<AtomicU32>,
    /// What was opened as a queue is a stream.
    found_stream: Arc<AtomicBool>,
    /// It was open at some time, so that the settings cannot be all wrong.
    opened: Arc<AtomicBool>,
}

impl RabbitConnector {
    /// Reads as these settings say.
    pub fn new(settings: ReaderSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            generations: Arc::default(),
            found_stream: Arc::default(),
            opened: Arc::default(),
        }
    }
}

impl RabbitConnector {
    /// The progress to keep, if it is a stream.
    fn progress(&self) -> Result<Option<Arc<Progress>>, OpenError> {
        if !self.settings.is_stream() {
            return Ok(None);
        }
        let checked = self.settings.check_stream();
        checked.map_err(|(setting, why)| OpenError::Refused(format!("`{setting}`: {why}")))?;
        let begin = self.settings.begin().map_err(OpenError::Refused)?;
        let place = self
            .settings
            .place()
            .map_err(|trouble| OpenError::Refused(trouble.text))?;
        Ok(Some(Arc::new(Progress::new(place, begin))))
    }
}

impl Connector for RabbitConnector {
    type Source = RabbitSource;
    type Acknowledger = RabbitAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: false,
            keeps_rejected: self.settings.keeps_rejected(),
            // Of a queue that is not declared here the type is not known; a count that is none does no harm then,
            // because it never gets beyond two.
            counts_deliveries: !self.settings.is_stream() && !self.settings.topology.declares_classic(),
            orders_keys: false,
            ids: Ids::Header(properties::MESSAGE_ID),
            ..Capabilities::default()
        }
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        self.settings.retry_sink()
    }

    async fn open(&self, engine: EngineHandle) -> Result<(RabbitSource, RabbitAcknowledger), OpenError> {
        let connections = self.settings.connections.max(1);
        if self.found_stream.load(Ordering::Relaxed) {
            return Err(OpenError::Refused(undeclared(&self.settings.topology.queue)));
        }
        let progress = self.progress()?;
        if self.settings.topology.queue.is_empty() && connections > 1 {
            return Err(OpenError::Refused(
                "a queue that the broker names belongs to one connection: set `connections` to 1, or name the queue"
                    .to_owned(),
            ));
        }
        let rejects = engine.rejects_to_source();
        let inbox = Arc::new(Inbox::new(
            engine,
            self.settings.prefetch,
            self.settings.ordered,
            connections,
            progress.clone(),
        ));
        let reader = |index| Reader {
            settings: Arc::clone(&self.settings),
            inbox: Arc::clone(&inbox),
            generations: Arc::clone(&self.generations),
            found_stream: Arc::clone(&self.found_stream),
            index,
        };
        // The first connection is made here, so that what cannot work is refused; the others make their own.
        let first = reader(0);
        let worked = self.opened.load(Ordering::Relaxed);
        let mut link = first
            .link(&mut None)
            .await
            .map_err(|trouble| trouble.open_error(worked))?;
        if rejects {
            let kept = self.settings.check_rejected_are_kept().await;
            kept.map_err(|trouble| trouble.open_error(worked))?;
        }
        if let Some(progress) = &progress {
            let recalled = link.recall(progress).await;
            recalled.map_err(|trouble| trouble.open_error(worked))?;
        }
        self.opened.store(true, Ordering::Relaxed);
        let presence = Arc::new(Presence::new(Arc::clone(&inbox)));
        match progress {
            None => drop(rt::spawn(first.run(Some(link)))),
            Some(progress) => {
                let keeper = Keeper {
                    dial: self.settings.dial.clone(),
                    progress,
                    inbox: Arc::clone(&inbox),
                };
                // The connection is what keeps others from reading, until the last position is stored.
                rt::spawn(async move { drop(tokio::join!(first.run(Some(link)), keeper.run())) });
            }
        }
        for index in 1..connections {
            rt::spawn(reader(index).run(None));
        }
        Ok((
            RabbitSource::new(Arc::clone(&presence)),
            RabbitAcknowledger::new(presence, self.settings.on_failure),
        ))
    }

    async fn check(&self, facts: &Facts<'_>) -> Vec<Finding> {
        check::source(&self.settings, facts).await
    }
}
