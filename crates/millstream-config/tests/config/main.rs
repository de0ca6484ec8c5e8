//! Files good and broken, and what is made of them.

mod broken;
mod findings;
mod good;
mod robust;
mod schema;
mod secrets;
mod support;
