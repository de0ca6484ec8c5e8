//! ElasticMQ, which speaks SQS, and what tests put between it and a client.

mod broker;
mod proxy;

pub use broker::ElasticMq;
pub use proxy::SqsProxy;
