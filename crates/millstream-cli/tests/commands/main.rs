//! The commands as processes, on real files.

mod check;
mod files;
mod http;
mod listen;
mod pages;
mod publish;
mod rabbitmq;
mod run;
mod sqlite;
#[cfg(test)]
mod support;
mod terminal;
