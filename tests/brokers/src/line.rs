//! What proxies take their clients on: [`Line`].

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A port of this machine, each of whose clients is served on a thread of its own. Dropped, it takes no more of them.
#[derive(Debug)]
pub(crate) struct Line {
    port: u16,
    closed: Arc<AtomicBool>,
}

impl Line {
    pub(crate) fn open(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let closed = Arc::new(AtomicBool::new(false));
        let (ended, serve) = (Arc::clone(&closed), Arc::new(serve));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(client));
            }
        });
        Ok(Self { port, closed })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        // The thread that listens finds out with its next client.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
    }
}
