//! The processor behind the `http` handler: [`Post`].

use std::error::Error;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millstream_core::{Context, Failure, Processor};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Response, Url};

use super::answer::judge;
use super::names::headers;

/// An answer's body is read up to here, so that the connection can serve again; a longer one closes it.
const BODY: usize = 64 << 10;
/// How long is waited for that.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest text of an error.
const TEXT: usize = 500;

/// POSTs each payload.
#[derive(Debug)]
pub(super) struct Post {
    client: Client,
    url: Url,
    /// The URL without what is secret in it.
    shown: String,
}

impl Post {
    pub(super) fn new(client: Client, url: Url, shown: String) -> Self {
        Self { client, url, shown }
    }

    /// The error without the URL, which may have a secret in it.
    fn failure(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let mut text = format!("POST {}: {error}", self.shown);
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text.truncate(text.floor_char_boundary(TEXT));
        Failure::retry(text)
    }
}

impl Processor for Post {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, payload: Bytes, cx: &mut Context<'_>) -> Result<(), Failure> {
        let request = self
            .client
            .post(self.url.clone())
            .headers(headers(cx))
            .body(payload);
        let mut response = request.send().await.map_err(|error| self.failure(error))?;
        let judgement = {
            let retry_after = response.headers().get(RETRY_AFTER);
            let retry_after = retry_after.and_then(|value| value.to_str().ok());
            judge(response.status(), retry_after, &self.shown, SystemTime::now())
        };
        // A body that does not end must not turn what is done into a timeout.
        let _ = tokio::time::timeout(PATIENCE, forget(&mut response)).await;
        judgement
    }
}

/// Reads the body. Whether that succeeds says nothing of the message: the status has come.
async fn forget(response: &mut Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > BODY {
            return;
        }
    }
}
