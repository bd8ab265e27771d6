//! The history of a workflow as the events that the clients know.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{call::function_name, document::Instance};

/// The events of these turns.
pub(super) fn events(instance: &Instance, turns: &[Value], shows_output: bool) -> Vec<Value> {
    let mut events = Vec::new();
    let mut begun: HashMap<&str, (&Value, &Value)> = HashMap::new();
    for turn in turns {
        for delivery in turn["deliveries"].as_array().into_iter().flatten() {
            let mut event = match delivery.as_object().and_then(|it| it.iter().next()) {
                Some((kind, _)) if kind == "Start" => json!({
                    "EventType": "ExecutionStarted",
                    "FunctionName": function_name(instance.id.entity_type()),
                }),
                Some((_, done)) => {
                    let began = done[0].as_str().and_then(|place| begun.get(place));
                    let Some((operation, since)) = began else { continue };
                    ended(operation, since, &done[1], shows_output)
                }
                None => continue,
            };
            event["Timestamp"] = turn["at"].clone();
            events.push(event);
        }
        for operation in turn["begun"].as_array().into_iter().flatten() {
            let place = operation["place"].as_str().unwrap_or_default();
            begun.insert(place, (operation, &turn["at"]));
        }
    }
    if instance.status.is_end() {
        let document = instance.document(false);
        let mut event = json!({
            "EventType": "ExecutionCompleted",
            "OrchestrationStatus": document["runtimeStatus"],
            "Timestamp": document["lastUpdatedTime"],
        });
        if shows_output {
            event["Result"] = document["output"].clone();
        }
        events.push(event);
    }
    events
}

/// The end of an operation.
fn ended(operation: &Value, since: &Value, outcome: &Value, shows_output: bool) -> Value {
    let (name, failure) = (&operation["name"], outcome.get("Err"));
    let target = operation["target"].as_str().unwrap_or_default();
    let of = target.split('/').next().unwrap_or_default();
    let mut event = match (operation["kind"].as_str().unwrap_or_default(), failure) {
        ("timer", _) => json!({ "EventType": "TimerFired", "FireAt": operation["due"] }),
        ("event", _) => json!({ "EventType": "EventRaised", "Name": name }),
        ("child", None) => json!({
            "EventType": "SubOrchestrationInstanceCompleted",
            "FunctionName": function_name(of), "ScheduledTime": since,
        }),
        ("child", Some(why)) => json!({
            "EventType": "SubOrchestrationInstanceFailed",
            "FunctionName": function_name(of), "ScheduledTime": since, "Reason": why,
        }),
        (_, None) => json!({
            "EventType": "TaskCompleted", "FunctionName": name, "ScheduledTime": since,
        }),
        (_, Some(why)) => json!({
            "EventType": "TaskFailed", "FunctionName": name, "ScheduledTime": since, "Reason": why,
        }),
    };
    if let Some(result) = outcome.get("Ok").filter(|_| shows_output) {
        event["Result"] = result.clone();
    }
    event
}
