//! What `--filter` may say: [`Filter`].

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use millstream_config::HumanDuration;
use millstream_core::Letter;

/// A condition on letters.
///
/// `FIELD=VALUE` or `FIELD!=VALUE`, where the field is `reason`, `stage`, `pipeline`, `origin`, `id` or `header:NAME`;
/// `age>TIME` or `age<TIME`, since the letter was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// It was given up longer ago than this.
    Older(Duration),
    /// It was given up less long ago than this.
    Newer(Duration),
    /// What it says is this, or is not.
    Says { field: Field, value: String, is: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// A header of its failure, by its name without `millstream-`.
    Failure(&'static str),
    Id,
    Header(String),
}

const FORM: &str = "write FIELD=VALUE or FIELD!=VALUE with reason, stage, pipeline, origin, id or header:NAME, or \
                    age>TIME or age<TIME";

impl Filter {
    /// Whether a letter meets it.
    pub(super) fn meets(&self, letter: &Letter, now: SystemTime) -> bool {
        let age = || {
            letter
                .failed_at()
                .map(|at| now.duration_since(at).unwrap_or_default())
        };
        match self {
            Self::Older(time) => age().is_some_and(|age| age > *time),
            Self::Newer(time) => age().is_some_and(|age| age < *time),
            Self::Says { field, value, is } => {
                let said = match field {
                    Field::Failure(name) => letter.says(name),
                    Field::Id => Some(&*letter.id),
                    Field::Header(name) => letter.headers.get(name),
                };
                (said == Some(value)) == *is
            }
        }
    }

    /// Whether it is about the pipeline that gave letters up.
    pub(super) fn is_of_pipeline(&self) -> bool {
        matches!(
            self,
            Self::Says {
                field: Field::Failure("pipeline"),
                ..
            }
        )
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = |text: &str| {
            text.trim()
                .parse::<HumanDuration>()
                .map(HumanDuration::get)
                .map_err(|invalid| format!("{}; {}", invalid.message(), invalid.help()))
        };
        if let Some(rest) = text.trim_start().strip_prefix("age") {
            let rest = rest.trim_start();
            return if let Some(time) = rest.strip_prefix('>') {
                Ok(Self::Older(duration(time)?))
            } else if let Some(time) = rest.strip_prefix('<') {
                Ok(Self::Newer(duration(time)?))
            } else {
                Err(FORM.to_owned())
            };
        }
        let (field, value) = text.split_once('=').ok_or(FORM)?;
        let (field, is) = match field.strip_suffix('!') {
            Some(field) => (field, false),
            None => (field, true),
        };
        let field = match field.trim() {
            "reason" => Field::Failure("reason"),
            "stage" => Field::Failure("stage"),
            "pipeline" => Field::Failure("pipeline"),
            "origin" => Field::Failure("origin"),
            "id" => Field::Id,
            other => match other.strip_prefix("header:").filter(|name| !name.is_empty()) {
                Some(name) => Field::Header(name.to_owned()),
                None => return Err(FORM.to_owned()),
            },
        };
        Ok(Self::Says {
            field,
            value: value.to_owned(),
            is,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Letter {
        let headers = [
            ("tenant", "a=b"),
            ("millstream-reason", "decode"),
            ("millstream-pipeline", "orders"),
            ("millstream-failed-at", "1000"),
        ];
        Letter {
            id: "7".to_owned(),
            headers: headers.into_iter().collect(),
            ..Letter::default()
        }
    }

    #[test]
    fn a_letter_meets_what_is_so() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(61);
        for (filter, meets) in [
            ("reason=decode", true),
            ("reason=attempts", false),
            ("reason!=attempts", true),
            ("id=7", true),
            ("pipeline=orders", true),
            ("header:tenant=a=b", true),
            ("header:tenant!=a=b", false),
            ("header:absent!=x", true),
            ("header:absent=x", false),
            ("age>59s", true),
            ("age > 1m", false),
            ("age<2m", true),
            ("age<1m", false),
        ] {
            let parsed: Filter = filter.parse().unwrap();
            assert_eq!(parsed.meets(&letter(), now), meets, "{filter}");
        }
    }

    #[test]
    fn a_letter_of_unknown_age_has_none() {
        for filter in ["age>0s", "age<1h"] {
            let filter: Filter = filter.parse().unwrap();
            assert!(!filter.meets(&Letter::default(), SystemTime::now()));
        }
    }

    #[test]
    fn what_is_no_filter_is_told() {
        for text in [
            "",
            "reason",
            "age=1h",
            "age",
            "colour=red",
            "header:=x",
            "reason>x",
        ] {
            assert_eq!(text.parse::<Filter>(), Err(FORM.to_owned()), "{text}");
        }
        assert!("age>5".parse::<Filter>().unwrap_err().contains("lacks a unit"));
    }
}
