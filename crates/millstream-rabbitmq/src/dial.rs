//! How a connection is made: [`Dial`], and the connection, [`Line`].
//!
//! lapin's own recovery is never turned on. A connection is a generation: when it breaks, whoever has it takes
//! another, and everything of the old one is stale.

use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use millstream_core::{OpenError, rt};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::timeout;

use crate::trouble::{self, Trouble, code};

/// How long a connection has to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// One broker, or several of a cluster that are tried in turn, and how to connect to them.
///
/// Clones share which of the brokers worked last.
///
/// ```
/// # use millstream_rabbitmq::Dial;
/// let dial = Dial::new(["amqp://app:secret@one/orders", "amqp://app:secret@two/orders"])?.name("millstream orders");
/// assert!(!format!("{dial:?}").contains("secret"));
/// # Ok::<(), millstream_rabbitmq::InvalidUrl>(())
/// ```
#[derive(Clone)]
pub struct Dial {
    brokers: Arc<[AMQPUri]>,
    name: Arc<str>,
    heartbeat: Duration,
    timeout: Duration,
    ca_file: Option<Arc<Path>>,
    memory: Arc<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Where to begin: the broker that worked last.
    first: AtomicUsize,
    /// A connection was made at some time, so that a refusal may be a passing one.
    connected: AtomicBool,
}

/// Why a URL is none for RabbitMQ. It does not show the URL, which has a password in it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{why}")]
pub struct InvalidUrl {
    /// Which one, counted from zero.
    pub index: usize,
    /// What is wrong with it.
    pub why: String,
}

impl Dial {
    /// Connects to one of these: `amqp://user:password@host:port/vhost`, or `amqps://`.
    ///
    /// Without a path, or with `/` alone, it is the virtual host `/`. Without a user it is `guest`.
    ///
    /// # Errors
    /// When there is none, or one is no such URL.
    pub fn new<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Self, InvalidUrl> {
        let brokers: Vec<_> = urls
            .into_iter()
            .enumerate()
            .map(|(index, url)| parse(url.as_ref()).map_err(|why| InvalidUrl { index, why }))
            .collect::<Result<_, _>>()?;
        if brokers.is_empty() {
            return Err(InvalidUrl {
                index: 0,
                why: "no URL is given".to_owned(),
            });
        }
        Ok(Self {
            brokers: brokers.into(),
            name: "millstream".into(),
            heartbeat: Duration::from_secs(20),
            timeout: Duration::from_secs(10),
            ca_file: None,
            memory: Arc::default(),
        })
    }

    /// The connection's name in the broker's log and management UI.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// A peer that is silent for this long is gone; in whole seconds, at least one.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// How long one broker has to accept a connection.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// For `amqps://`, trusts the authorities in this PEM file instead of the system's.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into().into());
        self
    }

    /// Whether one of the URLs is `amqps://`.
    pub fn encrypts(&self) -> bool {
        self.brokers.iter().any(|uri| uri.scheme == AMQPScheme::AMQPS)
    }

    /// The virtual host; where the URLs differ in it, that of the first.
    #[cfg(feature = "management")]
    pub(crate) fn vhost(&self) -> &str {
        self.brokers.first().map_or("/", |uri| &uri.vhost)
    }

    /// Whether any clone has ever connected.
    pub(crate) fn has_connected(&self) -> bool {
        self.memory.connected.load(Ordering::Relaxed)
    }

    /// Connects to the first broker that will have it, beginning with the one that worked last.
    ///
    /// # Errors
    /// [`OpenError::Refused`] if every broker refuses for good and none has ever accepted.
    pub(crate) async fn connect(&self) -> Result<Line, OpenError> {
        let first = self.memory.first.load(Ordering::Relaxed);
        let mut troubles = Vec::new();
        for step in 0..self.brokers.len() {
            let index = (first + step) % self.brokers.len();
            let Some(uri) = self.brokers.get(index) else {
                continue;
            };
            match self.connect_to(uri).await {
                Ok(line) => {
                    self.memory.first.store(index, Ordering::Relaxed);
                    self.memory.connected.store(true, Ordering::Relaxed);
                    return Ok(line);
                }
                Err(trouble) => troubles.push(trouble),
            }
        }
        let lasting = troubles.iter().all(|trouble| trouble.lasting);
        let texts: Vec<_> = troubles.into_iter().map(|trouble| trouble.text).collect();
        let text = texts.join("; ");
        Err(Trouble { lasting, text }.open_error(self.has_connected()))
    }

    async fn connect_to(&self, uri: &AMQPUri) -> Result<Line, Trouble> {
        let place = place(uri);
        let wire = Wire::default();
        let mut uri = uri.clone();
        let seconds = u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX).max(1);
        uri.query.heartbeat.get_or_insert(seconds);
        let tls = Tls::load(&uri, self.ca_file.as_deref()).map_err(|trouble| trouble.at(&place))?;
        let connecting = Connection::connector(
            uri.clone(),
            lapin::runtime::default_runtime()?,
            {
                let wire = wire.clone();
                async move |uri: AMQPUri, runtime| {
                    let addresses = runtime.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
                    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                    if let AsyncTcpStream::Plain(stream) = &stream {
                        wire.hold(stream.get_ref());
                    }
                    Ok(tls.wrap(stream, &uri.authority.host).await?)
                }
            },
            ConnectionProperties::default().with_connection_name(self.name.as_ref().into()),
        );
        match timeout(self.timeout, connecting).await {
            Ok(Ok(connection)) => Ok(Line {
                connection: Some(connection),
                channels: Mutex::default(),
                wire,
                place,
            }),
            Ok(Err(error)) => Err(refusal(&uri, &error).at(&place)),
            Err(_) => {
                // What lapin still has of it ends with the socket.
                wire.cut();
                Err(Trouble::passing(format!("no answer within {:?}", self.timeout)).at(&place))
            }
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial")
            .field("brokers", &self.brokers.iter().map(place).collect::<Vec<_>>())
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Trouble {
    fn at(mut self, place: &str) -> Self {
        self.text = format!("{place}: {}", self.text);
        self
    }
}

/// An open connection. Dropped, it closes in the background.
pub(crate) struct Line {
    connection: Option<Connection>,
    /// Those that were open of late. A channel that is dropped closes itself, which is an error to lapin where its
    /// connection is closing, and ends the connection at once, with what was not yet written: acknowledgements that
    /// had been answered for. So they go after it.
    channels: Mutex<Vec<Channel>>,
    wire: Wire,
    place: String,
}

impl Line {
    /// A new channel.
    pub(crate) async fn channel(&self) -> Result<Channel, Trouble> {
        let Some(connection) = &self.connection else {
            return Err(Trouble::passing("the connection is closed"));
        };
        let channel = connection
            .create_channel()
            .await
            .map_err(|error| Trouble::from(error).at(&self.place))?;
        let mut channels = self.channels.lock();
        channels.retain(|channel| channel.status().connected());
        channels.push(channel.clone());
        Ok(channel)
    }

    /// Whether the broker takes nothing from this connection now, because it is short of memory or disk space.
    /// It only ever does that to connections that publish.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.status().blocked())
    }

    /// The largest frame, in bytes, that both sides agreed on.
    pub(crate) fn frame_max(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.configuration().frame_max() as usize)
    }

    /// The broker, for people: host and port.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }
}

impl Line {
    /// Says goodbye, and waits until that was heard.
    pub(crate) async fn close(mut self) {
        if let Some(goodbye) = self.goodbye() {
            goodbye.await;
        }
    }

    /// What is left to do of saying goodbye, if there is anything.
    fn goodbye(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let connection = self.connection.take()?;
        let wire = self.wire.clone();
        let channels = std::mem::take(&mut *self.channels.lock());
        // A blocked connection cannot even say that it closes, and lapin would keep its thread until it can.
        if !connection.status().connected()
            || connection.status().blocked()
            || tokio::runtime::Handle::try_current().is_err()
        {
            wire.cut();
            return None;
        }
        Some(async move {
            let goodbye = connection.close(200, "goodbye".into());
            if timeout(GOODBYE, goodbye).await.is_err() {
                wire.cut();
            }
            drop(channels);
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(goodbye) = self.goodbye() {
            rt::spawn(goodbye);
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// The socket under a connection, to end it from outside lapin, whose thread lives as long as the socket does.
#[derive(Clone, Debug, Default)]
struct Wire(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
enum Held {
    /// Not connected yet.
    #[default]
    Nothing,
    Socket(TcpStream),
    /// Cut: a connection that comes after this is cut at once.
    Cut,
}

impl Wire {
    fn hold(&self, stream: &impl AsFd) {
        let Ok(copy) = stream.as_fd().try_clone_to_owned() else {
            return;
        };
        let mut held = self.0.lock();
        if matches!(*held, Held::Cut) {
            shut(&TcpStream::from(copy));
        } else {
            *held = Held::Socket(TcpStream::from(copy));
        }
    }

    fn cut(&self) {
        if let Held::Socket(socket) = std::mem::replace(&mut *self.0.lock(), Held::Cut) {
            shut(&socket);
        }
    }
}

fn shut(socket: &TcpStream) {
    // It fails only where the peer has closed already.
    socket.shutdown(Shutdown::Both).ok();
}

/// What to encrypt with.
struct Tls {
    #[cfg(feature = "tls")]
    connector: Option<lapin::tcp::RustlsConnector>,
}

#[cfg(feature = "tls")]
impl Tls {
    fn load(uri: &AMQPUri, ca_file: Option<&Path>) -> Result<Self, Trouble> {
        use lapin::tcp::RustlsConnectorConfig;
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;

        if uri.scheme == AMQPScheme::AMQP {
            return Ok(Self { connector: None });
        }
        let config = if let Some(path) = ca_file {
            let unusable = |why: String| Trouble::lasting(format!("`ca_file` {}: {why}", path.display()));
            let authorities: Vec<_> = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|error| unusable(error.to_string()))?;
            if authorities.is_empty() {
                return Err(unusable("there is no certificate in it".to_owned()));
            }
            let mut config = RustlsConnectorConfig::default();
            config.add_parsable_certificates(authorities);
            config
        } else {
            RustlsConnectorConfig::new_with_native_certs().map_err(|error| {
                Trouble::lasting(format!(
                    "this system has no authorities to trust ({error}): name some in `ca_file`"
                ))
            })?
        };
        let connector = config
            .connector_with_no_client_auth()
            .map_err(|error| Trouble::lasting(format!("TLS cannot be set up: {error}")))?;
        Ok(Self {
            connector: Some(connector),
        })
    }

    async fn wrap<S>(&self, stream: AsyncTcpStream<S>, host: &str) -> std::io::Result<AsyncTcpStream<S>>
    where
        S: futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static,
    {
        match &self.connector {
            Some(connector) => stream.into_rustls(connector, host).await,
            None => Ok(stream),
        }
    }
}

#[cfg(not(feature = "tls"))]
impl Tls {
    fn load(_: &AMQPUri, _: Option<&Path>) -> Result<Self, Trouble> {
        Ok(Self {})
    }

    async fn wrap<S>(&self, stream: S, _: &str) -> std::io::Result<S> {
        Ok(stream)
    }
}

/// Where it is, for people.
fn place(uri: &AMQPUri) -> String {
    let host = &uri.authority.host;
    let port = uri.authority.port;
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Reads a URL as RabbitMQ's documents have them; an error never repeats any of it.
fn parse(url: &str) -> Result<AMQPUri, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("write amqp://user:password@host:5672/vhost".to_owned());
    };
    if !matches!(scheme, "amqp" | "amqps") {
        return Err("the scheme is amqp:// or amqps://".to_owned());
    }
    if scheme == "amqps" && cfg!(not(feature = "tls")) {
        return Err("this program is built without TLS: use amqp://".to_owned());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains(['@', '[', ']'])
        || rest.split(['?', '#']).next().is_some_and(|path| {
            // What follows the host is the virtual host alone, so an @ there is part of an unescaped password.
            path.get(authority.len()..).is_some_and(|path| path.contains('@'))
        })
    {
        return Err(
            "a special character in the password must be written as %40 for @, %2F for /, and so on"
                .to_owned(),
        );
    }
    let mut uri: AMQPUri = url.parse().map_err(|_| {
        "write amqp://user:password@host:5672/vhost, special characters as in %40 for @".to_owned()
    })?;
    if let Some(end) = host.find(']') {
        // The parser passes over addresses of IPv6.
        host.get(1..end)
            .ok_or("the host is no address")?
            .clone_into(&mut uri.authority.host);
    } else if host.is_empty() || host.starts_with(':') {
        return Err("the host is missing".to_owned());
    }
    if uri.vhost.is_empty() {
        "/".clone_into(&mut uri.vhost);
    }
    Ok(uri)
}

/// Why the broker did not take the connection.
fn refusal(uri: &AMQPUri, error: &lapin::Error) -> Trouble {
    let user = &uri.authority.userinfo.username;
    let vhost = &uri.vhost;
    match trouble::reply(error) {
        Some((code::ACCESS_REFUSED, _)) => {
            Trouble::lasting(format!("the broker refuses user `{user}` with this password"))
        }
        Some((code::NOT_ALLOWED, text)) if text.contains("not found") => {
            Trouble::lasting(format!("there is no virtual host `{vhost}` at the broker"))
        }
        Some((code::NOT_ALLOWED, text)) if text.contains("refused") => Trouble::lasting(format!(
            "user `{user}` has no permissions in the virtual host `{vhost}`"
        )),
        Some((_, text)) => Trouble::passing(format!("the broker says: {text}")),
        None => Trouble::passing(trouble::describe(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        let uri = parse("amqp://app:s%40crt@one:5673/orders?heartbeat=5").unwrap();
        assert_eq!(uri.authority.userinfo.password, "s@crt");
        assert_eq!((place(&uri).as_str(), uri.vhost.as_str()), ("one:5673", "orders"));
        for url in ["amqp://one", "amqp://one/", "amqp://one/%2f"] {
            assert_eq!(parse(url).unwrap().vhost, "/", "{url}");
        }
        let uri = parse("amqps://[::1]/").unwrap();
        assert_eq!(uri.authority.host, "::1");
        assert_eq!(place(&uri), "[::1]:5671");
    }

    #[test]
    fn no_error_shows_a_password() {
        for url in [
            "app:hunter2@one",
            "http://app:hunter2@one",
            "amqp:app:hunter2",
            "amqp://app:hunter2@@one",
            "amqp://app:hunter2@one:port",
            "amqp://app:hun/ter2@one/",
            "amqp://app:hunter2@",
            "amqp://app:hunter2@:5672",
            "amqp://app:hunter2@[::1",
        ] {
            let why = Dial::new([url]).expect_err(url).to_string();
            assert!(!why.contains("hunter2") && !why.contains("ter2"), "{url}: {why}");
        }
    }
}
