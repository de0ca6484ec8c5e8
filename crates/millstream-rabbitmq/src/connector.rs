//! Reading a queue: [`RabbitConnector`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use millstream_core::{Capabilities, Connector, EngineHandle, OpenError, SharedSinkConnector, rt};

use crate::acknowledger::RabbitAcknowledger;
use crate::inbox::{Inbox, Presence};
use crate::reader::Reader;
use crate::settings::ReaderSettings;
use crate::source::RabbitSource;

/// Reads a queue.
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
#[derive(Clone, Debug)]
pub struct RabbitConnector {
    settings: Arc<ReaderSettings>,
    generations: Arc<AtomicU32>,
    /// It was open at some time, so that the settings cannot be all wrong.
    opened: Arc<AtomicBool>,
}

impl RabbitConnector {
    /// Reads as these settings say.
    pub fn new(settings: ReaderSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            generations: Arc::default(),
            opened: Arc::default(),
        }
    }
}

impl Connector for RabbitConnector {
    type Source = RabbitSource;
    type Acknowledger = RabbitAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: false,
            keeps_rejected: self.settings.keeps_rejected(),
            counts_deliveries: true,
            orders_keys: false,
        }
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        self.settings.retry_sink()
    }

    async fn open(&self, engine: EngineHandle) -> Result<(RabbitSource, RabbitAcknowledger), OpenError> {
        if self.settings.is_stream() {
            // A stream takes nothing back and remembers no position: what is unsettled when a connection breaks
            // would never come again.
            return Err(OpenError::Refused(format!(
                "`{}` is a stream, which cannot be read at least once: read a queue that is bound to the same exchange",
                self.settings.topology.queue
            )));
        }
        let connections = self.settings.connections.max(1);
        if self.settings.topology.queue.is_empty() && connections > 1 {
            return Err(OpenError::Refused(
                "a queue that the broker names belongs to one connection: set `connections` to 1, or name the queue"
                    .to_owned(),
            ));
        }
        let rejects = engine.rejects_to_source();
        let inbox = Arc::new(Inbox::new(engine, self.settings.prefetch, connections));
        let reader = |index| Reader {
            settings: Arc::clone(&self.settings),
            inbox: Arc::clone(&inbox),
            generations: Arc::clone(&self.generations),
            index,
        };
        // The first connection is made here, so that what cannot work is refused; the others make their own.
        let first = reader(0);
        let worked = self.opened.load(Ordering::Relaxed);
        let link = first
            .link(&mut None)
            .await
            .map_err(|trouble| trouble.open_error(worked))?;
        if rejects {
            let kept = self.settings.check_rejected_are_kept().await;
            kept.map_err(|trouble| trouble.open_error(worked))?;
        }
        self.opened.store(true, Ordering::Relaxed);
        let presence = Arc::new(Presence::new(Arc::clone(&inbox)));
        rt::spawn(first.run(Some(link)));
        for index in 1..connections {
            rt::spawn(reader(index).run(None));
        }
        Ok((
            RabbitSource::new(Arc::clone(&presence)),
            RabbitAcknowledger::new(presence, self.settings.on_failure),
        ))
    }
}
