//! Results behind type aliases: a caller gets the value, and a rejection stays a rejection.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{
    Context, Layout, Operation, Query, Rejection as Refusal, entity, testing::Driver,
};

use crate::{described, now};

type OperationResult<T> = std::result::Result<T, Refusal>;
type Outcome = OperationResult<()>;
type Result<T> = std::result::Result<T, Refusal>;
type Swapped<E, T> = std::result::Result<T, E>;
type Amount = i64;
type Listed = Vec<Amount>;
type Perhaps = Option<Amount>;

mod inner {
    pub type Deep<T = i64, E = stead_entities::Rejection> = core::result::Result<T, E>;

    /// Looks like a result.
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    pub enum Result<T> {
        Is(T),
    }
}

/// A type of the author's, which is no alias.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    amount: i64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Till {
    amount: i64,
}

impl Till {
    fn add(&mut self, amount: i64) -> OperationResult<i64> {
        self.amount += amount;
        if amount < 0 { Err(Refusal::new("below zero")) } else { Ok(self.amount) }
    }
}

#[entity(name = "till")]
impl Till {
    pub fn generic(&mut self, amount: i64) -> OperationResult<i64> {
        self.add(amount)
    }

    pub fn fixed(&mut self, amount: i64) -> Outcome {
        self.add(amount).map(drop)
    }

    pub fn named_result(&mut self, amount: i64) -> Result<i64> {
        self.add(amount)
    }

    pub fn swapped(&mut self, amount: i64) -> Swapped<Refusal, i64> {
        self.add(amount)
    }

    pub fn deep(&mut self, amount: i64) -> inner::Deep {
        self.add(amount)
    }

    pub fn renamed(&mut self, amount: i64) -> std::result::Result<i64, Refusal> {
        self.add(amount)
    }

    pub fn spelled(&mut self, amount: i64) -> core::result::Result<i64, stead_entities::Rejection> {
        self.add(amount)
    }

    pub async fn awaited(&mut self, amount: i64) -> OperationResult<Receipt> {
        self.add(amount).map(|amount| Receipt { amount })
    }

    pub fn of_self(&self) -> OperationResult<Option<Self>> {
        Ok(Some(self.clone()))
    }

    pub fn asked(&self, least: i64) -> OperationResult<bool> {
        if least > 9 { Err(Refusal::new("too much")) } else { Ok(self.amount >= least) }
    }

    pub fn amount(&self) -> Amount {
        self.amount
    }

    pub fn listed(&self) -> Listed {
        vec![self.amount]
    }

    pub fn perhaps(&self) -> Perhaps {
        Some(self.amount)
    }

    pub fn receipt(&self) -> Receipt {
        Receipt { amount: self.amount }
    }

    pub fn no_result(&self) -> inner::Result<i64> {
        inner::Result::Is(self.amount)
    }

    pub fn unit(&mut self, ctx: &mut Context) {
        ctx.signal(Till::of("b").generic(1));
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "amount": self.amount })
    }
}

#[test]
fn a_caller_gets_the_value_of_a_result_behind_an_alias() {
    let till = Till::of("a");
    let _: Operation<i64> = till.generic(1);
    let _: Operation<()> = till.fixed(1);
    let _: Operation<i64> = till.swapped(1);
    let _: Operation<Receipt> = till.awaited(1);
    let _: Query<bool> = till.asked(1);
    let _: Query<Vec<i64>> = till.listed();
    let _: Query<Receipt> = till.receipt();
    let mut driver = Driver::<Till>::new("a");
    assert_eq!(driver.apply(till.generic(1)).expect("added"), 1);
    driver.apply(till.fixed(1)).expect("added");
    assert_eq!(driver.apply(till.named_result(1)).expect("added"), 3);
    assert_eq!(driver.apply(till.swapped(1)).expect("added"), 4);
    assert_eq!(driver.apply(till.deep(1)).expect("added"), 5);
    assert_eq!(driver.apply(till.renamed(1)).expect("added"), 6);
    assert_eq!(driver.apply(till.spelled(1)).expect("added"), 7);
    let receipt = now(driver.apply_async(till.awaited(1))).expect("added");
    assert_eq!(receipt, Receipt { amount: 8 });
    assert!(driver.query(till.asked(8)).expect("asked"));
    assert_eq!(driver.query(till.of_self()).expect("itself").map(|till| till.amount), Some(8));
    driver.apply(till.unit()).expect("nothing");
    assert_eq!(driver.take_signals().len(), 1);
}

#[test]
fn a_rejection_behind_an_alias_is_a_rejection() {
    let (till, mut driver) = (Till::of("a"), Driver::<Till>::new("a"));
    let below = [
        driver.apply(till.generic(-1)).map(drop),
        driver.apply(till.fixed(-1)),
        driver.apply(till.named_result(-1)).map(drop),
        driver.apply(till.swapped(-1)).map(drop),
        driver.apply(till.deep(-1)).map(drop),
        driver.apply(till.renamed(-1)).map(drop),
        now(driver.apply_async(till.awaited(-1))).map(drop),
    ];
    for refused in below {
        let error = refused.expect_err("refused");
        assert_eq!(error.rejection().map(Refusal::reason), Some("below zero"));
    }
    assert_eq!(driver.state().amount, 0);
    let error = driver.query(till.asked(10)).expect_err("refused");
    assert_eq!(error.rejection().map(Refusal::reason), Some("too much"));
}

#[test]
fn an_answer_that_is_no_result_arrives_as_it_is() {
    let (till, driver) = (Till::of("a"), Driver::<Till>::new("a"));
    assert_eq!(driver.query(till.amount()).expect("an alias"), 0);
    assert_eq!(driver.query(till.listed()).expect("an alias"), [0]);
    assert_eq!(driver.query(till.perhaps()).expect("an alias"), Some(0));
    assert_eq!(driver.query(till.receipt()).expect("a struct"), Receipt { amount: 0 });
    assert_eq!(driver.query(till.no_result()).expect("an enum"), inner::Result::Is(0));
    assert_eq!(driver.query(till.json()).expect("JSON")["amount"], 0);
}

#[test]
fn the_schema_of_a_result_behind_an_alias_is_that_of_its_value() {
    let value = described::<Till>("spelled")["output"].clone();
    for operation in ["generic", "named_result", "swapped", "deep", "renamed"] {
        assert_eq!(described::<Till>(operation)["output"], value, "{operation}");
    }
}
