//! Real brokers for tests, started, killed and started again on free ports of 127.0.0.1.
//!
//! ```no_run
//! use millstream_brokers::{RabbitMq, Series};
//!
//! let mut broker = RabbitMq::builder(Series::V4).start()?;
//! println!("publish to {}", broker.url());
//! broker.kill();
//! broker.start_again()?; // The same ports, the same data.
//! # Ok::<(), millstream_brokers::StartError>(())
//! ```
//!
//! Each [`RabbitMq`], each node of a [`Kafka`], each [`ElasticMq`], each [`Redis`] and each [`Prometheus`] is a process of
//! its own with its own ports, node name and folders; any number run at once. Readiness is awaited by its condition, a
//! handshake or an answer. A broker that is not installed is an error that names what installs it, and a test without
//! its broker is to fail with that.
//!
//! # Blocking
//!
//! All functions block, for up to some seconds. From asynchronous code they go through `tokio::task::spawn_blocking`;
//! so does the drop of a broker where the runtime must not stand still, which takes milliseconds. The time that they
//! measure is the real one, whatever a runtime makes of its clock.
//!
//! # Nothing is left running
//!
//! A broker's processes are one process group. Its leader is a shell that waits for the end of a pipe which the test
//! holds, and then kills the group: so it ends with the test however the test ends, killed with SIGKILL included.
//! The parent-death signal would not do: it is sent when the *thread* that started the process ends.
//!
//! # RabbitMQ
//!
//! [`Series::V3`] is Debian 12's package, [`Series::V4`] that of Debian 13. The one that this machine's Debian does
//! not have lives in a folder with a small Debian of the other release, see [`Series::folder`], which is entered with
//! `chroot`; a user who is not root does that in a user namespace. `tests/brokers/install` makes all of it.
//!
//! The distribution's scripts are left aside and `erl` is called with what they would have given it, because
//! - Erlang looks for a module in one folder of its path after the other, and the path has all of 60 plugins. With
//!   the few that are asked for (`apps.rs`), a start takes a third of the time;
//! - a node that has its name from the command line needs no epmd, the daemon that would stay behind;
//! - `erl_call` then talks to the node in milliseconds ([`RabbitMq::eval`]), where `rabbitmqctl`
//!   ([`RabbitMq::ctl`]) takes a second or two.
//!
//! # SQS
//!
//! [`ElasticMq`] speaks its protocol; a [`SqsProxy`] before it counts calls and spoils those that a test wants
//! spoilt. Its jars are in a folder of their own, which `tests/brokers/install` fills.
//!
//! # Kafka
//!
//! [`Kafka`] is what Maven gets for `kafka/pom.xml`, in KRaft mode, each node broker and controller at once. Its topics
//! are made by clients. A proxy before each node may count how often it is asked for messages ([`Kafka::fetches`]).

mod elasticmq;
mod error;
mod group;
mod http;
mod kafka;
mod line;
mod ports;
mod prometheus;
mod rabbitmq;
mod redis;
mod tls;
mod wait;

pub use elasticmq::{ElasticMq, SqsProxy};
pub use error::{ControlError, StartError};
pub use kafka::{Kafka, KafkaBuilder};
pub use prometheus::{Prometheus, Target, TargetHealth, lint};
pub use rabbitmq::{Builder, RabbitMq, Series};
pub use redis::Redis;
