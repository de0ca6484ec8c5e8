//! The JSON Schema of the whole file, for editors: [`schema`].

use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::fields::{Fields, set};
use crate::registry::Registry;
use crate::tables::{
    BatcherTable, BreakerTable, DeduplicateTable, HostTable, LimitsTable, PipelineTable, ProcessorTable,
    RateLimitTable, RetryTable, SequenceTable, SupervisorTable,
};

/// The JSON Schema (draft 2020-12) of a file that uses this registry.
///
/// Every key is in it, with its description and default: those of the registered connectors by their `type`,
/// those of the handlers by `handler`, and those that this build does not honour yet, which say so.
///
/// ```
/// let schema = millstream_config::schema(&millstream_config::Registry::new());
/// let host = &schema["properties"]["host"]["properties"];
/// assert_eq!(host["shutdown_timeout"]["default"], "25s");
/// ```
pub fn schema(registry: &Registry) -> Value {
    let sources = registry
        .sources
        .iter()
        .map(|(name, kind)| typed(name, kind.fields().schema()));
    let sinks = registry
        .sinks
        .iter()
        .map(|(name, kind)| typed(name, kind.fields().schema()));
    let stores = registry
        .stores
        .iter()
        .map(|(name, kind)| typed(name, kind.fields().schema()));
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Millstream",
        "description": "Pipelines that consume messages, and the host that runs them.",
        "type": "object",
        "properties": {
            "host": table::<HostTable>(),
            "pipelines": {
                "description": "The pipelines by name.",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": { "$ref": "#/$defs/pipeline" },
            },
        },
        "required": ["pipelines"],
        "additionalProperties": false,
        "$defs": {
            "pipeline": pipeline(),
            "source": { "description": "Where messages come from.", "oneOf": sources.collect::<Vec<_>>() },
            "sink": { "description": "Where messages go.", "oneOf": sinks.collect::<Vec<_>>() },
            "store": { "description": "What remembers. Absent: the process does.", "oneOf": stores.collect::<Vec<_>>() },
            "processor": processor(registry),
            "batcher": batcher(),
        },
    });
    schema.sort_all_objects();
    schema
}

/// A table of the reference.
fn table<T: JsonSchema>() -> Value {
    let mut schema = Fields::of::<T>().schema().clone();
    if let Some(root) = schema.as_object_mut() {
        root.remove("default");
    }
    schema
}

fn pipeline() -> Value {
    let mut schema = table::<PipelineTable>();
    add(
        &mut schema,
        json!({
            "limits": table::<LimitsTable>(),
            "source": { "$ref": "#/$defs/source" },
            "processor": { "$ref": "#/$defs/processor" },
            "batchers": {
                "description": "The batchers of the flow by name.",
                "type": "object",
                "additionalProperties": { "$ref": "#/$defs/batcher" },
            },
            "retry": table::<RetryTable>(),
            "dead_letter": {
                "description": "Where messages go that are given up. Absent: the source keeps them, if it can.",
                "anyOf": [{ "enum": ["discard", "halt"] }, { "$ref": "#/$defs/sink" }],
            },
            "rate_limit": with_store::<RateLimitTable>(),
            "breaker": table::<BreakerTable>(),
            "dependencies": {
                "description": "What handlers call by name, each with a breaker: open, it pauses the source too.",
                "type": "object",
                "additionalProperties": table::<BreakerTable>(),
            },
            "supervisor": table::<SupervisorTable>(),
            "deduplicate": with_store::<DeduplicateTable>(),
            "sequence": table::<SequenceTable>(),
        }),
    );
    describe(
        &mut schema,
        "One source, what runs on its messages, and the policies between.",
    );
    require(&mut schema, "source");
    schema
}

/// A table of the reference that names a store.
fn with_store<T: JsonSchema>() -> Value {
    let mut schema = table::<T>();
    add(&mut schema, json!({ "store": { "$ref": "#/$defs/store" } }));
    schema
}

fn batcher() -> Value {
    let mut schema = table::<BatcherTable>();
    add(&mut schema, json!({ "sink": { "$ref": "#/$defs/sink" } }));
    schema
}

/// The processor's table: one form for each handler with keys of its own, and one for all that have none.
fn processor(registry: &Registry) -> Value {
    let common = table::<ProcessorTable>();
    let mut plain = Vec::new();
    let mut forms = Vec::new();
    for (name, kind) in &registry.handlers {
        let fields = kind.fields();
        if fields.names().next().is_none() {
            plain.push(name);
            continue;
        }
        let mut form = common.clone();
        add(
            &mut form,
            fields
                .property(&[])
                .and_then(|own| own.get("properties"))
                .cloned()
                .unwrap_or_default(),
        );
        add(&mut form, json!({ "handler": { "const": name } }));
        require(&mut form, "handler");
        for key in fields.required() {
            require(&mut form, key);
        }
        if let Some(description) = fields.schema().get("description").and_then(Value::as_str) {
            describe(&mut form, description);
        }
        forms.push(form);
    }
    let mut form = common;
    if let Some(handler) = form.get_mut("properties").and_then(|all| all.get_mut("handler")) {
        set(handler, "enum", json!(plain));
    }
    forms.insert(0, form);
    json!({ "oneOf": forms })
}

/// A connector's table with its `type`.
fn typed(name: &str, settings: &Value) -> Value {
    let mut schema = settings.clone();
    if schema.get("properties").is_none() {
        set(&mut schema, "properties", json!({}));
    }
    add(&mut schema, json!({ "type": { "const": name } }));
    if schema.get("additionalProperties").is_none() {
        set(&mut schema, "additionalProperties", json!(false));
    }
    require(&mut schema, "type");
    schema
}

fn add(schema: &mut Value, properties: Value) {
    if let (Some(all), Value::Object(more)) = (
        schema.get_mut("properties").and_then(Value::as_object_mut),
        properties,
    ) {
        all.extend(more);
    }
}

fn require(schema: &mut Value, key: &str) {
    match schema.get_mut("required").and_then(Value::as_array_mut) {
        Some(required) => required.push(key.into()),
        None => set(schema, "required", json!([key])),
    }
}

fn describe(schema: &mut Value, description: &str) {
    set(schema, "description", description.into());
}
