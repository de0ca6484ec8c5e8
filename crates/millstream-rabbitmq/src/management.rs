//! What the management plugin knows of a queue and AMQP does not tell: [`Management`].

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use serde_json::Value;

use crate::check::{Known, millis};
use crate::trouble::Trouble;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The management plugin's HTTP API.
pub(crate) struct Management {
    url: Url,
    user: String,
    password: String,
}

impl Management {
    /// Reads `http://user:password@host:15672`. An error does not show the URL.
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        let unusable =
            || "write http://user:password@host:15672, special characters as in %40 for @".to_owned();
        let mut url = Url::parse(url).map_err(|_| unusable())?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(unusable());
        }
        if url.scheme() == "https" && cfg!(not(feature = "tls")) {
            return Err("this program is built without TLS: use http://".to_owned());
        }
        let decode = |text: &str| decode(text).ok_or_else(unusable);
        let (user, password) = match url.username() {
            "" => ("guest".to_owned(), "guest".to_owned()),
            user => (decode(user)?, decode(url.password().unwrap_or_default())?),
        };
        // They go in a header, and the URL may then be shown.
        url.set_username("")
            .and_then(|()| url.set_password(None))
            .map_err(|()| unusable())?;
        Ok(Self { url, user, password })
    }

    /// Asks about a queue; `None` if there is no such queue.
    pub(crate) async fn queue(&self, vhost: &str, queue: &str) -> Result<Option<Known>, Trouble> {
        let answer = self.get(&["queues", vhost, queue]).await?;
        Ok(answer.as_ref().map(Known::read))
    }

    /// The first number of the broker's version.
    pub(crate) async fn series(&self) -> Result<u32, Trouble> {
        let answer = self.get(&["overview"]).await?.unwrap_or_default();
        let version = answer.get("rabbitmq_version").and_then(Value::as_str);
        let first = version.and_then(|version| version.split('.').next()?.parse().ok());
        first.ok_or_else(|| Trouble::passing(format!("{} does not say its version", self.url)))
    }

    /// What is there; `None` if nothing is.
    async fn get(&self, path: &[&str]) -> Result<Option<Value>, Trouble> {
        let failed = |error: reqwest::Error| {
            let error = error.without_url();
            let mut text = format!("{}: {error}", self.url);
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            Trouble::passing(text)
        };
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("api").extend(path);
        }
        let answer = self
            .client()
            .map_err(failed)?
            .get(url)
            .basic_auth(&self.user, Some(&self.password))
            .send()
            .await
            .map_err(failed)?;
        match answer.status() {
            StatusCode::OK => {
                let body = answer.bytes().await.map_err(failed)?;
                let value = serde_json::from_slice(&body);
                value.map_err(|_| Trouble::passing(format!("{}: the answer is not JSON", self.url)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => Err(Trouble::lasting(format!(
                "{}: user `{}` with this password may not use the management API",
                self.url, self.user
            ))),
            status => Err(Trouble::passing(format!("{} answers {status}", self.url))),
        }
    }

    fn client(&self) -> reqwest::Result<Client> {
        // Whoever embeds this may have chosen another provider; that one stays.
        #[cfg(feature = "tls")]
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none());
        // The certificates of the system need not be there then, nor be read.
        #[cfg(feature = "tls")]
        let client = if self.url.scheme() == "http" {
            client.tls_certs_only([])
        } else {
            client
        };
        client.build()
    }
}

impl Known {
    /// A queue's own arguments win over a policy, where both speak of dead letters.
    fn read(value: &Value) -> Self {
        let policy = value.get("effective_policy_definition");
        let argument = |name: &str| value.get("arguments").and_then(|arguments| arguments.get(name));
        let by_policy = |name: &str| policy.and_then(|policy| policy.get(name));
        let exchange = argument("x-dead-letter-exchange").or_else(|| by_policy("dead-letter-exchange"));
        // With both, the lower one counts.
        let limits = [argument("x-delivery-limit"), by_policy("delivery-limit")];
        let timeouts = [argument("x-consumer-timeout"), by_policy("consumer-timeout")];
        Self {
            kind: value
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or("classic")
                .to_owned(),
            members: value.get("members").and_then(Value::as_array).map(Vec::len),
            dead_letter_exchange: exchange.and_then(Value::as_str).map(str::to_owned),
            delivery_limit: limits.into_iter().flatten().filter_map(Value::as_i64).min(),
            consumer_timeout: timeouts
                .into_iter()
                .flatten()
                .find_map(Value::as_i64)
                .and_then(millis),
        }
    }
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

/// Percent-decodes a part of a URL.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_queue_has_its_dead_letter_exchange_from_itself_or_from_a_policy() {
        let facts = Known::read(&json!({
            "type": "quorum",
            "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5},
            "members": ["rabbit@one", "rabbit@two", "rabbit@three"],
            "effective_policy_definition": {"dead-letter-exchange": "dlx", "delivery-limit": 3, "consumer-timeout": 5000},
        }));
        assert_eq!((facts.kind.as_str(), facts.members), ("quorum", Some(3)));
        assert_eq!(facts.dead_letter_exchange.as_deref(), Some("dlx"));
        assert_eq!(facts.delivery_limit, Some(3));
        assert_eq!(facts.consumer_timeout, Some(Duration::from_secs(5)));
        // What 3.10 answers where there is no policy.
        let none =
            Known::read(&json!({"type": "classic", "arguments": {}, "effective_policy_definition": {}}));
        assert_eq!(none.dead_letter_exchange, None);
    }

    #[test]
    fn the_password_is_not_in_what_is_shown() {
        let management = Management::new("http://app:hun%40ter2@broker:15672/prefix/").unwrap();
        assert_eq!(management.password, "hun@ter2");
        assert!(!format!("{management:?}").contains("ter2"));
        for url in ["broker:15672", "ftp://app:hunter2@broker", "app:hunter2@broker"] {
            let why = Management::new(url).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
