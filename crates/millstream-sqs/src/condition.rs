//! Whether the queue can be worked with, as the engine is told: [`Condition`].

use millstream_core::EngineHandle;
use parking_lot::Mutex;

/// A part of the connector that can fail by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Receiving,
    Settling,
}

/// What is wrong with each part, told as one.
#[derive(Debug)]
pub(crate) struct Condition {
    engine: EngineHandle,
    troubles: Mutex<[Option<String>; 2]>,
}

impl Condition {
    pub(crate) fn new(engine: EngineHandle) -> Self {
        Self {
            engine,
            troubles: Mutex::default(),
        }
    }

    /// The last thing that the part tried came to this.
    pub(crate) fn note(&self, part: Part, trouble: Option<&str>) {
        let mut troubles = self.troubles.lock();
        let [receiving, settling] = &mut *troubles;
        let slot = match part {
            Part::Receiving => receiving,
            Part::Settling => settling,
        };
        if slot.is_none() && trouble.is_none() {
            return;
        }
        *slot = trouble.map(str::to_owned);
        match troubles.iter().flatten().next() {
            Some(trouble) => self.engine.degraded(trouble),
            None => self.engine.recovered(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_must_be_well_again() {
        let (engine, told) = EngineHandle::detached();
        let condition = Condition::new(engine);
        condition.note(Part::Receiving, Some("no answer"));
        condition.note(Part::Settling, Some("denied"));
        condition.note(Part::Receiving, None);
        assert_eq!(told.degraded().as_deref(), Some("denied"));
        condition.note(Part::Settling, None);
        assert_eq!(told.degraded(), None);
    }
}
