//! What stands between a node and its clients, and counts what they ask: [`Proxy`].

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::line::Line;

/// What a request for messages has for its API key.
const FETCH: [u8; 2] = [0, 1];

/// The line to one node, which counts requests for messages. Dropped, it takes no more clients.
#[derive(Debug)]
pub(crate) struct Proxy {
    line: Line,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    broker: u16,
    fetches: AtomicUsize,
}

impl Proxy {
    /// Starts one before the node at this port, which need not listen yet.
    pub(crate) fn start(broker: u16) -> io::Result<Self> {
        let state = Arc::new(State {
            broker,
            fetches: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&state);
        // What goes wrong on the way ends the connection, as it would elsewhere.
        let line = Line::open(move |client| _ = serving.serve(client))?;
        Ok(Self { line, state })
    }

    /// What clients take for the node's address.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.line.port())
    }

    /// How often the node was asked for messages.
    pub(crate) fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::Acquire)
    }
}

impl State {
    /// Serves one client until it or the node has gone.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let mut node = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker))?;
        client.set_nodelay(true)?;
        node.set_nodelay(true)?;
        let (mut answers, mut clients) = (node.try_clone()?, client.try_clone()?);
        let answering = std::thread::spawn(move || {
            io::copy(&mut answers, &mut clients).ok();
            clients.shutdown(Shutdown::Both).ok();
        });
        self.pass_on(&mut client, &mut node).ok();
        node.shutdown(Shutdown::Both)?;
        answering.join().ok();
        Ok(())
    }

    /// Passes requests on, each behind its length: it begins with its API key.
    fn pass_on(&self, client: &mut TcpStream, node: &mut TcpStream) -> io::Result<()> {
        loop {
            let mut head = [0; 6];
            client.read_exact(&mut head)?;
            let [length @ .., high, low] = head;
            if [high, low] == FETCH {
                self.fetches.fetch_add(1, Ordering::AcqRel);
            }
            let rest = u64::from(u32::from_be_bytes(length)).saturating_sub(2);
            node.write_all(&head)?;
            let mut request = Read::by_ref(client).take(rest);
            if io::copy(&mut request, node)? < rest {
                return Ok(());
            }
        }
    }
}
