//! Ports that are free now and stay this process's: [`Port`].

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Below what systems take for outgoing connections (Linux: from 32768), so that no client's connection sits on a
/// broker's port while the broker is down.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A TCP port of 127.0.0.1 for one broker.
///
/// The UDP port of the same number is held while this lives: it keeps no broker from listening, and tells any other
/// process that looks for a port here that this one is taken, also while its broker is down.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _claim: UdpSocket,
}

impl Port {
    /// One that nobody listens on and nobody has claimed.
    pub(crate) fn free() -> io::Result<Self> {
        for _ in 0..1_000 {
            let number = fastrand::u16(RANGE);
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else {
                continue;
            };
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok() {
                return Ok(Self {
                    number,
                    _claim: claim,
                });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("found no free port in {RANGE:?}"),
        ))
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
