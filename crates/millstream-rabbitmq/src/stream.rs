//! Whether what is read as a queue is a stream: [`is_stream`].

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::dial::Line;
use crate::trouble::{self, Trouble, code};

/// Asks the broker whether this is a stream, with a declaration that a stream agrees with but for its arguments.
pub(crate) async fn is_stream(line: &Line, queue: &ShortString) -> Result<bool, Trouble> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    let channel = line.channel().await?;
    let declared = channel
        .queue_declare(queue.clone(), QueueDeclareOptions::durable(), arguments)
        .await;
    let Err(error) = declared else {
        channel.close(200, "asked".into()).await?;
        return Ok(true);
    };
    match trouble::reply(&error) {
        Some((code::PRECONDITION_FAILED, text)) => {
            Ok(!["x-queue-type", "durable", "auto_delete", "exclusive"]
                .iter()
                .any(|no_streams| text.contains(no_streams)))
        }
        Some((code::RESOURCE_LOCKED, _)) => Ok(false),
        Some((code::ACCESS_REFUSED, _)) => Err(Trouble::passing(format!(
            "queue `{}` has messages of a stream, and may be one, which the user may not find out: it takes the \
             permission to configure it",
            queue
        ))),
        _ => Err(error.into()),
    }
}

/// Why what was opened as a queue cannot be read.
pub(crate) fn undeclared(queue: &str) -> String {
    format!(
        "`{queue}` is a stream: say so, with `x-stream-offset` among the consumer's `arguments` or with `x-queue-type` \
         among those of `declare`"
    )
}
