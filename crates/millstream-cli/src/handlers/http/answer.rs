//! What an answer means for its message.
//!
//! 2xx is done. 408, 425, 429 and 5xx are tried again, not before what `Retry-After` says, up to a day. Everything
//! else is rejected: other 4xx, because the message is at fault, and redirects, which are not followed.

use std::time::{Duration, SystemTime};

use millstream_core::Failure;
use reqwest::StatusCode;

/// The longest wait that a server may ask for.
const LONGEST: Duration = Duration::from_hours(24);

/// The fate of a message by the answer's status and `Retry-After`; `place` is where it came from.
pub(super) fn judge(
    status: StatusCode,
    retry_after: Option<&str>,
    place: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let text = format!("{place} answered {status}");
    if !(status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)) {
        return Err(Failure::reject(text));
    }
    Err(match retry_after.and_then(|value| wait(value, now)) {
        Some(after) => Failure::retry_after(after, text),
        None => Failure::retry(text),
    })
}

/// `Retry-After` is a number of seconds or a date.
fn wait(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, retry_after: Option<&str>) -> Result<(), Failure> {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        judge(
            StatusCode::from_u16(status).unwrap(),
            retry_after,
            "http://h/",
            now,
        )
    }

    #[test]
    fn a_status_is_done_retried_or_rejected() {
        for status in [200, 201, 202, 204] {
            assert!(judged(status, None).is_ok());
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert!(!judged(status, None).unwrap_err().is_reject(), "{status}");
        }
        for status in [301, 302, 304, 307, 308, 400, 401, 403, 404, 409, 413, 422, 431] {
            assert!(judged(status, None).unwrap_err().is_reject(), "{status}");
        }
    }

    #[test]
    fn the_server_says_when_to_try_again() {
        let after = |value| judged(503, Some(value)).unwrap_err().after();
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            after("Wed, 21 Oct 2015 07:28:30 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(after("Wed, 21 Oct 2015 07:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("18446744073709551615"), Some(LONGEST));
        assert_eq!(after("soon"), None);
        assert_eq!(judged(400, Some("120")).unwrap_err().after(), None);
    }
}
