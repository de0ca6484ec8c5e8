//! Kinds as the registry holds them: their settings' types forgotten, their schemas kept.

use millstream_core::{SharedConnector, SharedDedupStore, SharedFlow, SharedRateStore, SharedSinkConnector};

use crate::decode::decode;
use crate::fields::Fields;
use crate::invalid::Invalid;
use crate::kind::{
    HandlerContext, HandlerKind, SinkContext, SinkKind, SourceContext, SourceKind, StoreContext, StoreKind,
};
use crate::report::Report;
use crate::table::Table;

/// A [`SourceKind`] with the schema of its settings.
pub(crate) struct Source<K>(pub(crate) K, pub(crate) Fields);
/// A [`SinkKind`] with the schema of its settings.
pub(crate) struct Sink<K>(pub(crate) K, pub(crate) Fields);
/// A [`StoreKind`] with the schema of its settings.
pub(crate) struct Store<K>(pub(crate) K, pub(crate) Fields);
/// A [`HandlerKind`] with the schema of its settings.
pub(crate) struct Handler<K>(pub(crate) K, pub(crate) Fields);

pub(crate) trait AnySource: Send + Sync {
    fn fields(&self) -> &Fields;

    /// The connector, and the sink that `publish` writes to.
    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &SourceContext<'_>,
    ) -> Option<(SharedConnector, Option<SharedSinkConnector>)>;
}

pub(crate) trait AnySink: Send + Sync {
    fn fields(&self) -> &Fields;

    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &SinkContext<'_>,
    ) -> Option<SharedSinkConnector>;
}

pub(crate) trait AnyStore: Send + Sync {
    fn fields(&self) -> &Fields;

    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &StoreContext<'_>,
    ) -> Option<SharedDedupStore>;

    /// What keeps rates there; the inner option is for stores that cannot.
    fn rates(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &StoreContext<'_>,
    ) -> Option<Option<SharedRateStore>>;
}

pub(crate) trait AnyHandler: Send + Sync {
    fn fields(&self) -> &Fields;

    /// `others` are the keys of the table that are not the handler's.
    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        others: &[&str],
        cx: &HandlerContext<'_>,
    ) -> Option<SharedFlow>;
}

impl<K: SourceKind> AnySource for Source<K> {
    fn fields(&self) -> &Fields {
        &self.1
    }

    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &SourceContext<'_>,
    ) -> Option<(SharedConnector, Option<SharedSinkConnector>)> {
        let settings: K::Settings = decode(report, table, &self.1, &["type"])?;
        let source = accept(report, table, self.0.source(&settings, cx))?;
        let publish = accept(
            report,
            table,
            self.0.publish(&settings, &SinkContext::new(cx.pipeline)),
        )?;
        Some((source, publish))
    }
}

impl<K: SinkKind> AnySink for Sink<K> {
    fn fields(&self) -> &Fields {
        &self.1
    }

    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &SinkContext<'_>,
    ) -> Option<SharedSinkConnector> {
        let settings: K::Settings = decode(report, table, &self.1, &["type"])?;
        accept(report, table, self.0.sink(&settings, cx))
    }
}

impl<K: StoreKind> AnyStore for Store<K> {
    fn fields(&self) -> &Fields {
        &self.1
    }

    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &StoreContext<'_>,
    ) -> Option<SharedDedupStore> {
        let settings: K::Settings = decode(report, table, &self.1, &["type"])?;
        accept(report, table, self.0.store(&settings, cx))
    }

    fn rates(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        cx: &StoreContext<'_>,
    ) -> Option<Option<SharedRateStore>> {
        let settings: K::Settings = decode(report, table, &self.1, &["type"])?;
        accept(report, table, self.0.rates(&settings, cx))
    }
}

impl<K: HandlerKind> AnyHandler for Handler<K> {
    fn fields(&self) -> &Fields {
        &self.1
    }

    fn build(
        &self,
        report: &mut Report<'_>,
        table: &mut Table<'_>,
        others: &[&str],
        cx: &HandlerContext<'_>,
    ) -> Option<SharedFlow> {
        let settings: K::Settings = decode(report, table, &self.1, others)?;
        accept(report, table, self.0.flow(&settings, cx))
    }
}

/// The value, or its error at the key that it names.
fn accept<T>(report: &mut Report<'_>, table: &Table<'_>, result: Result<T, Invalid>) -> Option<T> {
    result
        .map_err(|invalid| {
            let span = invalid
                .key
                .as_deref()
                .map_or_else(|| table.span.clone(), |key| table.at(key));
            report.invalid(span, invalid);
        })
        .ok()
}
