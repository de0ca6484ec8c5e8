//! "Did you mean": the nearest of the names that would have been right.

/// The name that was probably meant, if any is near enough.
pub(crate) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |name: &&str| {
        let distance = strsim::damerau_levenshtein(&wrong.to_lowercase(), &name.to_lowercase());
        (distance <= wrong.chars().count().max(name.chars().count()).div_ceil(3)).then_some(distance)
    };
    names
        .into_iter()
        .filter_map(|name| Some((near(&name)?, name)))
        .min()
        .map(|(_, name)| name)
}

/// The remedy for a wrong name: the nearest, or else all of them after `intro`.
pub(crate) fn help(wrong: &str, names: &[&str], intro: &str) -> String {
    match nearest(wrong, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if names.is_empty() => format!("{intro}: none"),
        None => format!("{intro}: {}", list(names)),
    }
}

/// `a`, `b`, `c`
pub(crate) fn list(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let names = ["concurrency", "timeout", "max_demand"];
        assert_eq!(nearest("conurrency", names), Some("concurrency"));
        assert_eq!(nearest("Timeout", names), Some("timeout"));
        assert_eq!(nearest("retries", names), None);
    }
}
