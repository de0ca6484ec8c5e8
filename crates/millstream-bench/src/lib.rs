//! What the benchmarks share: a handler that does nothing, a queue to be emptied, medians, processor time.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{Context, Failure, Outgoing, Processor, Sink, SinkError};

/// Does nothing with what it is given. The engine's own benchmark has one in its binary, where it can be inlined.
#[derive(Clone, Copy, Debug)]
pub struct NoOp;

impl Processor for NoOp {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, _: Bytes, _: &mut Context<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Sends so many messages of 100 bytes, so many at once.
///
/// # Errors
/// What the sink says; it may have taken some of them.
pub async fn fill(sink: &mut impl Sink, messages: usize, at_once: usize) -> Result<(), SinkError> {
    let outgoing = vec![Outgoing::new(Bytes::from_static(&[b'7'; 100])); at_once];
    let mut results = Vec::new();
    for sent in (0..messages).step_by(at_once) {
        let some = outgoing.get(..at_once.min(messages - sent)).unwrap_or(&outgoing);
        sink.send(some, &mut results).await?;
        results.clear();
    }
    Ok(())
}

/// The figure in the middle; of an even number, the lower one of the two.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures
        .get((figures.len().max(1) - 1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Millions of messages a second.
pub fn millions(messages: usize, took: Duration) -> f64 {
    messages as f64 / took.as_secs_f64() / 1e6
}

/// Seconds for which this process has had a processor, in its own code and in the kernel.
///
/// # Errors
/// If Linux does not say, as where the process is gone.
pub fn cpu_seconds(process: u32) -> io::Result<f64> {
    /// Ticks in a second, as `/proc` counts on every Linux there is.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // After the name, which is in brackets and may hold anything; the first of the fields is the third of all.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: Option<Vec<f64>> = ticks.map(|field| field.parse().ok()).collect();
    match ticks.as_deref() {
        Some([user, system]) => Ok((user + system) / TICKS),
        _ => Err(io::Error::other(format!("odd: {stat}"))),
    }
}
