//! The future that object-safe traits return: [`BoxFuture`].

use std::future::Future;
use std::pin::Pin;

/// A boxed future, as the object-safe wrappers return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
