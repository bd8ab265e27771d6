//! Workflows on a node: whatever crashes, a run goes on where it was, its steps come to one outcome each, and what it
//! asks of entities is applied once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use stead::{
    Failure,
    testing::{CommitFaults, NodeTest, TestNode},
    workflow::{Of2, Status, StatusView, Step, StepError, StepType, Workflow, WorkflowType},
};

use super::*;

/// An outside service: what steps asked of it, by token.
#[derive(Default)]
struct Outside {
    by_token: Mutex<BTreeMap<String, Vec<u32>>>,
}

impl Outside {
    fn note(&self, token: String, attempt: u32) {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        by_token.entry(token).or_default().push(attempt);
    }
}

/// A tour: steps one behind the other and side by side, a call, a timer, an event.
#[derive(Default)]
struct Tours {
    outside: Outside,
}

impl Tours {
    async fn visit(&self, step: &Step, place: u32) -> Result<u32, StepError> {
        self.outside.note(step.token(), step.attempt());
        tokio::time::sleep(Duration::from_millis(u64::from(place) * 20)).await;
        if place == 2 && step.attempt() == 1 {
            return Err(StepError::new("closed"));
        }
        Ok(place * 10)
    }
}

impl WorkflowType for Tours {
    const NAME: &'static str = "tour";
    type Input = u32;
    type Output = u32;

    async fn run(ctx: Workflow<Self>, first: u32) -> Result<u32, Failure> {
        let mut sum: u32 = ctx.method("visit", &first).await?;
        let visits = (2..5).map(|place| ctx.method::<u32, _>("visit", &place));
        sum += ctx.try_all(visits).await?.into_iter().sum::<u32>();
        let counted = ctx.entity::<Counter>("tours").add(1).await?;
        ctx.set_status(&counted);
        ctx.sleep(Duration::from_secs(3_600)).await?;
        let waited =
            ctx.race((ctx.event::<u32>("bonus"), ctx.sleep(Duration::from_secs(60)))).await;
        Ok(sum
            + match waited {
                Of2::First(bonus) => bonus?,
                Of2::Second(_) => 1,
            })
    }

    fn steps() -> Vec<StepType<Self>> {
        vec![StepType::new("visit", |tours: Arc<Self>, step: Step, place: u32| async move {
            tours.visit(&step, place).await
        })]
    }
}

async fn status(node: &TestNode, key: &str) -> StatusView<u32> {
    node.workflow::<Tours>(key).status().await.expect("a status")
}

async fn tour(node: TestNode) {
    let tour = node.workflow::<Tours>("a");
    tour.start(1).await.expect("started");
    node.advance(Duration::from_secs(30)).await;
    let before = status(&node, "a").await;
    assert_eq!(before.status, Some(Status::Running), "{before:?}");
    assert_eq!(before.custom_status, 1);
    tour.event("bonus", &500).await.expect("kept");
    node.advance(Duration::from_secs(3_600)).await;
    let after = status(&node, "a").await;
    assert_eq!((after.status, after.output), (Some(Status::Completed), Some(600)), "{after:?}");
    assert_eq!(node.entity::<Counter>("tours").value().await.expect("read"), 1);
    node.assert_no_dead_letters().await;
    let outside = node.dependency::<Tours>();
    let by_token = outside.outside.by_token.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(by_token.len(), 4, "one token for each step: {by_token:?}");
}

fn tours() -> NodeTest {
    NodeTest::new().entity::<Counter>().workflow(Tours::default)
}

#[test]
fn a_workflow_runs_to_its_end() {
    tours().run(tour);
}

#[test]
fn a_workflow_runs_to_its_end_with_a_crash_before_and_behind_every_commit() {
    tours().crash_everywhere(tour);
}

#[test]
fn a_workflow_runs_to_its_end_with_faults_by_seed() {
    let faults = CommitFaults::usual();
    tours().faults(faults).run_seeds(0..30, tour);
}

#[tokio::test]
async fn a_step_begins_when_its_turn_is_durable() {
    let world = World::new();
    let tours = Arc::new(Mutex::new(Vec::new()));
    let node = world.start_with(|builder| builder.workflow(Visits(tours.clone()))).await;
    world.disk.stall();
    let visit = node.workflow::<Visits>("a");
    let started = tokio::spawn(visit.start(1).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = || tours.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(begun().is_empty() && !started.is_finished(), "nothing of it is durable");
    world.disk.resume();
    assert!(started.await.expect("joined").expect("started").is_new);
    until_true("the step runs", async || begun() == [1]).await;
}

/// Notes the steps that begin.
struct Visits(Arc<Mutex<Vec<u32>>>);

impl WorkflowType for Visits {
    const NAME: &'static str = "visits";
    type Input = u32;
    type Output = ();

    async fn run(ctx: Workflow<Self>, place: u32) -> Result<(), Failure> {
        ctx.step("visit", move |visits| async move {
            visits.0.lock().unwrap_or_else(PoisonError::into_inner).push(place);
            Ok(())
        })
        .await
    }
}
