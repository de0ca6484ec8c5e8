//! [`RedisRates`].

use std::fmt;
use std::time::Duration;

use millstream_core::{Ask, BoxFuture, RateError, RateStore, Turns};
use redis::Pipeline;

use crate::server::{InvalidUrl, Server};

/// By the server's clock, on which all processes agree.
const NOW: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
";

/// Takes the turns.
const TAKE: &str = include_str!("take.lua");

/// Keys in one run of the script at most: Redis does nothing else meanwhile.
const TOGETHER: usize = 256;

/// Keeps a pipeline's rate limit in Redis, or in what speaks its protocol: one server, and no cluster.
///
/// It connects when it is asked first, and again after each failure. A Redis that forgets begins with each key's whole burst.
///
/// ```
/// use millstream_redis::RedisRates;
///
/// let rates = RedisRates::new("redis://127.0.0.1:6379", "orders")?;
/// assert!(RedisRates::new("http://127.0.0.1", "orders").is_err());
/// # Ok::<(), millstream_redis::InvalidUrl>(())
/// ```
pub struct RedisRates {
    server: Server,
    prefix: Vec<u8>,
    script: String,
}

impl RedisRates {
    /// The limit of this pipeline at this URL, as [`RedisStore`](crate::RedisStore) takes it. Connects to nothing yet.
    ///
    /// # Errors
    /// If it is no URL of Redis, or one with TLS, which this build does not speak.
    pub fn new(url: &str, pipeline: &str) -> Result<Self, InvalidUrl> {
        Ok(Self {
            server: Server::new(url)?,
            // With the length of the name, no two pipelines and keys come to one key.
            prefix: format!("millstream-rate:{}:{pipeline}:", pipeline.len()).into_bytes(),
            script: [NOW, TAKE].concat(),
        })
    }

    /// Redis compiles a script once and knows it by its text, which is as long as a few messages.
    fn pipeline(&self, asks: &[Ask]) -> Pipeline {
        let mut pipeline = Pipeline::new();
        for asks in asks.chunks(TOGETHER) {
            let eval = pipeline.cmd("EVAL").arg(&self.script).arg(asks.len());
            for ask in asks {
                eval.arg([&self.prefix[..], &ask.key[..]].concat());
            }
            for ask in asks {
                eval.arg(ask.pace.each.as_nanos() as f64 / 1e3)
                    .arg(ask.pace.burst.get())
                    .arg(ask.number)
                    .arg(u8::from(ask.returns));
            }
        }
        pipeline
    }
}

impl fmt::Debug for RedisRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRates").finish_non_exhaustive()
    }
}

impl RateStore for RedisRates {
    fn take<'a>(&'a self, asks: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Turns>, RateError>> {
        Box::pin(async move {
            if asks.is_empty() {
                return Ok(Vec::new());
            }
            let answers: Vec<Vec<u64>> = self
                .server
                .ask(&self.pipeline(asks))
                .await
                .map_err(|error| RateError(format!("Redis: {error}")))?;
            let turns: Vec<_> = answers
                .concat()
                .chunks_exact(2)
                .filter_map(|pair| <[u64; 2]>::try_from(pair).ok())
                .map(|[now, wait]| Turns {
                    now: u32::try_from(now).unwrap_or(u32::MAX),
                    wait: Duration::from_micros(wait),
                })
                .collect();
            if turns.len() != asks.len() {
                return Err(RateError("Redis: an answer of another length".to_owned()));
            }
            Ok(turns)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use millstream_brokers::Redis;
    use millstream_core::{Bucket, Pace};

    use redis::Client;

    use super::*;

    /// The script and [`Bucket`] are one algorithm in two languages: they agree on any run of asks, to the last bit.
    #[test]
    fn the_script_takes_what_a_bucket_takes() {
        let redis = Redis::start().unwrap();
        let mut connection = Client::open(redis.url()).unwrap().get_connection().unwrap();
        let mut random: u64 = 7;
        let mut chance = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        // What was kept is read within the script: it might expire before another call.
        let look = "answers[3], answers[4] = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
            redis.call('PERSIST', KEYS[1])
            return answers";
        let script = [
            "local now = tonumber(ARGV[#ARGV])\n",
            &TAKE.replace("return answers", look),
        ]
        .concat();
        let (mut later, mut promised) = (0, 0);
        for run in 0..40 {
            let mut bucket = Bucket::default();
            let mut now = 1_700_000_000_000_000;
            for _ in 0..50 {
                // Mostly the same limit, and at times another; a clock may go back.
                let changed = chance(20) == 0;
                let ask = Ask {
                    key: format!("{run}").into(),
                    pace: Pace {
                        each: Duration::from_nanos(333_333 + u64::from(changed) * chance(1_000_000_000)),
                        burst: NonZeroU32::new(1 + run % 7 * 3).unwrap(),
                    },
                    number: u32::try_from(1 + chance(9)).unwrap(),
                    returns: chance(3) > 0,
                };
                now = (now + chance(4_000)).saturating_sub(chance(30) / 29 * 500_000);
                let waiting = bucket.waiting;
                let turns = bucket.take(&ask, now);
                later += u32::from(turns.now < ask.number);
                promised += u32::from(bucket.waiting < waiting);
                let (has, wait, kept, expires): (u32, u64, String, i64) = redis::cmd("EVAL")
                    .arg(&script)
                    .arg(1)
                    .arg(&ask.key[..])
                    .arg(ask.pace.each.as_nanos() as f64 / 1e3)
                    .arg(ask.pace.burst.get())
                    .arg(ask.number)
                    .arg(u8::from(ask.returns))
                    .arg(now)
                    .query(&mut connection)
                    .unwrap();
                assert_eq!((has, Duration::from_micros(wait)), (turns.now, turns.wait));
                let kept: Vec<f64> = kept.split(' ').map(|word| word.parse().unwrap()).collect();
                assert_eq!(kept, [bucket.at as f64, bucket.taken, bucket.waiting]);
                let idle =
                    i64::try_from((bucket.idle_at(ask.pace.each) - bucket.at).div_ceil(1_000)).unwrap();
                assert!(
                    expires <= idle.max(1) + 1,
                    "{expires} of {idle}: it goes once it is idle"
                );
            }
        }
        assert!(later > 100 && promised > 100, "{later} {promised}");
    }
}
