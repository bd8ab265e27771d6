//! An order, written by hand as `#[workflow]` would write it: every construct at least once.

use serde::{Deserialize, Serialize};
use stead_entities::{
    Context, Failure, JsonSchema, Layout, Rejection, entity,
    testing::WorkflowDriver,
    workflow,
    workflow::{Of2, Status, Step, StepError, Workflow},
};

use super::{days, secs};

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Stock {
    pieces: u32,
}

#[entity(name = "stock")]
impl Stock {
    pub fn fill(&mut self, pieces: u32) -> u32 {
        self.pieces += pieces;
        self.pieces
    }
    pub(crate) fn reserve(&mut self, pieces: u32) -> Result<u32, Rejection> {
        self.pieces =
            self.pieces.checked_sub(pieces).ok_or_else(|| Rejection::new("too few pieces"))?;
        Ok(self.pieces)
    }
    pub fn release(&mut self, _ctx: &mut Context, pieces: u32) {
        self.pieces += pieces;
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Approval {
    by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    sku: String,
    count: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    charge: String,
    approved_by: String,
    labels: Vec<String>,
}

/// What the steps of an order need.
pub struct Orders {
    pub rate: u32,
}

#[workflow(name = "order", events(approval: Approval))]
impl Orders {
    /// Takes what is ordered from stock, and ships it when somebody has approved.
    pub async fn run(ctx: Workflow<Self>, order: Order) -> Result<Receipt, Failure> {
        ctx.entity::<Stock>(&order.sku).reserve(order.count).await?;
        ctx.set_status("reserved");
        let charge = ctx.charge(order.clone()).attempts(3).timeout(secs(30)).await?;
        let rate: u32 = ctx.step("rate", |shop| async move { Ok(shop.rate) }).await?;
        let approval = match ctx.race((ctx.approval(), ctx.sleep(days(3)))).await {
            Of2::First(approval) => approval?,
            Of2::Second(_) => {
                ctx.signal(Stock::of(&order.sku).release(order.count));
                return Err(Rejection::new("nobody approved").into());
            }
        };
        let more = ctx.try_all((2..=order.count).map(|number| ctx.label(number, "more".into())));
        let (one, more) = ctx.all((ctx.label(1, "first".into()), more)).await;
        let mut labels = vec![one?];
        labels.extend(more?);
        Ok(Receipt { charge: format!("{charge} {rate}"), approved_by: approval.by, labels })
    }

    /// Charges for an order.
    async fn charge(&self, step: &Step, order: Order) -> Result<String, StepError> {
        Ok(format!("{} of {} at {}", order.count, order.sku, self.rate * step.attempt()))
    }

    #[step(at_most = 4)]
    async fn label(&self, number: u32, kind: String) -> Result<String, StepError> {
        Ok(format!("{kind} label {number}"))
    }
}

fn driver() -> WorkflowDriver<Orders> {
    let mut order = WorkflowDriver::new("o-1", Orders { rate: 10 }).entity::<Stock>();
    order.drivers().apply(Stock::of("bolts").fill(10)).expect("applied");
    order
}

fn bolts(count: u32) -> Order {
    Order { sku: "bolts".into(), count }
}

#[test]
fn an_order_goes_from_its_start_to_its_receipt() {
    let mut order = driver();
    assert!(order.start(bolts(3)).expect("started").is_new);
    assert_eq!(order.status(), Some(Status::Running));
    assert_eq!(order.custom_status::<String>().as_deref(), Some("reserved"));
    assert_eq!(order.waits_for(), ["event approval", "timer in PT72H"]);
    assert_eq!(order.drivers().state::<Stock>("bolts").pieces(), 7);
    order.event("approval", Approval { by: "ann".into() }).expect("taken");
    let receipt = order.result().expect("a receipt");
    assert_eq!(receipt.charge, "3 of bolts at 10 10");
    assert_eq!((&*receipt.approved_by, receipt.labels.len()), ("ann", 3));
}

#[test]
fn nobody_approves_and_what_was_taken_is_given_back() {
    let mut order = driver();
    order.start(bolts(3)).expect("started");
    order.advance(days(2)).expect("time passes");
    assert_eq!(order.waits_for(), ["event approval", "timer in PT24H"]);
    order.run_to_end().expect("it waits for time");
    assert_eq!(order.result(), Err(Rejection::new("nobody approved").into()));
    assert_eq!(order.drivers().state::<Stock>("bolts").pieces(), 10);
}

#[test]
fn a_rejection_a_failure_and_a_retry_reach_the_code_as_what_they_are() {
    let mut order = driver();
    order.start(bolts(11)).expect("started");
    assert_eq!(order.result(), Err(Rejection::new("too few pieces").into()));

    let mut order = driver();
    order.step("charge").fails("the line is busy").times(2).returns("paid");
    order.start(bolts(1)).expect("started");
    assert_eq!(order.waits_for(), ["step charge"]);
    order.advance(secs(10)).expect("both waits pass");
    assert_eq!(order.waits_for().len(), 2, "it waits for approval: {:?}", order.waits_for());

    let mut order = driver();
    order.step("charge").fails("the line is busy");
    order.start(bolts(1)).expect("started");
    order.run_to_end().expect("it waits for time");
    let failed = Failure::Failed("the line is busy (3 attempts)".into());
    assert_eq!(order.result(), Err(failed));
}

#[test]
fn an_event_that_comes_early_is_kept_and_one_that_comes_late_is_refused() {
    let mut order = driver();
    order.step("charge").holds();
    let early = order.event("approval", Approval { by: "ann".into() });
    assert_eq!(early.expect_err("refused").rejection().and_then(|no| no.code()), Some("unknown"));
    order.start(bolts(1)).expect("started");
    order.event("approval", Approval { by: "ann".into() }).expect("kept");
    order.event("approval", Approval { by: "bob".into() }).expect("kept");
    let wrong = order.event("approval", 5).expect_err("refused");
    assert!(wrong.to_string().contains("payload"), "{wrong}");
    let unknown = order.event("approved", 5).expect_err("refused");
    assert_eq!(unknown.rejection().and_then(|no| no.code()), Some("unknown_event"));
    order.end_step(0, Ok("paid")).expect("ended");
    assert_eq!(order.result().expect("a receipt").approved_by, "ann");
    let late = order.event("approval", Approval { by: "kim".into() });
    assert_eq!(late.expect_err("refused").rejection().and_then(|no| no.code()), Some("ended"));
    let letters = order.drivers().take_dead_letters();
    assert_eq!(letters.len(), 1, "bob's approval was not taken: {letters:?}");
}

#[test]
fn an_order_that_is_cancelled_terminated_or_suspended() {
    let mut order = driver();
    order.start(bolts(3)).expect("started");
    order.cancel().expect("cancelled");
    assert_eq!(
        (order.status(), order.result()),
        (Some(Status::Cancelled), Err(Failure::Cancelled))
    );

    let mut order = driver();
    order.step("charge").holds();
    order.start(bolts(3)).expect("started");
    order.terminate("by hand").expect("terminated");
    assert_eq!(order.result(), Err(Failure::Terminated("by hand".into())));
    assert!(order.drivers().held_steps().is_empty(), "the step was told");

    let mut order = driver();
    order.start(bolts(1)).expect("started");
    order.suspend("let me look").expect("suspended");
    order.event("approval", Approval { by: "ann".into() }).expect("kept");
    order.advance(days(5)).expect("time passes");
    assert_eq!(order.status(), Some(Status::Suspended));
    order.resume().expect("resumed");
    assert_eq!(order.result().expect("the approval came before the timer").approved_by, "ann");
}

#[test]
fn a_crash_behind_any_turn_changes_nothing() {
    WorkflowDriver::crash_everywhere(driver, |order| {
        order.start(bolts(2)).expect("started");
        order.event("approval", Approval { by: "ann".into() }).expect("taken");
        let receipt = order.result().expect("a receipt");
        assert_eq!((&*receipt.approved_by, receipt.labels.len()), ("ann", 2));
        assert_eq!(order.drivers().state::<Stock>("bolts").pieces(), 8);
    });
}

#[test]
fn a_history_is_saved_and_replayed() {
    let mut order = driver();
    order.start(bolts(2)).expect("started");
    let path = std::env::temp_dir().join(format!("stead-order-{}.json", std::process::id()));
    order.history().save(&path).expect("saved");
    let replayed = || stead_entities::testing::replay::<Orders>(&path);
    let same = replayed();
    // Tools write the fields of arguments in an order of their own.
    let saved = std::fs::read_to_string(&path).expect("saved");
    let json: serde_json::Value = serde_json::from_str(&saved).expect("JSON");
    std::fs::write(&path, json.to_string()).expect("written");
    let sorted = replayed();
    std::fs::write(&path, saved.replace("\"bolts\"", "\"nuts\"")).expect("written");
    let other = replayed();
    std::fs::remove_file(&path).expect("removed");
    assert_eq!((same, sorted), (Ok(()), Ok(())));
    let why = other.expect_err("another argument");
    assert!(why.contains("nuts") && why.contains("bolts") && why.contains("version"), "{why}");
}

impl Stock {
    fn pieces(&self) -> u32 {
        self.pieces
    }
}
