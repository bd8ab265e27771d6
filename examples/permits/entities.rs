//! The entities: a permit records what happened and tells its clerk and its activity.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Context, Layout, entity};

/// The history of one application, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Permit {
    pub events: Vec<Event>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Event {
    pub activity: String,
    pub resource: String,
}

#[entity(name = "permit")]
impl Permit {
    /// Records an event and tells the clerk and the activity.
    pub fn record(&mut self, ctx: &mut Context, event: Event) {
        ctx.signal(Clerk::of(&event.resource).handled(event.activity.clone()));
        ctx.signal(Activity::of(&event.activity).done_by(event.resource.clone()));
        self.events.push(event);
    }
}

/// The work of one person, by activity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Clerk {
    pub handled: BTreeMap<String, u64>,
}

#[entity(name = "clerk")]
impl Clerk {
    /// Counts an activity.
    pub(crate) fn handled(&mut self, activity: String) {
        *self.handled.entry(activity).or_default() += 1;
    }
}

/// The people who did one activity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Activity {
    pub done_by: BTreeMap<String, u64>,
}

#[entity(name = "activity")]
impl Activity {
    /// Counts a person.
    pub(crate) fn done_by(&mut self, resource: String) {
        *self.done_by.entry(resource).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use stead::testing::{CommitFaults, NodeTest};

    use super::*;

    #[test]
    fn every_event_is_counted_once_whatever_goes_wrong() {
        let test = NodeTest::new().entity::<Permit>().entity::<Clerk>().entity::<Activity>();
        test.faults(CommitFaults::usual()).run_seeds(0..20, async |node| {
            for number in 0..12 {
                let activity = format!("activity {}", number % 3);
                let event = Event { activity, resource: "kim".into() };
                node.entity::<Permit>(format!("{}", number % 4)).record(event).await.unwrap();
            }
            node.assert_settles().await;
            let kim = node.state::<Clerk>("kim").await.unwrap();
            assert_eq!(kim.handled.values().collect::<Vec<_>>(), [&4; 3]);
            assert_eq!(node.state::<Activity>("activity 1").await.unwrap().done_by["kim"], 4);
        });
    }
}
