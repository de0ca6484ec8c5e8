//! The schema has every key, and says what parsing does.

use millstream_config::schema;
use serde_json::Value;

use super::support::registry;

#[test]
fn the_schema_of_a_registry_is_this() {
    insta::assert_snapshot!(
        "schema",
        serde_json::to_string_pretty(&schema(&registry())).unwrap()
    );
}

/// Below `schema`, the properties of the table at this path; references are followed, and of several forms the
/// one that has the next key is taken.
fn has(root: &Value, schema: &Value, path: &[&str]) -> bool {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        return has(
            root,
            root.pointer(name.trim_start_matches('#')).expect("a definition"),
            path,
        );
    }
    let Some((key, rest)) = path.split_first() else {
        return true;
    };
    let below =
        schema
            .get("properties")
            .and_then(|all| all.get(*key))
            .or(match schema.get("additionalProperties") {
                Some(Value::Object(_)) => schema.get("additionalProperties"),
                _ => None,
            });
    let forms = ["oneOf", "anyOf"]
        .into_iter()
        .filter_map(|word| schema.get(word)?.as_array())
        .flatten();
    below.is_some_and(|below| has(root, below, rest)) || forms.into_iter().any(|form| has(root, form, path))
}

#[test]
fn every_key_of_the_reference_is_in_it() {
    let schema = schema(&registry());
    for (table, keys) in [
        ("host", "listen shutdown_timeout log log_format"),
        (
            "pipelines.x",
            "ordering order_by limits source processor batchers retry dead_letter rate_limit breaker dependencies supervisor",
        ),
        ("pipelines.x.limits", "in_flight bytes per_key per_batcher"),
        ("pipelines.x.source", "type path queue lease url"),
        (
            "pipelines.x.processor",
            "handler concurrency max_demand timeout url",
        ),
        (
            "pipelines.x.batchers.y",
            "size bytes max_age timeout concurrency bisect sink",
        ),
        ("pipelines.x.batchers.y.sink", "type path queue"),
        (
            "pipelines.x.retry",
            "attempts max_deliveries backoff factor max_backoff jitter max_age budget strategy",
        ),
        ("pipelines.x.dead_letter", "type path queue"),
        (
            "pipelines.x.rate_limit",
            "messages per burst key weights store on_store_failure",
        ),
        ("pipelines.x.rate_limit.store", "type path"),
        (
            "pipelines.x.breaker",
            "failure_rate slow_after slow_rate window minimum open_for probes",
        ),
        (
            "pipelines.x.dependencies.y",
            "failure_rate slow_after slow_rate window minimum open_for probes",
        ),
        (
            "pipelines.x.supervisor",
            "max_restarts within on_give_up backoff factor max_backoff jitter stall_after",
        ),
        (
            "pipelines.x.deduplicate",
            "by window max_entries on_store_failure store",
        ),
        ("pipelines.x.deduplicate.store", "type path"),
        ("pipelines.x.sequence", "by on_gap held wait"),
    ] {
        for key in keys.split(' ') {
            let path: Vec<_> = table.split('.').chain([key]).collect();
            assert!(has(&schema, &schema, &path), "{}", path.join("."));
        }
    }
    assert!(!has(&schema, &schema, &["host", "nonsense"]));
}

#[test]
fn every_property_is_described() {
    fn walk(schema: &Value, path: &str) {
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let path = format!("{path}.{name}");
            let told = ["description", "$ref", "const"]
                .iter()
                .any(|word| property.get(word).is_some());
            assert!(told, "{path}");
            walk(property, &path);
        }
        for word in ["additionalProperties", "items"] {
            schema.get(word).into_iter().for_each(|below| walk(below, path));
        }
        for form in ["oneOf", "anyOf"]
            .iter()
            .filter_map(|word| schema.get(word)?.as_array())
            .flatten()
        {
            walk(form, path);
        }
        for (name, definition) in schema
            .get("$defs")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            walk(definition, name);
        }
    }
    walk(&schema(&registry()), "");
}

#[test]
fn a_duration_may_be_a_variable() {
    let schema = schema(&registry());
    let pattern = schema
        .pointer("/properties/host/properties/shutdown_timeout/pattern")
        .unwrap();
    assert_eq!(pattern, r"^([0-9]+(ms|s|m|h)|.*\$\{.+\}.*)$");
}
