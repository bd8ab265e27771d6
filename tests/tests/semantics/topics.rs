//! Entities that subscribe to a topic hear each message once, in order, whenever the node ends.

use stead::{
    stock::{Published, Topic},
    testing::{CommitFaults, NodeTest, TestNode},
};

use super::*;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Order {
    sku: String,
    pieces: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Clerk {
    heard: Vec<(String, u64, Order)>,
}

#[entity(name = "clerk")]
impl Clerk {
    pub fn join(&mut self, ctx: &mut Context, topics: Vec<String>) {
        for topic in topics {
            ctx.subscribe(&topic, "hear");
        }
    }

    pub fn retire(&mut self, ctx: &mut Context) {
        ctx.unsubscribe("orders", "hear");
        ctx.delete();
    }

    pub(crate) fn hear(&mut self, news: Published<Order>) {
        self.heard.push((news.topic, news.number, news.message));
    }
}

fn order(pieces: u32) -> Order {
    Order { sku: "bolts".into(), pieces }
}

fn json(order: &Order) -> serde_json::Value {
    serde_json::to_value(order).expect("JSON")
}

#[test]
fn a_message_is_heard_once_by_each_subscriber_whenever_the_node_ends() {
    let story = async |node: TestNode| {
        for clerk in ["ann", "ben", "cem"] {
            let topics = vec!["orders".into(), "returns".into()];
            node.entity::<Clerk>(clerk).join(topics).await.expect("joined");
        }
        node.assert_settles().await;
        for pieces in [1, 2] {
            let topic = node.entity::<Topic>("orders");
            topic.publish(json(&order(pieces))).await.expect("published");
        }
        node.assert_settles().await;
        node.entity::<Clerk>("cem").retire().await.expect("retired");
        node.assert_settles().await;
        node.entity::<Topic>("orders").publish(json(&order(3))).await.expect("published");
        node.entity::<Topic>("returns").publish(json(&order(9))).await.expect("published");
        node.assert_settles().await;
        for clerk in ["ann", "ben"] {
            let heard = node.state::<Clerk>(clerk).await.expect("read").heard;
            let of = |topic: &str| -> Vec<_> {
                let of = heard.iter().filter(|(from, ..)| from == topic);
                of.map(|(_, number, order)| (*number, order.pieces)).collect()
            };
            assert_eq!(of("orders"), [(1, 1), (2, 2), (3, 3)], "{clerk}");
            assert_eq!(of("returns"), [(1, 9)], "{clerk}");
        }
        // A message brings back who has not unsubscribed.
        assert_eq!(node.state::<Clerk>("cem").await.expect("read").heard.len(), 1);
        node.assert_no_dead_letters().await;
    };
    let test = NodeTest::new().entity::<Topic>().entity::<Clerk>();
    test.crash_everywhere(story);
    let mut faults = CommitFaults::default();
    (faults.refused, faults.answer_lost) = (0.1, 0.1);
    (faults.crash_before, faults.crash_after) = (0.1, 0.1);
    test.faults(faults).run_seeds(0..40, story);
}

#[test]
fn a_message_to_more_than_one_turn_can_tell_reaches_all_of_them() {
    let test = NodeTest::new().entity::<Topic>().entity::<Clerk>();
    let mut faults = CommitFaults::default();
    (faults.crash_before, faults.crash_after) = (0.02, 0.02);
    test.faults(faults).run_seeds(0..4, async |node: TestNode| {
        for clerk in 0..620 {
            let clerk = node.entity::<Clerk>(format!("c{clerk}"));
            clerk.join(vec!["orders".into()]).signal().await.expect("sent");
        }
        node.assert_settles().await;
        for pieces in 1..=3 {
            let topic = node.entity::<Topic>("orders");
            topic.publish(json(&order(pieces))).await.expect("published");
        }
        node.assert_settles().await;
        for clerk in 0..620 {
            let heard = node.state::<Clerk>(format!("c{clerk}")).await.expect("read").heard;
            let numbers: Vec<_> = heard.iter().map(|(_, number, _)| *number).collect();
            assert_eq!(numbers, [1, 2, 3], "c{clerk}");
        }
    });
}
