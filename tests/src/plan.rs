//! When something is done: [`moments`].

/// So many moments, in messages completed, of which each is at least so many after the one before, and none so late that
/// nothing is left.
///
/// # Panics
/// If there are too few messages for that.
#[must_use]
pub fn moments(chance: &mut fastrand::Rng, many: usize, messages: u32, apart: u32) -> Vec<u32> {
    let latest = messages - messages / 20;
    // So many messages are left to be dealt out as gaps beyond those that must be.
    let spare = u32::try_from(many)
        .ok()
        .and_then(|many| latest.checked_sub(many * apart))
        .unwrap_or_else(|| panic!("{messages} messages are too few for {many} moments {apart} apart"));
    let mut moments: Vec<u32> = (0..many).map(|_| chance.u32(..spare)).collect();
    moments.sort_unstable();
    (1..)
        .zip(moments)
        .map(|(number, moment)| moment + number * apart)
        .collect()
}
