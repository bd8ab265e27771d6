//! Reminders by cron expression: due by the clocks of their zone, once where clocks are set back, and caught
//! up as they say.

use stead::{Cron, Missed};

use super::*;

/// Notes when it was rung.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Bell {
    rung: Vec<Timestamp>,
}

#[entity(name = "bell")]
impl Bell {
    pub fn set(&mut self, ctx: &mut Context, expression: String, zone: String, missed: String) {
        let missed = match &*missed {
            "all" => Missed::All,
            "none" => Missed::None,
            _ => Missed::Once,
        };
        let ring = Self::of(ctx.key()).ring("loudly".into());
        ctx.remind("cron", Cron::new(expression, zone).missed(missed), ring);
    }

    pub fn set_interval(&mut self, ctx: &mut Context) {
        let ring = Self::of(ctx.key()).ring("softly".into());
        ctx.remind("every", Every(Duration::from_secs(3_600)).missed(Missed::All), ring);
    }

    pub(crate) fn ring(&mut self, ctx: &mut Context, _how: String) {
        self.rung.push(ctx.now());
    }

    pub fn rung(&self) -> Vec<String> {
        self.rung.iter().map(ToString::to_string).collect()
    }
}

/// Starts at a moment.
async fn start(world: &World, moment: &str) -> Node {
    world.clock.advance_to(moment.parse().expect("a time"));
    let store = world.disk.open().expect("readable");
    let builder = Node::builder().store(store).config(world.config.clone());
    builder.clock(world.clock.clone()).entity::<Bell>().start().await.expect("starts")
}

/// Passes so many hours, one at a time.
async fn pass(world: &World, node: &Node, key: &str, hours: u32) {
    for _ in 0..hours {
        world.advance(3_600);
        // Each touches the entity, so that its partition looks at the clock.
        for _ in 0..3 {
            node.entity::<Bell>(key).rung().await.expect("a query");
        }
    }
}

async fn expect_rung(node: &Node, key: &str, expected: &[&str]) {
    let rung = async || node.entity::<Bell>(key).rung().await.expect("a query") == expected;
    until_true(&format!("{key} was rung at {expected:?}"), rung).await;
}

async fn set(node: &Node, key: &str, expression: &str, missed: &str) -> Result<(), CallError> {
    let bell = node.entity::<Bell>(key);
    bell.set(expression.into(), "Europe/Berlin".into(), missed.into()).await
}

#[tokio::test]
async fn a_time_of_day_that_comes_twice_or_never_is_due_once() {
    let world = World::new();
    let node = start(&world, "2026-10-24T12:00:00Z").await;
    set(&node, "a", "30 2 * * *", "all").await.expect("applied");
    pass(&world, &node, "a", 36).await;
    world.advance(1_800);
    // Half past two in summer time, and not once more in winter time.
    expect_rung(&node, "a", &["2026-10-25T01:00:00Z"]).await;
    node.abort().await;
    let node = start(&world, "2027-03-27T12:00:00Z").await;
    set(&node, "b", "30 2 * * *", "once").await.expect("applied");
    pass(&world, &node, "b", 24).await;
    // There is no half past two, and three o'clock is its end.
    expect_rung(&node, "b", &["2027-03-28T01:00:00Z"]).await;
    node.abort().await;
}

#[tokio::test]
async fn what_is_missed_in_a_downtime_is_caught_up_once_in_full_or_not_at_all() {
    let world = World::new();
    let node = start(&world, "2026-06-01T00:00:00Z").await;
    for missed in ["once", "all", "none"] {
        set(&node, missed, "0 9 * * *", missed).await.expect("applied");
    }
    node.entity::<Bell>("every").set_interval().await.expect("applied");
    node.abort().await;
    world.disk.crash();
    let node = start(&world, "2026-06-03T12:00:00Z").await;
    let now = "2026-06-03T12:00:00Z";
    expect_rung(&node, "once", &[now]).await;
    expect_rung(&node, "all", &[now; 3]).await;
    expect_rung(&node, "every", &[now; 60]).await;
    expect_rung(&node, "none", &[]).await;
    for key in ["once", "all", "none"] {
        let id = EntityId::new("bell", key).expect("valid");
        let listed = node.reminders(&id, None, 10).await.expect("a list").rows;
        let due: Vec<_> = listed.iter().map(|it| it.due.to_string()).collect();
        assert_eq!(due, ["2026-06-04T07:00:00Z"], "{key}");
    }
    world.advance(19 * 3_600);
    expect_rung(&node, "none", &["2026-06-04T07:00:00Z"]).await;
    node.abort().await;
}

#[tokio::test]
async fn what_is_due_and_what_it_will_do_is_shown() {
    let world = World::new();
    let node = start(&world, "2026-10-23T12:00:00Z").await;
    set(&node, "a", "0 9 * * MON-FRI", "none").await.expect("applied");
    let id = EntityId::new("bell", "a").expect("valid");
    let listed = node.reminders(&id, None, 10).await.expect("a list").rows;
    let shown = serde_json::to_value(&listed[0]).expect("JSON");
    assert_eq!(shown["cron"]["expression"], "0 9 * * MON-FRI");
    assert_eq!(shown["cron"]["local"], "2026-10-26T09:00:00+01:00[Europe/Berlin]");
    assert_eq!((&shown["missed"], &shown["operation"]), (&"none".into(), &"ring".into()));
    assert_eq!(
        (&shown["input"], &shown["next"][4]),
        (&"loudly".into(), &"2026-11-02T08:00:00Z".into())
    );
    node.abort().await;
}

#[tokio::test]
async fn an_expression_or_a_zone_that_does_not_exist_fails_the_turn_with_the_place() {
    let world = World::new();
    let node = start(&world, "2026-06-01T00:00:00Z").await;
    let refused = async |expression: &str, zone: &str| {
        let bell = node.entity::<Bell>("a");
        let told = bell.set(expression.into(), zone.into(), "once".into()).await;
        match told.expect_err("no schedule") {
            CallError::Failed(error) => error.message().to_owned(),
            CallError::Rejected(no) => panic!("{no}"),
        }
    };
    let why = refused("0 25 * * *", "UTC").await;
    assert!(why.contains("\"cron\"") && why.contains("field 2, the hour, \"25\""), "{why}");
    let why = refused("0 9 * * *", "Atlantis").await;
    assert!(why.contains("no time zone \"Atlantis\""), "{why}");
    node.abort().await;
}
