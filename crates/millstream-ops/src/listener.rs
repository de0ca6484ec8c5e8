//! The listener at an address of its own: [`Listener`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use millstream_core::{Host, rt};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::patience::Patience;
use crate::routes::router;

/// How long a client has to send the head of a request, from when it has connected or had its last answer.
const HEAD: Duration = Duration::from_secs(10);

/// The most connections at a time. Others wait until one of them ends: each holds a file of the process, of which the
/// pipelines need some.
const MOST: usize = 64;

/// How long to wait after a connection could not be taken, as when the process has no file left for it.
const AGAIN: Duration = Duration::from_secs(1);

/// It holds its address, and does not answer yet.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// The address cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen at {address}: {cause}")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    cause: io::Error,
}

impl ListenError {
    /// Where it was to listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether somebody else listens there.
    pub fn is_taken(&self) -> bool {
        self.cause.kind() == io::ErrorKind::AddrInUse
    }
}

impl Listener {
    /// Takes the address; port 0 is any that is free.
    ///
    /// # Errors
    /// When it cannot be had.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, it has taken nothing.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let bound = match TcpListener::bind(address).await {
            Ok(listener) => listener.local_addr().map(|address| Self { listener, address }),
            Err(cause) => Err(cause),
        };
        bound.map_err(|cause| ListenError { address, cause })
    }

    /// Where it listens, with the port that it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers for this host, for ever. See `routes.rs` for what.
    ///
    /// A client that has not sent the head of its next request within 10 seconds is hung up on, and so is one that has not
    /// taken an answer 30 seconds after it first made it wait. No more than 64 are connected at a time.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped, it listens no more; an answer that was begun may still be sent.
    pub async fn serve(self, host: Host) {
        let router = router(host);
        let free = Arc::new(Semaphore::new(MOST));
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD);
        // It is never closed.
        while let Ok(place) = Arc::clone(&free).acquire_owned().await {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                // It went away before it was taken.
                Err(error) if is_of_one(&error) => continue,
                Err(_) => {
                    rt::sleep(AGAIN).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            let connection = server.serve_connection(TokioIo::new(Patience::new(stream)), service);
            rt::spawn(async move {
                // What goes wrong with a connection ends that connection.
                connection.await.ok();
                drop(place);
            });
        }
    }
}

/// Whether an error of a listener is that of one connection.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
