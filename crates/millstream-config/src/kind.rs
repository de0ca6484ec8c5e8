//! What a crate implements to appear in the TOML: [`SourceKind`], [`SinkKind`], [`HandlerKind`].

use std::num::NonZeroUsize;

use millstream_core::{
    Ordering, RetrySpec, SharedConnector, SharedDedupStore, SharedFlow, SharedRateStore, SharedSinkConnector,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::invalid::Invalid;

/// One `type` of `[pipelines.NAME.source]`.
///
/// `Settings` are the keys of the table beside `type`. Their doc comments become the descriptions of the JSON
/// Schema, and its property names the keys that are known: others are errors, whether `deny_unknown_fields`
/// is set or not. `flatten`, `untagged` and `tag` lose the position of an error; leave them out. Fields that
/// hold a password, a URL with one or a token are [`Secret`](crate::Secret)s.
///
/// One type may implement this and [`SinkKind`].
///
/// ```
/// use std::sync::Arc;
/// use millstream_config::{HumanDuration, Invalid, Registry, SourceContext, SourceKind};
/// use millstream_core::SharedConnector;
/// # use millstream_core::*;
/// # struct Nothing;
/// # impl Source for Nothing {
/// #     async fn read(&mut self, _: Credit, _: &mut Chunk) -> Result<Read, SourceError> { Ok(Read::Ended) }
/// #     fn drain(&mut self) {}
/// # }
/// # impl Acknowledger for Nothing {
/// #     async fn settle(&mut self, _: &[Settle], _: &mut Vec<(Settle, Outcome)>) {}
/// #     async fn flush(&mut self, _: &mut Vec<(Settle, Outcome)>) {}
/// # }
/// # struct Mailbox;
/// # impl Connector for Mailbox {
/// #     type Source = Nothing;
/// #     type Acknowledger = Nothing;
/// #     fn capabilities(&self) -> Capabilities { Capabilities::default() }
/// #     async fn open(&self, _: EngineHandle) -> Result<(Nothing, Nothing), OpenError> { Ok((Nothing, Nothing)) }
/// # }
///
/// /// A directory of mail.
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct MailboxSettings {
///     /// Where it is.
///     path: String,
///     /// How often to look.
///     #[serde(default = "poll")]
///     poll: HumanDuration,
/// }
///
/// fn poll() -> HumanDuration {
///     HumanDuration::from_millis(500)
/// }
///
/// struct MailboxKind;
///
/// impl SourceKind for MailboxKind {
///     type Settings = MailboxSettings;
///
///     fn source(&self, settings: &MailboxSettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
///         if cx.ordered {
///             return Err(Invalid::new("mail has no key", "remove `ordering`"));
///         }
///         if settings.path.is_empty() {
///             return Err(Invalid::new("`path` is empty", "name a directory").at("path"));
///         }
///         Ok(Arc::new(Mailbox))
///     }
/// }
///
/// let mut registry = Registry::new();
/// registry.source("mailbox", MailboxKind);
/// ```
pub trait SourceKind: Send + Sync + 'static {
    /// The keys of its table.
    type Settings: DeserializeOwned + JsonSchema;

    /// Makes the connector; connects to nothing yet.
    ///
    /// # Errors
    /// When the settings do not go together.
    fn source(&self, settings: &Self::Settings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid>;

    /// Makes the sink that writes to where the source reads, for the `publish` command. `None`, which is the
    /// default, where there is no such thing.
    ///
    /// # Errors
    /// As for [`source`](Self::source).
    fn publish(
        &self,
        settings: &Self::Settings,
        cx: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        let _ = (settings, cx);
        Ok(None)
    }
}

/// What a source is told about its pipeline.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SourceContext<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// What the pipeline keeps in order.
    pub ordering: &'a Ordering,
    /// Whether that is the message's own key, which a store may order by across processes: `ordering = "key"`
    /// with `order_by = "key"`.
    pub ordered: bool,
    /// When and how often the pipeline tries again; the default where its table is wrong.
    pub retry: RetrySpec,
}

impl<'a> SourceContext<'a> {
    /// The context of an unordered pipeline.
    pub fn new(pipeline: &'a str) -> Self {
        Self {
            pipeline,
            ordering: &Ordering::None,
            ordered: false,
            retry: RetrySpec::default(),
        }
    }
}

/// One `type` of a sink: of a batcher's, of a dead letter's.
///
/// What [`SourceKind`] says about `Settings` goes for these too.
pub trait SinkKind: Send + Sync + 'static {
    /// The keys of its table.
    type Settings: DeserializeOwned + JsonSchema;

    /// Makes the sink; connects to nothing yet.
    ///
    /// # Errors
    /// When the settings do not go together.
    fn sink(&self, settings: &Self::Settings, cx: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid>;
}

/// What a sink is told about its pipeline.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SinkContext<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The source of the pipeline that it is a sink of, if that is right: a connector may have sinks that belong to its
    /// source (`downcast_ref` of the connector says whether).
    pub source: Option<&'a SharedConnector>,
}

impl<'a> SinkContext<'a> {
    /// The context of a pipeline, and of no source.
    pub const fn new(pipeline: &'a str) -> Self {
        Self {
            pipeline,
            source: None,
        }
    }
}

/// One `type` of `[pipelines.NAME.deduplicate.store]`.
///
/// What [`SourceKind`] says about `Settings` goes for these too.
pub trait StoreKind: Send + Sync + 'static {
    /// The keys of its table.
    type Settings: DeserializeOwned + JsonSchema;

    /// Makes the store; connects to nothing yet.
    ///
    /// # Errors
    /// When the settings do not go together.
    fn store(&self, settings: &Self::Settings, cx: &StoreContext<'_>) -> Result<SharedDedupStore, Invalid>;

    /// Makes what keeps a rate limit there, for `[pipelines.NAME.rate_limit.store]`. `None`, which is the default, where
    /// processes share nothing.
    ///
    /// # Errors
    /// As for [`store`](Self::store).
    fn rates(
        &self,
        settings: &Self::Settings,
        cx: &StoreContext<'_>,
    ) -> Result<Option<SharedRateStore>, Invalid> {
        let _ = (settings, cx);
        Ok(None)
    }
}

/// What a store is told about its pipeline.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StoreContext<'a> {
    /// The pipeline's name. Processes with a pipeline of this name share what a shared store has for it.
    pub pipeline: &'a str,
    /// How many ids shall be remembered at most, where the file says so.
    pub max_entries: Option<NonZeroUsize>,
}

impl<'a> StoreContext<'a> {
    /// The context of a pipeline that says nothing of a bound.
    pub const fn new(pipeline: &'a str) -> Self {
        Self {
            pipeline,
            max_entries: None,
        }
    }
}

/// One stock `handler` of `[pipelines.NAME.processor]`: a flow made from settings.
///
/// `Settings` are the keys that it adds to the table, so none of them can be `handler`, `concurrency`,
/// `max_demand` or `timeout`. What [`SourceKind`] says about settings goes for these too. A flow that needs none is registered with
/// [`Registry::flow`](crate::Registry::flow).
pub trait HandlerKind: Send + Sync + 'static {
    /// The keys it adds to the processor's table.
    type Settings: DeserializeOwned + JsonSchema;

    /// Makes the flow.
    ///
    /// # Errors
    /// When the settings do not go together, or the pipeline's batchers do not suit the handler.
    fn flow(&self, settings: &Self::Settings, cx: &HandlerContext<'_>) -> Result<SharedFlow, Invalid>;
}

/// What a handler is told about its pipeline.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HandlerContext<'a> {
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// The names of the batchers that the TOML has for it, sorted.
    pub batchers: &'a [String],
}

impl<'a> HandlerContext<'a> {
    /// The context of a pipeline with these batchers.
    pub const fn new(pipeline: &'a str, batchers: &'a [String]) -> Self {
        Self { pipeline, batchers }
    }
}

/// Settings of a kind that has none.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}
