//! The one thread of a process that publishes to a database for all its sinks: [`Publisher`].
//!
//! Whatever waits when it comes round goes into one transaction, and so shares one flush to the disk.

use std::sync::{Arc, Weak};

use millstream_core::{Delivered, Outgoing};
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::database::{Database, Durability};
use crate::error::Error;
use crate::publish;

/// What a sink asked for. A sink waits for its answer before it asks again, so there is one a sink at most.
struct Job {
    queue: Arc<str>,
    /// Whom it is for; none for every group.
    group: Option<Arc<str>>,
    messages: Vec<Outgoing>,
    reply: oneshot::Sender<Result<Vec<Delivered>, String>>,
}

/// Publishes for every sink of the process that writes to one database; ends with the last of them.
pub(crate) struct Publisher {
    desk: Arc<Desk>,
}

#[derive(Default)]
struct Desk {
    open: Mutex<Open>,
    work: Condvar,
}

#[derive(Default)]
struct Open {
    jobs: Vec<Job>,
    closed: bool,
}

impl Publisher {
    pub(crate) fn start(database: &Arc<Database>) -> Result<Arc<Self>, Error> {
        let connection = database.connect(Durability::Commit)?;
        let desk = Arc::new(Desk::default());
        let (theirs, weak) = (Arc::clone(&desk), Arc::downgrade(database));
        std::thread::Builder::new()
            .name("sqlite-publish".to_owned())
            .spawn(move || run(&theirs, &weak, &connection))
            .map_err(|error| database.error(error))?;
        Ok(Arc::new(Self { desk }))
    }

    /// Publishes these; the text says why nothing of it was written.
    pub(crate) async fn publish(
        &self,
        queue: &Arc<str>,
        group: Option<&Arc<str>>,
        messages: Vec<Outgoing>,
    ) -> Result<Vec<Delivered>, String> {
        let (reply, answer) = oneshot::channel();
        self.desk.open.lock().jobs.push(Job {
            queue: Arc::clone(queue),
            group: group.map(Arc::clone),
            messages,
            reply,
        });
        self.desk.work.notify_one();
        answer
            .await
            .unwrap_or_else(|_| Err("the publishing thread has ended".to_owned()))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.desk.open.lock().closed = true;
        self.desk.work.notify_one();
    }
}

fn run(desk: &Desk, database: &Weak<Database>, connection: &Connection) {
    loop {
        let jobs = {
            let mut open = desk.open.lock();
            while open.jobs.is_empty() && !open.closed {
                desk.work.wait(&mut open);
            }
            std::mem::take(&mut open.jobs)
        };
        let (false, Some(database)) = (jobs.is_empty(), database.upgrade()) else {
            return;
        };
        serve(&database, connection, jobs);
    }
}

/// Writes what all of them asked for in one transaction, and answers each.
fn serve(database: &Database, connection: &Connection, jobs: Vec<Job>) {
    let mut written = Vec::with_capacity(jobs.len());
    let done: rusqlite::Result<()> = database.write(connection, |connection| {
        for job in &jobs {
            let mut results = Vec::with_capacity(job.messages.len());
            publish::insert(
                connection,
                &job.queue,
                job.group.as_deref(),
                &job.messages,
                &mut results,
            )?;
            written.push(results);
        }
        Ok(())
    });
    // A sink that has gone hears nothing; its messages are published all the same.
    match done {
        Ok(()) => {
            database.wake();
            for (job, results) in jobs.into_iter().zip(written) {
                job.reply.send(Ok(results)).ok();
            }
        }
        Err(error) => {
            let text = database.error(error).to_string();
            for job in jobs {
                job.reply.send(Err(text.clone())).ok();
            }
        }
    }
}
