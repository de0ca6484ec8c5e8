//! The commands as processes, on real files.

mod check;
mod dead_letter;
mod files;
mod http;
mod kafka;
mod listen;
mod pages;
mod publish;
mod rabbitmq;
mod reload;
mod repeats;
mod run;
mod sqlite;
#[cfg(test)]
mod support;
mod terminal;
#[cfg(feature = "kafka")]
mod transactions;
