//! The names that a file may use: [`Registry`].

use std::collections::BTreeMap;
use std::fmt;

use millstream_core::SharedFlow;

use crate::erased::{AnyHandler, AnySink, AnySource, AnyStore, Handler, Sink, Source, Store};
use crate::fields::Fields;
use crate::invalid::Invalid;
use crate::kind::{HandlerContext, HandlerKind, NoSettings, SinkKind, SourceKind, StoreKind};

/// Sources and sinks by their `type`, handlers and flows by the name that `handler` gives.
///
/// A name that is registered again replaces what it stood for, so that a binary can put its own in the place
/// of a stock one. Handlers and flows share their names.
#[derive(Default)]
pub struct Registry {
    pub(crate) sources: BTreeMap<String, Box<dyn AnySource>>,
    pub(crate) sinks: BTreeMap<String, Box<dyn AnySink>>,
    pub(crate) stores: BTreeMap<String, Box<dyn AnyStore>>,
    pub(crate) handlers: BTreeMap<String, Box<dyn AnyHandler>>,
    pub(crate) left_out: BTreeMap<String, String>,
}

impl Registry {
    /// One that knows no names.
    pub fn new() -> Self {
        Self::default()
    }

    /// `type = "name"` in a source's table.
    pub fn source<K: SourceKind>(&mut self, name: &str, kind: K) -> &mut Self {
        self.sources.insert(
            name.to_owned(),
            Box::new(Source(kind, Fields::of::<K::Settings>())),
        );
        self
    }

    /// `type = "name"` in a sink's or a dead letter's table.
    pub fn sink<K: SinkKind>(&mut self, name: &str, kind: K) -> &mut Self {
        self.sinks
            .insert(name.to_owned(), Box::new(Sink(kind, Fields::of::<K::Settings>())));
        self
    }

    /// Both, where one kind is both.
    pub fn connector<K: SourceKind + SinkKind + Clone>(&mut self, name: &str, kind: K) -> &mut Self {
        self.source(name, kind.clone()).sink(name, kind)
    }

    /// `type = "name"` in the `store` table of `deduplicate` and of `rate_limit`.
    pub fn store<K: StoreKind>(&mut self, name: &str, kind: K) -> &mut Self {
        self.stores.insert(
            name.to_owned(),
            Box::new(Store(kind, Fields::of::<K::Settings>())),
        );
        self
    }

    /// `handler = "name"`, with keys of its own in the processor's table.
    pub fn handler<K: HandlerKind>(&mut self, name: &str, kind: K) -> &mut Self {
        self.handlers.insert(
            name.to_owned(),
            Box::new(Handler(kind, Fields::of::<K::Settings>())),
        );
        self
    }

    /// `handler = "name"`, or a pipeline of this name without `handler`: a flow of the user's.
    pub fn flow(&mut self, name: &str, flow: impl Into<SharedFlow>) -> &mut Self {
        self.handler(name, Ready(flow.into()))
    }

    /// A connector or handler that this build leaves out, and the feature that would bring it: the error then
    /// says so.
    pub fn left_out(&mut self, name: &str, feature: &str) -> &mut Self {
        self.left_out.insert(name.to_owned(), feature.to_owned());
        self
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("sources", &self.sources.keys())
            .field("sinks", &self.sinks.keys())
            .field("stores", &self.stores.keys())
            .field("handlers", &self.handlers.keys())
            .field("left_out", &self.left_out)
            .finish()
    }
}

/// A flow that is there already.
struct Ready(SharedFlow);

impl HandlerKind for Ready {
    type Settings = NoSettings;

    fn flow(&self, _: &NoSettings, _: &HandlerContext<'_>) -> Result<SharedFlow, Invalid> {
        Ok(self.0.clone())
    }
}
