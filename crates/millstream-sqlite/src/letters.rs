//! Dead letters read back: those in a queue of their own, and those kept beside the queue that they came from.

use std::path::PathBuf;
use std::sync::Arc;

use millstream_core::{
    BoxFuture, Headers, Letter, LetterBox, LetterError, Letters, OpenError, Rejection, Visit,
};
use tokio::sync::oneshot;

use crate::database::millis;
use crate::dead::DeadLetter;
use crate::error::Error;
use crate::queue::Queue;
use crate::row;
use crate::stored::Stored;

/// Dead letters in a database.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    queue: Arc<str>,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// They are the messages of a queue.
    Queue,
    /// They are kept beside the queue, having been given up for this group.
    Beside(Arc<str>),
}

impl Kept {
    /// Those that a sink has put into this queue.
    pub(crate) fn in_queue(path: PathBuf, queue: Arc<str>) -> Self {
        Self {
            path,
            queue,
            place: Place::Queue,
        }
    }

    /// Those that were rejected by the readers of this group.
    pub(crate) fn beside(path: PathBuf, queue: &str, group: &str) -> Self {
        Self {
            path,
            queue: queue.into(),
            place: Place::Beside(group.into()),
        }
    }
}

impl LetterBox for Kept {
    fn open(&self, visit: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        let kept = self.clone();
        Box::pin(async move {
            let place = kept.place.clone();
            let opened = aside(move || -> Result<_, Error> {
                // A database that nobody has made holds no letters, and is not made for that.
                if !kept.path.exists() {
                    return Ok(None);
                }
                let queue = Queue::open(&kept.path, &kept.queue)?;
                let last = match kept.place {
                    Place::Queue => {
                        queue.last("SELECT coalesce(max(id), 0) FROM millstream_messages WHERE queue = ?1")
                    }
                    Place::Beside(_) => {
                        queue.last("SELECT coalesce(max(id), 0) FROM millstream_dead WHERE queue = ?1")
                    }
                }?;
                Ok(Some((Arc::new(queue), last)))
            });
            let opened = opened.await.map_err(OpenError::Unavailable)??;
            Ok(Box::new(Open {
                place,
                visit,
                after: 0,
                last: opened.as_ref().map_or(0, |(_, last)| *last),
                queue: opened.map(|(queue, _)| queue),
            }) as Box<dyn Letters>)
        })
    }
}

/// A visit.
struct Open {
    queue: Option<Arc<Queue>>,
    place: Place,
    visit: Visit,
    /// The number of the last letter that was given.
    after: u64,
    /// The number of the last letter that was there when it began.
    last: u64,
}

impl Letters for Open {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(async move {
            let Some(queue) = &self.queue else {
                return Ok(Vec::new());
            };
            while self.after < self.last {
                let (queue, place) = (Arc::clone(queue), self.place.clone());
                let (after, last, visit) = (self.after, self.last, self.visit);
                let read = aside(move || read(&queue, &place, visit, after, last, most.max(1)));
                let (letters, after) = read
                    .await
                    .and_then(|read| read.map_err(text))
                    .map_err(LetterError)?;
                self.after = after;
                if !letters.is_empty() {
                    return Ok(letters);
                }
            }
            Ok(Vec::new())
        })
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>> {
        Box::pin(async move {
            let Some(queue) = &self.queue else {
                return Ok(0);
            };
            let (queue, place, handles) = (Arc::clone(queue), self.place.clone(), handles.to_vec());
            let removed = aside(move || match place {
                Place::Queue => queue.remove(&handles),
                Place::Beside(_) => queue.purge(&handles),
            });
            let removed = removed.await.and_then(|removed| removed.map_err(text));
            removed.map(|removed| removed as u64).map_err(LetterError)
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async { Ok(0) })
    }
}

/// Letters behind this number, and the number that the next ones are behind. None does not mean that there are no more.
fn read(
    queue: &Queue,
    place: &Place,
    visit: Visit,
    after: u64,
    last: u64,
    most: usize,
) -> Result<(Vec<Letter>, u64), Error> {
    match place {
        Place::Queue => {
            let stored = queue.list(after, most)?;
            let next = stored.last().map_or(last, |stored| stored.position);
            // What a consumer has is that one's to settle.
            let theirs = |stored: &Stored| stored.leased && visit != Visit::Look;
            let letters = stored
                .into_iter()
                .filter(|stored| stored.position <= last && !theirs(stored));
            Ok((letters.map(of_queue).collect(), next))
        }
        Place::Beside(group) => {
            let dead: Vec<DeadLetter> = queue.dead().after(after).take(most).collect::<Result<_, _>>()?;
            let next = dead.last().map_or(last, |dead| dead.position);
            let letters = dead
                .into_iter()
                .filter(|dead| dead.position <= last && *dead.group == **group);
            Ok((letters.map(of_beside).collect(), next))
        }
    }
}

fn of_queue(stored: Stored) -> Letter {
    Letter {
        handle: stored.position,
        id: stored.position.to_string(),
        payload: stored.payload,
        key: stored.key,
        headers: stored.headers,
        priority: row::priority(stored.priority),
        timestamp: Some(stored.published_at),
    }
}

/// The row as a sink would have written it.
fn of_beside(dead: DeadLetter) -> Letter {
    let mut headers: Headers = dead.headers;
    let values = [
        dead.pipeline,
        dead.stage,
        dead.reason,
        dead.error,
        dead.attempts.to_string(),
        dead.deliveries.to_string(),
        dead.origin,
        millis(dead.first_failed_at).to_string(),
        millis(dead.failed_at).to_string(),
    ];
    for (name, value) in Rejection::HEADERS.iter().zip(&values) {
        headers.set(name, value);
    }
    Letter {
        handle: dead.position,
        id: dead.position.to_string(),
        payload: dead.payload,
        key: dead.key,
        headers,
        priority: row::priority(dead.priority),
        timestamp: Some(dead.failed_at),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn text(error: Error) -> String {
    error.to_string()
}

/// Runs this in a thread of its own, as it may wait for other processes.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (reply, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("sqlite-letters".to_owned())
        .spawn(move || reply.send(work()).ok())
        .map_err(|error| error.to_string())?;
    done.await
        .map_err(|_| "the thread that looked after the letters has ended".to_owned())
}
