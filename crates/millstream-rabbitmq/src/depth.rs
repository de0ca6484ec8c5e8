//! How many messages wait, as the engine hears of it: [`watch`].

use std::pin::Pin;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use millstream_core::{EngineHandle, rt};
use tracing::debug;

/// How often to ask.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// Ends when the number cannot be known.
pub(crate) type Depth = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tells the engine how many messages wait in a queue, for the first time after this long.
pub(crate) fn watch(channel: Channel, queue: ShortString, engine: EngineHandle, after: Duration) -> Depth {
    Box::pin(async move {
        rt::sleep(after).await;
        tell(channel, queue, engine).await;
    })
}

/// Tells the engine from time to time how many messages wait, until the broker does not say. That is not worth an error.
async fn tell(channel: Channel, queue: ShortString, engine: EngineHandle) {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    loop {
        match channel
            .queue_declare(queue.clone(), options, FieldTable::default())
            .await
        {
            Ok(queue) => engine.depth(queue.message_count().into()),
            Err(error) => {
                debug!(%error, "the depth is not known");
                return;
            }
        }
        rt::sleep(EVERY).await;
    }
}
