//! Whether a database can be used, before it is: [`check`].

use std::path::PathBuf;

use millstream_core::{Finding, OpenError};
use tokio::sync::oneshot;

use crate::database::examine;

/// What is wrong with the database at this path, if anything. A file that is not there is made by whoever opens it, and
/// not by this.
pub(crate) async fn check(path: PathBuf) -> Vec<Finding> {
    let (reply, looked) = oneshot::channel();
    // It may wait for other processes, so it has a thread of its own.
    let look = move || drop(reply.send(examine(&path)));
    let started = std::thread::Builder::new()
        .name("sqlite-check".to_owned())
        .spawn(look);
    let error = match started {
        Err(error) => OpenError::Unavailable(error.to_string()),
        Ok(_) => match looked.await {
            Ok(Ok(())) => return Vec::new(),
            Ok(Err(error)) => error.into(),
            Err(_) => OpenError::Unavailable("the thread that looked has ended".to_owned()),
        },
    };
    vec![Finding::from(error).at("path")]
}
