//! What the management plugin knows of a queue and AMQP does not tell: [`Management`].

use std::fmt;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde_json::Value;

use crate::trouble::Trouble;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The management plugin's HTTP API.
pub(crate) struct Management {
    url: Url,
    user: String,
    password: String,
}

/// A queue as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueFacts {
    /// `classic`, `quorum` or `stream`.
    pub(crate) kind: String,
    /// Where rejected messages go, by the queue's arguments or by a policy; empty is the default exchange.
    pub(crate) dead_letter_exchange: Option<String>,
    /// After so many deliveries a quorum queue rejects a message by itself.
    pub(crate) delivery_limit: Option<i64>,
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
    pub(crate) async fn queue(&self, vhost: &str, queue: &str) -> Result<Option<QueueFacts>, Trouble> {
        let failed = |error: reqwest::Error| {
            let mut causes = error.without_url().to_string();
            causes.insert_str(0, &format!("{}: ", self.url));
            Trouble::passing(causes)
        };
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "queues", vhost, queue]);
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
            StatusCode::OK => self.facts(answer).await.map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => Err(Trouble::lasting(format!(
                "{}: user `{}` with this password may not use the management API",
                self.url, self.user
            ))),
            status => Err(Trouble::passing(format!("{} answers {status}", self.url))),
        }
    }

    async fn facts(&self, answer: Response) -> Result<QueueFacts, Trouble> {
        let unread = |why: String| Trouble::passing(format!("{}: {why}", self.url));
        let body = answer
            .bytes()
            .await
            .map_err(|error| unread(error.without_url().to_string()))?;
        let value = serde_json::from_slice(&body).map_err(|_| unread("the answer is not JSON".to_owned()))?;
        Ok(QueueFacts::read(&value))
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

impl QueueFacts {
    /// A queue's own arguments win over a policy, where both speak of dead letters.
    fn read(value: &Value) -> Self {
        let policy = value.get("effective_policy_definition");
        let argument = |name: &str| value.get("arguments").and_then(|arguments| arguments.get(name));
        let by_policy = |name: &str| policy.and_then(|policy| policy.get(name));
        let exchange = argument("x-dead-letter-exchange").or_else(|| by_policy("dead-letter-exchange"));
        // With both, the lower one counts.
        let limits = [argument("x-delivery-limit"), by_policy("delivery-limit")];
        Self {
            kind: value
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or("classic")
                .to_owned(),
            dead_letter_exchange: exchange.and_then(Value::as_str).map(str::to_owned),
            delivery_limit: limits.into_iter().flatten().filter_map(Value::as_i64).min(),
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
        let facts = QueueFacts::read(&json!({
            "type": "quorum",
            "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5},
            "effective_policy_definition": {"dead-letter-exchange": "dlx", "delivery-limit": 3},
        }));
        assert_eq!(facts.kind, "quorum");
        assert_eq!(facts.dead_letter_exchange.as_deref(), Some("dlx"));
        assert_eq!(facts.delivery_limit, Some(3));
        // What 3.10 answers where there is no policy.
        let none =
            QueueFacts::read(&json!({"type": "classic", "arguments": {}, "effective_policy_definition": {}}));
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
