//! What may run and has no lane: [`Unordered`], beside the lanes of what has one.

use std::collections::VecDeque;

use super::envelope::Envelope;

/// Room for so many is made for a chunk that messages come to one by one.
const CHUNK: usize = 16;

/// Messages without a lane that may run: chunks of at most what a worker may take, handed on whole.
#[derive(Debug, Default)]
pub(super) struct Unordered {
    chunks: VecDeque<Vec<Envelope>>,
    messages: usize,
}

impl Unordered {
    /// How many there are.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// The one that would be taken next.
    pub(super) fn first(&self) -> Option<&Envelope> {
        self.chunks.front()?.first()
    }

    /// Whether one of them is not doubtful.
    pub(super) fn has_undoubted(&self, round: u32) -> bool {
        let mut all = self.chunks.iter().flatten();
        all.any(|envelope| !envelope.is_doubtful(round))
    }

    /// Puts chunks behind all others: so many messages in all.
    pub(super) fn admit(&mut self, chunks: impl Iterator<Item = Vec<Envelope>>, messages: usize) {
        self.messages += messages;
        self.chunks.extend(chunks.filter(|chunk| !chunk.is_empty()));
    }

    /// Puts one behind all others.
    pub(super) fn push(&mut self, envelope: Envelope) {
        self.messages += 1;
        match self.chunks.back_mut() {
            Some(chunk) if chunk.len() < chunk.capacity() => chunk.push(envelope),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(envelope);
                self.chunks.push_back(chunk);
            }
        }
    }

    /// Puts one before all others.
    pub(super) fn put_back(&mut self, envelope: Envelope) {
        self.messages += 1;
        self.chunks.push_front(vec![envelope]);
    }

    /// Takes so many of those that there are.
    pub(super) fn take(&mut self, mut number: usize, taken: &mut VecDeque<Envelope>) {
        self.messages -= number;
        while number > 0
            && let Some(chunk) = self.chunks.front_mut()
        {
            if chunk.len() > number {
                taken.extend(chunk.drain(..number));
                return;
            }
            number -= chunk.len();
            match self.chunks.pop_front() {
                // The chunk as it came: nothing is moved.
                Some(chunk) if taken.is_empty() => *taken = chunk.into(),
                Some(chunk) => taken.extend(chunk),
                None => return,
            }
        }
    }

    /// Has one that is not doubtful go before all that are. Says whether there is one.
    pub(super) fn bring_undoubted_forward(&mut self, round: u32) -> bool {
        let mut chunks = self.chunks.iter().enumerate();
        let found = chunks.find_map(|(chunk, envelopes)| {
            let index = envelopes.iter().position(|envelope| !envelope.is_doubtful(round));
            index.map(|index| (chunk, index))
        });
        let Some((chunk, index)) = found else {
            return false;
        };
        if (chunk, index) != (0, 0)
            && let Some(envelopes) = self.chunks.get_mut(chunk)
        {
            let envelope = envelopes.remove(index);
            if envelopes.is_empty() {
                self.chunks.remove(chunk);
            }
            self.chunks.push_front(vec![envelope]);
        }
        true
    }

    /// Takes out those that `leave` picks.
    pub(super) fn remove(&mut self, leave: impl Fn(&Envelope) -> bool, removed: &mut Vec<Envelope>) {
        for chunk in &mut self.chunks {
            removed.extend(chunk.extract_if(.., |envelope| leave(envelope)));
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
        self.messages = self.chunks.iter().map(Vec::len).sum();
    }
}
