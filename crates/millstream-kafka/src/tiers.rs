//! Retry topics, and which there are: [`Tiers`].
//!
//! Kafka holds no single message back. So a message that shall come again later is written to a topic of those that wait
//! equally long, `GROUP.retry.5s`, which the members of the group read too. In it, what comes first is due first, and a
//! member hands out none before it is due. Which topics there are follows from the policy; those that an earlier policy
//! has left behind are read on, so that nothing is stranded in them.

use std::time::Duration;

use millstream_core::{OpenError, RetrySpec};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;

/// The waits that a topic may have, in milliseconds: each at most three times the one before.
const STEPS: [u64; 20] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_200_000,
    1_800_000, 3_600_000, 7_200_000, 14_400_000, 43_200_000, 86_400_000,
];

/// How long a retry topic keeps a message beyond its time, while no member reads it.
const KEPT: u64 = 7 * 86_400_000;

/// The longest name that Kafka takes for a topic.
const LONGEST: usize = 249;

/// The retry topics of a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tiers {
    group: String,
    /// In milliseconds, ascending. None where messages are not put off.
    waits: Vec<u64>,
}

impl Tiers {
    pub(crate) fn none(group: &str) -> Self {
        Self {
            group: group.to_owned(),
            waits: Vec::new(),
        }
    }

    /// Those that this policy needs.
    pub(crate) fn of(group: &str, policy: &RetrySpec) -> Self {
        let mut waits = Vec::new();
        let mut wait = policy.backoff;
        // Beyond a day, and beyond as many, they no longer differ.
        for _ in 1..policy.attempts.get().min(1_000) {
            waits.push(step(wait.min(policy.max_backoff)));
            let next = wait.as_secs_f64() * policy.factor;
            wait = Duration::try_from_secs_f64(next).unwrap_or(Duration::MAX);
        }
        waits.sort_unstable();
        waits.dedup();
        Self {
            group: group.to_owned(),
            waits,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// The longest wait.
    pub(crate) fn longest(&self) -> Option<Duration> {
        self.waits.last().copied().map(Duration::from_millis)
    }

    /// The topic for a message that is to wait this long, and how long it waits there; none where there is no topic.
    pub(crate) fn topic(&self, delay: Duration) -> Option<(String, Duration)> {
        let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let wait = self
            .waits
            .iter()
            .find(|wait| **wait >= millis)
            .or(self.waits.last())?;
        Some((self.name(*wait), Duration::from_millis(*wait)))
    }

    fn name(&self, wait: u64) -> String {
        format!("{}.retry.{}", self.group, label(wait))
    }

    /// Whether a topic is one of this group's, of this policy or another.
    pub(crate) fn owns(&self, topic: &str) -> bool {
        self.wait(topic).is_some()
    }

    /// How long messages wait in a topic of this group's, of this policy or another; none if it is not one.
    pub(crate) fn wait(&self, topic: &str) -> Option<Duration> {
        let rest = topic.strip_prefix(&*self.group)?.strip_prefix(".retry.")?;
        let step = STEPS.iter().find(|step| label(**step) == rest)?;
        Some(Duration::from_millis(*step))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.waits.iter().map(|wait| self.name(*wait))
    }

    /// Makes those that are not there, with as many partitions as the topic with the most of these.
    ///
    /// # Errors
    /// With what to do about it by hand.
    pub(crate) async fn make(
        &self,
        config: &ClientConfig,
        metadata: &Metadata,
        sources: &[String],
    ) -> Result<(), OpenError> {
        let missing: Vec<_> = self
            .waits
            .iter()
            .map(|wait| (self.name(*wait), (wait + KEPT).to_string()))
            .filter(|(name, _)| !metadata.topics().iter().any(|topic| topic.name() == name))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.check_names()?;
        let read = || {
            let topics = metadata.topics().iter();
            topics.filter(|topic| sources.iter().any(|source| source == topic.name()))
        };
        // Where only patterns say what is read, the broker's own numbers.
        let partitions = read().map(|topic| topic.partitions().len()).max();
        let copies = read()
            .flat_map(|topic| topic.partitions())
            .map(|partition| partition.replicas().len())
            .max();
        let number =
            |number: Option<usize>| number.and_then(|number| i32::try_from(number).ok()).unwrap_or(-1);
        let new: Vec<_> = missing
            .iter()
            .map(|(name, kept)| {
                NewTopic::new(name, number(partitions), TopicReplication::Fixed(number(copies)))
                    .set("cleanup.policy", "delete")
                    .set("retention.ms", kept)
            })
            .collect();
        let how = partitions.map_or_else(String::new, |partitions| format!(" with {partitions} partitions"));
        let failed = |name: &str, kept: &str, why: &dyn std::fmt::Display| {
            format!(
                "the topic `{name}`, where messages wait for their next attempt, is not there and cannot be made: \
                 {why}; make it{how}, cleanup.policy=delete and retention.ms={kept}"
            )
        };
        let all = |why: &dyn std::fmt::Display| match &missing[..] {
            [(name, kept), ..] => failed(name, kept, why),
            [] => why.to_string(),
        };
        let admin: AdminClient<DefaultClientContext> =
            config.create().map_err(|error| OpenError::Refused(all(&error)))?;
        let made = admin
            .create_topics(&new, &AdminOptions::new())
            .await
            .map_err(|error| OpenError::Unavailable(all(&error)))?;
        for ((name, kept), made) in missing.iter().zip(made) {
            use RDKafkaErrorCode::{
                ClusterAuthorizationFailed, InvalidReplicationFactor, PolicyViolation, TopicAlreadyExists,
                TopicAuthorizationFailed,
            };
            match made {
                // Another member was faster.
                Ok(_) | Err((_, TopicAlreadyExists)) => {}
                Err((
                    _,
                    code @ (ClusterAuthorizationFailed
                    | TopicAuthorizationFailed
                    | PolicyViolation
                    | InvalidReplicationFactor),
                )) => return Err(OpenError::Refused(failed(name, kept, &code))),
                Err((_, code)) => return Err(OpenError::Unavailable(failed(name, kept, &code))),
            }
        }
        Ok(())
    }

    /// Not every group's name can be part of a topic's.
    fn check_names(&self) -> Result<(), OpenError> {
        let fits = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        match self
            .names()
            .find(|name| name.len() > LONGEST || !name.chars().all(fits))
        {
            None => Ok(()),
            Some(name) => Err(OpenError::Refused(format!(
                "a topic cannot be named `{name}`, as the one where messages would wait for their next attempt: name \
                 the group with letters, digits, `.`, `_` and `-`, or retry in place"
            ))),
        }
    }
}

/// A wait rounded up to one that a topic may have.
fn step(wait: Duration) -> u64 {
    let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let [.., longest] = STEPS;
    STEPS.into_iter().find(|step| *step >= millis).unwrap_or(longest)
}

/// A wait as part of a topic's name.
fn label(millis: u64) -> String {
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    format!("{millis}ms")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn policy(backoff: u64, factor: f64, max_backoff: u64, attempts: u32) -> RetrySpec {
        RetrySpec {
            backoff: Duration::from_millis(backoff),
            max_backoff: Duration::from_millis(max_backoff),
            factor,
            attempts: NonZeroU32::new(attempts).unwrap(),
            ..RetrySpec::default()
        }
    }

    fn names(policy: &RetrySpec) -> String {
        Tiers::of("orders", policy).names().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_topics_follow_from_the_policy() {
        assert_eq!(
            names(&RetrySpec::default()),
            "orders.retry.100ms orders.retry.200ms orders.retry.500ms orders.retry.1s"
        );
        assert_eq!(names(&policy(5_000, 1.0, 5_000, 100)), "orders.retry.5s");
        assert_eq!(
            names(&policy(60_000, 10.0, u64::MAX, 5)),
            "orders.retry.1m orders.retry.10m orders.retry.2h orders.retry.1d"
        );
        assert_eq!(names(&policy(100, 2.0, 100, 1)), "", "one attempt needs none");
    }

    #[test]
    fn topics_of_an_earlier_policy_are_known() {
        let tiers = Tiers::none("orders");
        assert!(tiers.owns("orders.retry.5s"));
        assert!(!tiers.owns("orders.retry.6s"));
        assert!(!tiers.owns("others.retry.5s"));
        assert!(!tiers.owns("orders.retry.dead"));
    }

    #[test]
    fn labels_are_as_people_write_them() {
        let labels: Vec<_> = STEPS.map(label).into();
        assert_eq!(
            labels.join(" "),
            "100ms 200ms 500ms 1s 2s 5s 10s 20s 30s 1m 2m 5m 10m 20m 30m 1h 2h 4h 12h 1d"
        );
    }

    proptest! {
        /// Never early; late by no more than the next step of the policy, or cut to the longest.
        #[test]
        fn a_wait_is_rounded_up(backoff in 100_u64..1_000_000, factor in 1.0..10.0, share in 0.5..=1.0) {
            let policy = policy(backoff, factor, 80_000_000, 8);
            let tiers = Tiers::of("orders", &policy);
            for failures in 0..7 {
                let wait = (policy.backoff.as_secs_f64() * f64::powi(policy.factor, failures)).min(80_000.0);
                let wait = Duration::from_secs_f64(wait * share);
                let (_, waits) = tiers.topic(wait).unwrap();
                prop_assert!(waits >= wait, "{waits:?} for {wait:?}");
                prop_assert!(waits <= wait.mul_f64(6.0), "{waits:?} for {wait:?}");
            }
            prop_assert_eq!(tiers.topic(Duration::MAX).map(|(_, wait)| wait), tiers.longest());
        }
    }
}
