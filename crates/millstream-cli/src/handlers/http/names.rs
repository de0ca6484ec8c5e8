//! Keys and headers of messages as HTTP headers.
//!
//! Names and values are percent-encoded where HTTP cannot carry them: in a name all that is no letter, digit or one
//! of ``!#$&'*+-.^_`|~``, in a value all that is not visible ASCII, but for spaces within it. `%` itself is always
//! encoded, so that decoding gives exactly what the message had. HTTP does not tell capital letters in names from
//! small ones.

use millstream_core::Context;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// What a request says of its message.
pub(super) fn headers(cx: &Context<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    let mut add = |name: &str, value: &[u8]| {
        // What is encoded is valid; only a name beyond all bounds is not, and it tells nobody anything.
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name.to_ascii_lowercase()),
            HeaderValue::try_from(encode_value(value)),
        ) {
            map.append(name, value);
        }
    };
    add("x-millstream-pipeline", cx.pipeline().as_bytes());
    add("x-millstream-attempt", cx.attempt().to_string().as_bytes());
    add("x-millstream-origin", cx.origin().to_string().as_bytes());
    if let Some(key) = cx.key() {
        add("x-millstream-key", key);
    }
    for (name, value) in cx.headers().iter() {
        let name = format!("x-millstream-header-{}", encode_name(name.as_bytes()));
        add(&name, value.as_bytes());
    }
    map
}

fn encode_name(name: &[u8]) -> String {
    encode(name, |_, byte| {
        byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte)
    })
}

fn encode_value(value: &[u8]) -> String {
    let last = value.len().saturating_sub(1);
    encode(value, |index, byte| {
        (byte.is_ascii_graphic() && byte != b'%') || (byte == b' ' && index != 0 && index != last)
    })
}

/// Percent-encodes all bytes but those that stay, as this says of each and its index.
fn encode(bytes: &[u8], stays: impl Fn(usize, u8) -> bool) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        if stays(index, *byte) {
            encoded.push(char::from(*byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Vec<u8> {
        let mut bytes = text.bytes();
        std::iter::from_fn(|| match bytes.next()? {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
            }
            byte => Some(byte),
        })
        .collect()
    }

    #[test]
    fn what_http_can_carry_stays_as_it_is() {
        assert_eq!(encode_name(b"content-type"), "content-type");
        assert_eq!(encode_name("größe (cm)".as_bytes()), "gr%C3%B6%C3%9Fe%20%28cm%29");
        assert_eq!(
            encode_value(b"text/plain; charset=utf-8"),
            "text/plain; charset=utf-8"
        );
        assert_eq!(encode_value(b" 100%\r\n"), "%20100%25%0D%0A");
        assert_eq!(encode_value(b" "), "%20");
    }

    proptest! {
        #[test]
        fn every_name_and_value_is_valid_and_can_be_decoded(bytes in any::<Vec<u8>>()) {
            let name = format!("x-{}", encode_name(&bytes));
            prop_assert!(HeaderName::try_from(name.as_str()).is_ok());
            prop_assert_eq!(decode(&name), [b"x-".as_slice(), &bytes].concat());
            let value = encode_value(&bytes);
            prop_assert!(HeaderValue::try_from(value.as_str()).is_ok());
            prop_assert_eq!(value.trim(), &value);
            prop_assert_eq!(decode(&value), bytes);
        }
    }
}
