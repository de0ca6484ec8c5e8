//! The listener at an address of its own: [`Listener`].

use std::io;
use std::net::SocketAddr;

use millstream_core::Host;
use thiserror::Error;
use tokio::net::TcpListener;

use crate::routes::router;

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
    /// # Cancel safety
    /// Cancel safe: dropped, it listens no more; an answer that was begun may still be sent.
    pub async fn serve(self, host: Host) {
        // It never ends: what goes wrong with a connection ends that connection.
        let _ = axum::serve(self.listener, router(host)).await;
    }
}
