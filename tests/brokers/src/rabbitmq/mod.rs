//! RabbitMQ: [`RabbitMq`], [`Builder`], [`Series`].

mod apps;
mod broker;
mod builder;
mod control;
mod node;
mod series;

pub use broker::RabbitMq;
pub use builder::Builder;
pub use series::Series;
