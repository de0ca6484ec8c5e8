//! A visit whose calls block: [`Aside`].

use std::fmt;

use tokio::sync::oneshot;

use crate::letters::LetterError;

/// A visit that is away while it works: its calls block, and so run where that keeps nobody else waiting.
///
/// A call that is broken off goes on to its end, and the next one waits for that.
pub struct Aside<V> {
    at: At<V>,
}

enum At<V> {
    Here(V),
    Away(oneshot::Receiver<V>),
    /// Its work has panicked.
    Gone,
}

impl<V: Send + 'static> Aside<V> {
    /// The visit, which is here.
    pub fn new(visit: V) -> Self {
        Self { at: At::Here(visit) }
    }

    /// Has the visit do this.
    ///
    /// # Cancel safety
    /// The work that has begun goes on; what it gives is lost.
    ///
    /// # Errors
    /// Those of the work, and if it panics, or one before it has.
    pub async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut V) -> Result<T, LetterError> + Send + 'static,
    ) -> Result<T, LetterError> {
        self.come_back().await?;
        let (back, coming) = oneshot::channel();
        let At::Here(mut visit) = std::mem::replace(&mut self.at, At::Away(coming)) else {
            return Err(lost());
        };
        let (tell, told) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let done = work(&mut visit);
            // Whoever does not wait for these has ended.
            let _ = back.send(visit);
            let _ = tell.send(done);
        });
        let done = told.await.map_err(|_| lost())?;
        self.come_back().await?;
        done
    }

    async fn come_back(&mut self) -> Result<(), LetterError> {
        if let At::Away(coming) = &mut self.at {
            self.at = coming.await.map_or(At::Gone, At::Here);
        }
        match self.at {
            At::Gone => Err(lost()),
            At::Here(_) | At::Away(_) => Ok(()),
        }
    }

    /// The visit, once the work that has begun is done.
    ///
    /// # Errors
    /// If that work has panicked.
    pub async fn into_inner(mut self) -> Result<V, LetterError> {
        self.come_back().await?;
        match self.at {
            At::Here(visit) => Ok(visit),
            At::Away(_) | At::Gone => Err(lost()),
        }
    }
}

fn lost() -> LetterError {
    LetterError("what looked after the letters has panicked".to_owned())
}

impl<V> fmt::Debug for Aside<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// What is broken off is not undone: the visit comes back with what the call has changed.
    #[tokio::test]
    async fn a_call_that_is_broken_off_goes_on_and_is_waited_for() {
        let mut visit = Aside::new(vec![1]);
        let (go, wait) = mpsc::channel::<()>();
        let work = visit.work(move |numbers| {
            let _ = wait.recv();
            numbers.push(2);
            Ok(())
        });
        tokio::time::timeout(Duration::from_millis(1), work)
            .await
            .expect_err("it waits");
        // One more that waits for it, and is broken off too.
        let second = visit.work(|_| Ok(()));
        tokio::time::timeout(Duration::from_millis(1), second)
            .await
            .expect_err("it waits");
        go.send(()).unwrap();
        let seen = visit.work(|numbers| {
            numbers.push(3);
            Ok(numbers.clone())
        });
        assert_eq!(seen.await.unwrap(), [1, 2, 3]);
        let failed = visit.work(|_| Err::<(), _>(LetterError("no".to_owned())));
        assert_eq!(failed.await.unwrap_err().to_string(), "no");
        assert_eq!(visit.into_inner().await.unwrap(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_all_calls_after_it() {
        let mut visit = Aside::new(());
        let panicked = visit.work(|()| -> Result<(), LetterError> { panic!("on purpose") });
        assert!(panicked.await.is_err());
        assert!(visit.work(|()| Ok(())).await.is_err());
        assert!(visit.into_inner().await.is_err());
    }
}
