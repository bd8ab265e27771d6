//! Events of workflows on a node, more of them than there is room for: signals wait in their order, whatever crashes.

use stead::{
    Failure,
    testing::{CommitFaults, NodeTest, TestNode},
    workflow,
    workflow::{Status, Workflow},
};

use super::*;

/// Counts numbers, in run after run, and wants each in the place of its own.
struct Counts;

#[workflow(name = "count", events(number: u32))]
impl Counts {
    pub async fn run(ctx: Workflow<Self>, from: u32, upto: u32) -> Result<u32, Failure> {
        for expected in from..upto {
            let number = ctx.number().await?;
            if number != expected {
                return Err(Failure::Failed(format!("{number} came in the place of {expected}")));
            }
            if number % 1_000 == 999 {
                return ctx.continue_as((number + 1, upto).into()).await;
            }
        }
        Ok(upto)
    }
}

/// Sends numbers to a count.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Source {
    next: u32,
}

#[entity(name = "source")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Source {
    pub fn send(&mut self, ctx: &mut Context, count: u32) {
        for _ in 0..count {
            ctx.signal(Counts::of("c").number(self.next));
            self.next += 1;
        }
    }
}

const ALL: u32 = 6_500;

async fn more_than_there_is_room_for(node: TestNode) {
    let count = node.workflow::<Counts>("c");
    count.start(0, ALL).await.expect("started");
    count.suspend("for a while").await.expect("suspended");
    for _ in 0..10 {
        node.entity::<Source>("s").send(500).await.expect("sent");
    }
    node.advance(Duration::from_secs(60)).await;
    assert_eq!(count.status().await.expect("a status").waiting_events, 5_000);
    count.number(0).await.expect_err("there is no room for who hears of it");
    count.resume().await.expect("resumed");
    for _ in 0..3 {
        // While those are read that came before.
        node.entity::<Source>("s").send(500).await.expect("sent");
    }
    node.advance(Duration::from_secs(600)).await;
    while count.status().await.expect("a status").stuck.is_some() {
        // Its process ended during three attempts of one turn.
        count.retry().await.expect("tried again");
        node.advance(Duration::from_secs(600)).await;
    }
    let status = count.status().await.expect("a status");
    assert_eq!((status.status, status.output), (Some(Status::Completed), Some(ALL)), "{status:?}");
    node.assert_no_dead_letters().await;
}

fn counts() -> NodeTest {
    NodeTest::new().entity::<Source>().workflow(|| Counts)
}

#[test]
fn events_of_signals_wait_for_room_in_their_order() {
    counts().run(more_than_there_is_room_for);
}

#[test]
fn events_of_signals_wait_for_room_through_faults_by_seed() {
    counts().faults(CommitFaults::usual()).run_seeds(0..3, more_than_there_is_room_for);
}
