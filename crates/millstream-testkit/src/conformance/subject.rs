//! What is tested: a [`Subject`] and the [`Place`]s that it makes.

use std::future::Future;

use bytes::Bytes;
use millstream_core::{BoxFuture, SharedConnector, SharedSinkConnector};

use super::features::Features;

/// A broker and the connector to it, as the suite needs them.
///
/// What a subject does not declare need not be implemented; what it declares and does not implement fails the cases
/// that need it.
pub trait Subject: Send + Sync + 'static {
    /// A fresh, empty queue or topic.
    type Place: Place;

    /// What reports call it.
    fn name(&self) -> &str;

    /// What it can do.
    fn declares(&self) -> Features;

    /// Makes a place that nothing was ever published to. No two calls are given the same name, also not in two
    /// runs of the suite; it has letters, digits and hyphens.
    fn place(&self, name: &str) -> impl Future<Output = Self::Place> + Send;

    /// Restarts the broker, and returns once it is on its way up again. For those that declare
    /// [`Features::restarts`].
    fn restart(&self) -> impl Future<Output = ()> + Send {
        async { panic!("`restarts` is declared, and `Subject::restart` is not implemented") }
    }
}

/// A queue or topic. Dropped at the end of its case, which is the time to delete it.
pub trait Place: Send + Sync + 'static {
    /// Reads it. Called several times, it gives connectors that know nothing of each other, as those of two
    /// processes.
    fn connector(&self) -> SharedConnector;

    /// Writes it.
    fn sink(&self) -> SharedSinkConnector;

    /// Reads it for this group, which sees every message that is published from this call on. For those that
    /// declare [`Features::groups`].
    fn group(&self, _name: &str) -> impl Future<Output = SharedConnector> + Send {
        async { panic!("`groups` is declared, and `Place::group` is not implemented") }
    }

    /// Cuts the connections of everyone who reads the place, so that what they hold is handed out again. For those
    /// that declare [`Features::cuts`].
    fn cut(&self) -> impl Future<Output = ()> + Send {
        async { panic!("`cuts` is declared, and `Place::cut` is not implemented") }
    }

    /// What was rejected from it and is kept, in any order. For those whose capabilities say so.
    fn rejected(&self) -> impl Future<Output = Vec<Rejected>> + Send {
        async { panic!("`keeps_rejected` is declared, and `Place::rejected` is not implemented") }
    }
}

/// A message that was rejected, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The body, untouched.
    pub payload: Bytes,
    /// The key, untouched.
    pub key: Option<Bytes>,
    /// Why, as [`Rejection::error`](millstream_core::Rejection::error) said; empty where the broker keeps no reason.
    pub error: String,
}

/// Object-safe [`Subject`].
pub(crate) trait DynSubject: Send + Sync {
    fn name(&self) -> &str;
    fn declares(&self) -> Features;
    fn place<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Box<dyn DynPlace>>;
    fn restart(&self) -> BoxFuture<'_, ()>;
}

/// Object-safe [`Place`].
pub(crate) trait DynPlace: Send + Sync {
    fn connector(&self) -> SharedConnector;
    fn sink(&self) -> SharedSinkConnector;
    fn group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, SharedConnector>;
    fn cut(&self) -> BoxFuture<'_, ()>;
    fn rejected(&self) -> BoxFuture<'_, Vec<Rejected>>;
}

impl<S: Subject> DynSubject for S {
    fn name(&self) -> &str {
        Subject::name(self)
    }

    fn declares(&self) -> Features {
        Subject::declares(self)
    }

    fn place<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Box<dyn DynPlace>> {
        Box::pin(async move { Box::new(Subject::place(self, name).await) as Box<dyn DynPlace> })
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        Box::pin(Subject::restart(self))
    }
}

impl<P: Place> DynPlace for P {
    fn connector(&self) -> SharedConnector {
        Place::connector(self)
    }

    fn sink(&self) -> SharedSinkConnector {
        Place::sink(self)
    }

    fn group<'a>(&'a self, name: &'a str) -> BoxFuture<'a, SharedConnector> {
        Box::pin(Place::group(self, name))
    }

    fn cut(&self) -> BoxFuture<'_, ()> {
        Box::pin(Place::cut(self))
    }

    fn rejected(&self) -> BoxFuture<'_, Vec<Rejected>> {
        Box::pin(Place::rejected(self))
    }
}
