//! Publishing: [`publish`] where nothing goes wrong, [`insist`] where it may.

use millstream_core::rt::{self, Duration};
use millstream_core::{Delivered, DynSink, OpenError, Outgoing, SharedSinkConnector};

use super::trial::soon;

/// How many messages go to a sink at a time.
const MOST: usize = 100;

/// Messages with the numbers from zero on as their payloads.
pub(crate) fn numbered(number: usize) -> Vec<Outgoing> {
    (0..number)
        .map(|number| Outgoing::new(number.to_string()))
        .collect()
}

/// Messages named `k-n`: `n` counts the messages of the key `k`, of which there are so many, and goes round the keys.
pub(crate) fn keyed(number: usize, keys: usize) -> Vec<Outgoing> {
    (0..number)
        .map(|number| {
            let key = format!("key{}", number % keys);
            Outgoing::new(format!("{key}-{}", number / keys)).with_key(key)
        })
        .collect()
}

/// Publishes all of these, each confirmed at the first attempt.
pub(crate) async fn publish(sink: &SharedSinkConnector, all: &[Outgoing]) {
    soon("the messages to be published", async {
        let mut open = sink.open().await.expect("the sink opens");
        for some in all.chunks(MOST) {
            let mut results = Vec::new();
            open.send(some, &mut results).await.expect("the sink sends");
            assert_eq!(results, vec![Delivered::Confirmed; some.len()]);
        }
    })
    .await;
}

/// Publishes all of these, and tries again whatever is not confirmed; so some may be published twice.
pub(crate) async fn insist(sink: &SharedSinkConnector, all: &[Outgoing]) {
    soon("the messages to be published", async {
        let mut left = all.to_vec();
        while !left.is_empty() {
            match sink.open().await {
                Ok(mut open) => while send_some(&mut *open, &mut left).await {},
                Err(OpenError::Refused(why)) => panic!("the sink refused to open: {why}"),
                Err(OpenError::Unavailable(_)) => {}
            }
            if !left.is_empty() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        }
    })
    .await;
}

/// Sends the first of these, and takes off what is confirmed; whether to go on with this sink.
async fn send_some(sink: &mut dyn DynSink, left: &mut Vec<Outgoing>) -> bool {
    let some: Vec<_> = left.iter().take(MOST).cloned().collect();
    let mut results = Vec::new();
    if some.is_empty() || sink.send(&some, &mut results).await.is_err() {
        return false;
    }
    let all = results.iter().all(|result| *result == Delivered::Confirmed);
    let mut results = results.into_iter().map(|result| match result {
        Delivered::Confirmed => true,
        Delivered::Failed(_) => false,
        Delivered::Refused(why) => panic!("the sink refused a message: {why}"),
    });
    left.retain(|_| !results.next().unwrap_or(false));
    all
}
