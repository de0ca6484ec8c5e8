//! What a source, its acknowledger and its readers share: [`Inbox`].
//!
//! Readers put in what the broker has delivered, the source takes it out, and what the source wants tells the readers
//! what to ask of the broker. The prefetch is all that bounds what is here: it is never more than the source has
//! been given credit for at once.

use std::collections::VecDeque;
use std::sync::Arc;

use millstream_core::rt::{self, Instant};
use millstream_core::{Chunk, Credit, EngineHandle, Message, Scope, Ticket};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::progress::Progress;
use crate::tags::Tags;

/// The most that is prefetched where the settings leave it to demand: more hides no longer way to the broker, and keeps
/// from other processes what nobody here gets to for a while.
const MOST: usize = 2_000;
/// The most that is prefetched where they do, while it is not known how large messages are.
const FIRST: usize = 100;
/// The size that messages are taken to have until it is known, where the prefetch must not change: in bytes.
const LIKELY: usize = 64 << 10;

/// Deliveries of a message without an outcome above which it may be what ends the process.
const UNSUSPECTED: u32 = 3;

/// How many messages are sent ahead where order matters, the settings say nothing, and there is room for so many bytes.
pub(crate) fn in_order(bytes: usize) -> usize {
    (bytes / LIKELY).max(FIRST)
}

/// What the readers shall ask of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing. What is here stays here.
    Nothing,
    /// Messages, so many unacknowledged at a time over all readers.
    Messages(usize),
    /// Nothing since then, and perhaps messages again at once.
    Pause(Instant),
    /// Nothing, and what is here is to go back.
    Clearance,
    /// Nothing ever again: nobody is left to settle anything.
    Goodbye,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    engine: EngineHandle,
    /// What the settings say about prefetching.
    prefetch: Option<u16>,
    /// Order matters, so the prefetch stays what it is while there is a consumer. Another prefetch takes another
    /// consumer, and a quorum queue takes back what is on its way to the first one: it would come behind what follows it.
    ordered: bool,
    /// How far it was read, if it is a stream.
    progress: Option<Arc<Progress>>,
    state: Mutex<State>,
    /// Told when there is something to read, or a reader changed.
    readable: Notify,
    want: watch::Sender<Want>,
}

#[derive(Debug)]
struct State {
    arrived: VecDeque<(Ticket, Message)>,
    /// A suspect that is handed out once everything else is back at the broker.
    suspect: Option<(Ticket, Message)>,
    careful: Careful,
    /// The most messages and bytes that credit was ever for.
    most_credit: Credit,
    /// Bytes of a message of late, on average; none while none was read.
    size: Option<usize>,
    draining: bool,
    readers: Vec<Status>,
    channels: Vec<Arc<Tags>>,
    /// Closed channels of which acks may have been kept back.
    closed: Vec<Arc<Tags>>,
}

/// What went back for a suspect comes again one at a time, so that none goes back for the next one too: as long as there is
/// a suspect among it.
#[derive(Clone, Copy, Debug, Default)]
struct Careful {
    messages: usize,
    suspects: usize,
}

impl Careful {
    /// So many messages are to come, with so many suspects among them at most.
    fn begin(&mut self, messages: usize, suspects: usize) {
        self.messages += messages;
        self.suspects += suspects;
    }

    /// So many have come.
    fn took(&mut self, messages: usize, suspects: usize) {
        self.messages = self.messages.saturating_sub(messages);
        self.suspects = self.suspects.saturating_sub(suspects);
        if !self.is_on() {
            *self = Self::default();
        }
    }

    fn is_on(self) -> bool {
        self.messages > 0 && self.suspects > 0
    }
}

/// How one reader is doing.
#[derive(Clone, Debug, Default)]
struct Status {
    /// The broker may send to it.
    consuming: bool,
    /// Why it cannot work.
    trouble: Option<String>,
    /// Its task has ended.
    gone: bool,
}

/// What a look into the inbox found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Messages,
    Nothing,
    Ended,
    /// Nobody reads any more.
    Failed,
}

impl Inbox {
    /// The one that stores a stream's position, among those that may be in trouble: a stream has one reader.
    pub(crate) const KEEPER: usize = 1;

    pub(crate) fn new(
        engine: EngineHandle,
        prefetch: Option<u16>,
        ordered: bool,
        readers: usize,
        progress: Option<Arc<Progress>>,
    ) -> Self {
        Self {
            engine,
            prefetch,
            ordered,
            state: Mutex::new(State {
                arrived: VecDeque::new(),
                suspect: None,
                careful: Careful::default(),
                most_credit: Credit {
                    messages: 0,
                    bytes: 0,
                },
                size: None,
                draining: false,
                readers: vec![Status::default(); readers + usize::from(progress.is_some())],
                channels: Vec::new(),
                closed: Vec::new(),
            }),
            progress,
            readable: Notify::new(),
            want: watch::Sender::new(Want::Nothing),
        }
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    pub(crate) fn progress(&self) -> Option<&Progress> {
        self.progress.as_deref()
    }

    // === for the source

    /// Takes messages within the credit, and says what the readers shall do about what is missing.
    pub(crate) fn read(&self, credit: Credit, chunk: &mut Chunk) -> Found {
        let mut state = self.state.lock();
        if state.draining {
            let before = chunk.len();
            for (ticket, message) in state.take_all() {
                chunk.push(ticket, message);
            }
            return match () {
                () if chunk.len() > before => Found::Messages,
                () if state.is_quiet() => Found::Ended,
                () => Found::Nothing,
            };
        }
        if state.readers.iter().any(|reader| reader.gone) {
            return Found::Failed;
        }
        let most = &mut state.most_credit;
        most.messages = most.messages.max(credit.messages);
        most.bytes = most.bytes.max(credit.bytes);
        if state.suspect.is_none() {
            let (messages, bytes) = (chunk.len(), chunk.bytes());
            state.take(credit, chunk);
            if chunk.len() > messages {
                let latest = (chunk.bytes() - bytes) / (chunk.len() - messages);
                state.size = Some(state.size.map_or(latest, |size| (size * 3 + latest) / 4));
                if state.careful.is_on() {
                    // A batch that waits for more waits for its age.
                    chunk.come_alone();
                }
                state.careful.took(chunk.len() - messages, 0);
                // After a pause a new consumer waits until what the one before it has brought is read: the broker
                // counts for each by itself.
                if state.arrived.is_empty() || matches!(*self.want.borrow(), Want::Messages(_)) {
                    self.want(&state, credit);
                }
                return Found::Messages;
            }
            state.suspect = state.arrived.pop_front();
        }
        if state.suspect.is_none() {
            self.want(&state, credit);
            return Found::Nothing;
        }
        let alone = state.is_quiet() || *self.want.borrow() == Want::Messages(1);
        if !(alone && state.arrived.is_empty()) {
            // Should the suspect end the process, the broker counts a delivery of all that is out.
            self.want.send_if_modified(|want| replace(want, Want::Clearance));
            return Found::Nothing;
        }
        if let Some((ticket, message)) = state.suspect.take() {
            chunk.push(ticket, message);
            state.careful.took(1, 1);
        }
        Found::Messages
    }

    /// Tells the readers how much of the broker's messages they shall have underway.
    fn want(&self, state: &State, credit: Credit) {
        // Where more than that can be worked on at a time, so much, and half of it again for what is on its way.
        let capacity = self.engine.capacity();
        let sent_ahead = MOST.max(capacity.saturating_add(capacity / 2));
        let by_size = || match state.size {
            Some(size) => (state.most_credit.bytes / size.max(1)).clamp(1, sent_ahead),
            None if self.ordered => in_order(state.most_credit.bytes).min(sent_ahead),
            None => FIRST,
        };
        // Each connection reads: one without a share would only be there.
        let connections = state.readers.len() - usize::from(self.progress.is_some());
        let set = |prefetch| usize::from(prefetch).max(connections);
        let most = self.prefetch.map_or_else(by_size, set);
        let most = most.min(state.most_credit.messages);
        self.want.send_if_modified(|want| {
            let now = match *want {
                Want::Goodbye => return false,
                Want::Messages(now) => now,
                Want::Nothing | Want::Pause(_) | Want::Clearance => 0,
            };
            let next = if state.careful.is_on() {
                1
            } else if credit.messages > 1
                && (now < 2 || !self.ordered && (now * 2 <= most || most * 2 <= now))
            {
                // A change costs a new consumer, so it has to be worth it.
                most
            } else {
                // When one is all that is wanted after a break, the others stay with the broker.
                now.max(1)
            };
            replace(want, Want::Messages(next))
        });
    }

    /// Nothing more is wanted for now.
    pub(crate) fn pause(&self) {
        self.want.send_if_modified(|want| match *want {
            Want::Messages(_) => replace(want, Want::Pause(rt::now())),
            Want::Nothing | Want::Pause(_) | Want::Clearance | Want::Goodbye => false,
        });
    }

    /// Nothing more is wanted for good.
    pub(crate) fn drain(&self) {
        self.state.lock().draining = true;
        self.want.send_if_modified(|want| replace(want, Want::Nothing));
        self.readable.notify_one();
    }

    /// Waits until another look may find more.
    pub(crate) async fn readable(&self) {
        self.readable.notified().await;
    }

    // === for the acknowledger

    /// Whether what is fetched is handed over for the last time.
    pub(crate) fn is_draining(&self) -> bool {
        self.state.lock().draining
    }

    /// The channels that are open.
    pub(crate) fn channels(&self) -> Vec<Arc<Tags>> {
        self.state.lock().channels.clone()
    }

    /// The channels that were closed since the last time.
    pub(crate) fn take_closed(&self) -> Vec<Arc<Tags>> {
        std::mem::take(&mut self.state.lock().closed)
    }

    // === for the readers

    /// What the source wants, to be watched.
    pub(crate) fn wants(&self) -> watch::Receiver<Want> {
        self.want.subscribe()
    }

    /// Whether there is a use for what a reader would consume; then it counts as consuming.
    pub(crate) fn begin(&self, reader: usize) -> bool {
        let mut state = self.state.lock();
        let wanted = matches!(*self.want.borrow(), Want::Messages(_));
        if let Some(reader) = state.readers.get_mut(reader) {
            reader.consuming = wanted;
        }
        wanted
    }

    /// The broker sends nothing more to this reader.
    pub(crate) fn end(&self, reader: usize) {
        if let Some(reader) = self.state.lock().readers.get_mut(reader) {
            reader.consuming = false;
        }
        self.readable.notify_one();
    }

    /// A channel was opened.
    pub(crate) fn opened(&self, reader: usize, tags: &Arc<Tags>) {
        self.state.lock().channels.push(Arc::clone(tags));
        self.report(reader, None);
    }

    /// A stream's channel is gone. What came from it stays in hand.
    pub(crate) async fn interrupted(&self, reader: usize, tags: &Arc<Tags>, cause: &str) {
        tags.close().await;
        let generation = tags.generation();
        self.state
            .lock()
            .channels
            .retain(|open| open.generation() != generation);
        self.report(reader, Some(cause));
        self.end(reader);
    }

    /// A channel is gone, with all that came from it.
    pub(crate) async fn lost(&self, reader: usize, tags: &Arc<Tags>, cause: &str) {
        tags.close().await;
        let generation = tags.generation();
        {
            let mut state = self.state.lock();
            state
                .arrived
                .retain(|(ticket, _)| ticket.generation != generation);
            if state
                .suspect
                .as_ref()
                .is_some_and(|(ticket, _)| ticket.generation == generation)
            {
                state.suspect = None;
            }
            let (closed, open) = std::mem::take(&mut state.channels)
                .into_iter()
                .partition(|open| open.generation() == generation);
            state.channels = open;
            state.closed.extend::<Vec<_>>(closed);
            if let Some(reader) = state.readers.get_mut(reader) {
                reader.consuming = false;
            }
        }
        self.report(reader, Some(cause));
        self.engine.lost(Scope::Generation(generation));
        self.readable.notify_one();
    }

    /// A reader cannot work, or can again.
    pub(crate) fn report(&self, reader: usize, trouble: Option<&str>) {
        let mut state = self.state.lock();
        if let Some(reader) = state.readers.get_mut(reader) {
            reader.trouble = trouble.map(str::to_owned);
        }
        match state.trouble() {
            Some(trouble) => self.engine.degraded(trouble),
            None => self.engine.recovered(),
        }
    }

    /// Why it is degraded, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.state.lock().trouble().map(str::to_owned)
    }

    /// The task of a reader has ended.
    fn leave(&self, reader: usize) {
        if let Some(reader) = self.state.lock().readers.get_mut(reader) {
            reader.gone = true;
            reader.consuming = false;
        }
        self.readable.notify_one();
    }

    /// Puts in what was delivered.
    pub(crate) fn deliver(&self, arrived: &mut Vec<(Ticket, Message)>) {
        let mut state = self.state.lock();
        let was_empty = state.arrived.is_empty();
        state.arrived.extend(arrived.drain(..));
        drop(state);
        if was_empty {
            self.readable.notify_one();
        }
    }

    /// Takes out what a channel delivered and nobody has read, to give it back.
    pub(crate) fn withdraw(&self, tags: &Tags) -> Vec<Ticket> {
        let mut state = self.state.lock();
        let (mut withdrawn, mut suspects) = (Vec::new(), 0);
        state.arrived.retain(|(ticket, message)| {
            let stays = ticket.generation != tags.generation();
            if !stays {
                withdrawn.push(*ticket);
                // By the time that it comes again, which may count too.
                suspects += usize::from(message.deliveries >= UNSUSPECTED);
            }
            stays
        });
        // The suspect for which it is comes first.
        if *self.want.borrow() == Want::Clearance && !withdrawn.is_empty() {
            state.careful.begin(withdrawn.len() + 1, suspects + 1);
        }
        withdrawn
    }
}

impl State {
    /// Moves what has arrived into the chunk, up to the first suspect.
    fn take(&mut self, credit: Credit, chunk: &mut Chunk) {
        while chunk.len() < credit.messages && chunk.bytes() < credit.bytes {
            let next = self.arrived.front();
            if next.is_none_or(|(_, message)| message.deliveries > UNSUSPECTED) {
                return;
            }
            if let Some((ticket, message)) = self.arrived.pop_front() {
                chunk.push(ticket, message);
            }
        }
    }

    fn take_all(&mut self) -> impl Iterator<Item = (Ticket, Message)> + '_ {
        self.suspect.take().into_iter().chain(self.arrived.drain(..))
    }

    fn trouble(&self) -> Option<&str> {
        self.readers.iter().find_map(|reader| reader.trouble.as_deref())
    }

    /// Whether nothing can arrive.
    fn is_quiet(&self) -> bool {
        !self.readers.iter().any(|reader| reader.consuming)
    }
}

/// Replaces the one by the other and says whether they differ. Nothing comes after the goodbye.
fn replace(want: &mut Want, next: Want) -> bool {
    let changes = *want != next && *want != Want::Goodbye;
    if changes {
        *want = next;
    }
    changes
}

/// The two sides that the engine has. When both are dropped, the readers say goodbye to the broker.
#[derive(Debug)]
pub(crate) struct Presence(Arc<Inbox>);

impl Presence {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self(inbox)
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.0
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.want.send_replace(Want::Goodbye);
    }
}

/// Held by the task of a reader; dropped with it.
#[derive(Debug)]
pub(crate) struct Attendance {
    inbox: Arc<Inbox>,
    reader: usize,
}

impl Attendance {
    pub(crate) fn new(inbox: &Arc<Inbox>, reader: usize) -> Self {
        Self {
            inbox: Arc::clone(inbox),
            reader,
        }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.inbox.leave(self.reader);
    }
}
