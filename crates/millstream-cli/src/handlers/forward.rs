//! `handler = "forward"`: messages go on as they are.

use millstream_config::{HandlerContext, HandlerKind, Invalid, NoSettings};
use millstream_core::{Context, Failure, Flow, Message, Outgoing, Processor, SharedFlow};

/// Sends each message, with payload, key and headers, to the sink of the pipeline's only batcher.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardHandler;

impl HandlerKind for ForwardHandler {
    type Settings = NoSettings;

    fn flow(&self, _: &NoSettings, cx: &HandlerContext<'_>) -> Result<SharedFlow, Invalid> {
        match cx.batchers {
            [batcher] => Ok(Flow::process(Forward).sink(batcher).into()),
            [] => Err(Invalid::new(
                "`forward` needs a batcher to forward to, and there is none",
                format!(
                    "add a table [pipelines.{}.batchers.out] with a `sink`",
                    cx.pipeline
                ),
            )),
            batchers => Err(Invalid::new(
                format!(
                    "`forward` needs exactly one batcher, and there are {}",
                    batchers.len()
                ),
                format!("keep one of `{}`", batchers.join("`, `")),
            )),
        }
    }
}

struct Forward;

impl Processor for Forward {
    type Input = Message;
    type Output = Outgoing;

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<Outgoing, Failure> {
        Ok(Outgoing {
            payload: message.payload,
            key: message.key,
            headers: message.headers,
            ..Outgoing::default()
        })
    }
}
