//! Critical sections: entities that are locked are this workflow's alone, until the section ends, however it does.

use serde::{Deserialize, Serialize};
use stead_entities::{
    CallError, EntityId, Failure, Layout, Rejection, entity,
    testing::WorkflowDriver,
    workflow,
    workflow::{InstanceReference, LOCKED_MAX, Of2, StepError, Workflow},
};

use super::secs;

#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema, Layout)]
pub struct Account {
    balance: u32,
}

#[entity(name = "account")]
impl Account {
    pub fn deposit(&mut self, amount: u32) -> u32 {
        self.balance += amount;
        self.balance
    }

    pub fn withdraw(&mut self, amount: u32) -> Result<u32, Rejection> {
        self.balance =
            self.balance.checked_sub(amount).ok_or_else(|| Rejection::new("too poor"))?;
        Ok(self.balance)
    }

    /// The balance.
    pub fn balance(&self) -> u32 {
        self.balance
    }
}

fn account(key: &str) -> EntityId {
    EntityId::new("account", key).expect("valid")
}

/// Moves money while nobody else does; `how` says what else happens in the section.
pub struct Transfers;

#[workflow(name = "transfer", events(go: bool, first: bool))]
impl Transfers {
    pub async fn run(
        ctx: Workflow<Self>,
        how: String,
        others: Vec<String>,
    ) -> Result<u32, Failure> {
        let (a, b) = (ctx.entity::<Account>("a"), ctx.entity::<Account>("b"));
        if how == "beside" {
            let (section, balance) = ctx.all((ctx.lock([account("a")]), a.deposit(1))).await;
            drop(section?);
            return Ok(balance?);
        }
        if how == "not taken" {
            let mut lock = Box::pin(ctx.lock([account("a")]));
            let event = ctx.first();
            match ctx.race((std::future::poll_fn(|cx| lock.as_mut().poll(cx)), event)).await {
                Of2::First(section) => drop(section?),
                Of2::Second(event) => drop(event?),
            }
            ctx.go().await?;
            return Err(Failure::fatal("it was not taken"));
        }
        if how == "waits" {
            return match ctx.lock([account("a")]).await {
                Ok(_section) => Ok(1),
                Err(failure) => Err(failure),
            };
        }
        let moved = {
            let _section = ctx.lock([account("b"), account("a"), account("b")]).await?;
            let left = a.withdraw(5).await?;
            match &*how {
                "event" => drop(ctx.go().await?),
                "step" => ctx.check().await?,
                "other" => drop(ctx.entity::<Account>("c").deposit(1).await?),
                "child" => {
                    ctx.child(Transfers::of("t2").start("".into(), vec![])).await.map(drop)?
                }
                "nested" => drop(ctx.lock([account("c")]).await?),
                "signal" => ctx.signal(Account::of("b").deposit(1)),
                "signal other" => ctx.signal(Account::of("c").deposit(1)),
                "again" => return ctx.continue_as((String::new(), others).into()).await,
                _ => {}
            }
            b.deposit(5).await?;
            left
        };
        for other in others {
            ctx.entity::<Account>(&other).deposit(1).await?;
        }
        Ok(moved)
    }

    async fn check(&self) -> Result<(), StepError> {
        Ok(())
    }
}

fn transfers(key: &str) -> WorkflowDriver<Transfers> {
    let mut driver = WorkflowDriver::new(key, Transfers).entity::<Account>();
    for account in ["a", "b"] {
        driver.drivers().apply(Account::of(account).deposit(100)).expect("applied");
    }
    driver
}

fn started(how: &str) -> WorkflowDriver<Transfers> {
    let mut transfer = transfers("t");
    transfer.start((how.to_owned(), vec!["c".to_owned()]).into()).expect("started");
    transfer
}

fn balances(driver: &mut WorkflowDriver<Transfers>) -> [u32; 3] {
    ["a", "b", "c"].map(|key| driver.drivers().state::<Account>(key).balance)
}

/// Whether nobody has locked the accounts.
fn is_free(driver: &mut WorkflowDriver<Transfers>) -> bool {
    ["a", "b"].into_iter().all(|key| driver.drivers().apply(Account::of(key).deposit(0)).is_ok())
}

#[test]
fn a_section_locks_in_one_order_and_ends_with_its_block() {
    for how in ["", "step", "signal other"] {
        let mut transfer = started(how);
        assert_eq!(transfer.result(), Ok(95), "{how}");
        let other = u32::from(how == "signal other");
        assert_eq!(balances(&mut transfer), [95, 105, 1 + other], "{how}");
        assert!(is_free(&mut transfer), "{how}");
    }
    let transfer = started("event");
    assert_eq!(transfer.waits_for(), ["event go"]);
    let history = serde_json::to_value(transfer.history()).expect("JSON").to_string();
    let (a, b) = (history.find("account/a").expect("locked"), history.find("account/b"));
    assert!(a < b.expect("locked"), "{history}");
}

#[test]
fn others_wait_until_the_section_ends() {
    let mut transfer = started("event");
    let call = transfer.drivers().apply(Account::of("b").deposit(7));
    assert!(matches!(call, Err(CallError::Failed(_))), "{call:?}");
    transfer.drivers().signal(Account::of("b").deposit(7)).expect("accepted");
    assert_eq!(transfer.drivers().query(Account::of("b").balance()).expect("read"), 100);
    transfer.event("go", true).expect("taken");
    assert_eq!(balances(&mut transfer), [95, 112, 1]);

    // Another workflow waits for the lock, and gives up, or gets it.
    for gives_up in [true, false] {
        let mut transfer = started("event");
        let start = Transfers::of("u").start("waits".into(), vec![]).operation();
        transfer.drivers().apply(start).expect("started");
        if gives_up {
            transfer.drivers().apply(Transfers::of("u").cancel()).expect("cancelled");
        }
        transfer.event("go", true).expect("taken");
        let other = transfer.drivers().state::<workflow::Instance<Transfers>>("u");
        let expected: &[u8] = if gives_up { b"{\"Err\":\"cancelled\"}" } else { b"{\"Ok\":1}" };
        assert_eq!(other.outcome(), expected);
        assert!(is_free(&mut transfer));
    }
}

#[test]
fn what_breaks_a_rule_of_sections_fails_and_the_locks_are_let_go() {
    for how in ["other", "child", "nested"] {
        let mut transfer = started(how);
        match transfer.result() {
            Err(Failure::Rejected(no)) => assert_eq!(no.code(), Some("critical_section"), "{how}"),
            other => panic!("{how}: {other:?}"),
        }
        assert!(is_free(&mut transfer), "{how}");
        assert_eq!(balances(&mut transfer), [95, 100, 0], "{how}");
    }
    let mut signal = transfers("t").allowing_stuck();
    signal.start(("signal".to_owned(), vec![]).into()).expect("started");
    assert!(signal.stuck().is_some_and(|why| why.contains("is locked by this section")));
    signal.terminate("enough").expect("terminated");
    assert!(is_free(&mut signal));
}

pub struct Many;

#[workflow(name = "many")]
impl Many {
    pub async fn run(ctx: Workflow<Self>, count: u32) -> Result<(), Failure> {
        let _section = ctx.lock((0..count).map(|number| account(&number.to_string()))).await?;
        Ok(())
    }
}

#[test]
fn a_section_has_a_limited_number_of_entities() {
    for (count, fits) in [(0, true), (16, true), (17, false)] {
        let mut many = WorkflowDriver::new("m", Many).entity::<Account>();
        many.start(count).expect("started");
        assert_eq!(many.result().is_ok(), fits, "{count} of {LOCKED_MAX}");
    }
}

#[test]
fn the_locks_end_with_the_run_however_that_ends() {
    let ends: [fn(&mut WorkflowDriver<Transfers>); 3] = [
        |transfer| transfer.terminate("enough").expect("terminated"),
        |transfer| transfer.cancel().expect("cancelled"),
        |transfer| {
            transfer.suspend("").expect("suspended");
            transfer.terminate("enough").expect("terminated");
        },
    ];
    for end in ends {
        let mut transfer = started("event");
        assert!(!is_free(&mut transfer));
        end(&mut transfer);
        assert!(is_free(&mut transfer));
        assert_eq!(balances(&mut transfer), [95, 100, 0]);
    }
    let mut again = started("again");
    assert_eq!((again.result(), balances(&mut again)), (Ok(90), [90, 105, 1]));
}

#[test]
fn a_lock_that_is_there_and_was_not_taken_is_let_go() {
    let mut holder = started("event");
    let start = Transfers::of("u").start("not taken".into(), vec![]).operation();
    holder.drivers().apply(start).expect("started");
    let first = InstanceReference::new("transfer", "u").event("first", &true);
    holder.drivers().apply(first).expect("taken");
    holder.event("go", true).expect("taken");
    assert!(!is_free(&mut holder), "the other one has it now, and has not taken it");
    holder.drivers().apply(Transfers::of("u").go(true)).expect("taken");
    assert!(is_free(&mut holder));
}

#[test]
fn a_call_beside_the_wait_for_its_own_lock_is_refused() {
    let mut transfer = started("beside");
    match transfer.result() {
        Err(Failure::Rejected(no)) => assert_eq!(no.code(), Some("critical_section")),
        other => panic!("{other:?}"),
    }
    assert!(is_free(&mut transfer));
}

#[test]
fn a_section_survives_a_crash_behind_each_turn() {
    WorkflowDriver::crash_everywhere(
        || transfers("t"),
        |transfer| {
            transfer.start(("event".to_owned(), vec!["c".to_owned()]).into()).expect("started");
            transfer.advance(secs(60)).expect("advanced");
            transfer.event("go", true).expect("taken");
            assert_eq!((transfer.result(), balances(transfer)), (Ok(95), [95, 105, 1]));
            assert!(is_free(transfer));
        },
    );
}

#[test]
fn a_run_is_not_rewound_into_a_section() {
    let mut transfer = transfers("t");
    transfer.start(("event".to_owned(), vec![]).into()).expect("started");
    transfer.terminate("enough").expect("terminated");
    let refused = transfer.rewind(None).expect_err("into the section");
    assert!(refused.to_string().contains("critical section"), "{refused}");
    transfer.rewind(Some("1.1.1")).expect("to before it");
    assert_eq!(transfer.waits_for(), ["event go"]);
    assert_eq!(balances(&mut transfer), [90, 100, 0]);
}
