//! An order: a child for the parcel, steps with retries, answers from entities, and a second version that is deployed while
//! runs of the first go on.
//!
//! `cargo run --release --bin order` prints
//!
//! ```text
//! the first version runs
//! the second version is deployed
//! order-1 (version 1): paid 30, parcel-of-order-1 is on its way, 7 left
//! order-2 (version 2): paid 27, parcel-of-order-2 is on its way, 4 left
//! ```

use std::{path::Path, time::Duration};

use anyhow::Result;
use stead::{
    Failure, Node, Rejection, RocksStore,
    stock::Counter,
    workflow,
    workflow::{StepError, Workflow},
};

/// Orders, as they were at first.
struct OrdersV1;

#[workflow(name = "order", version = 1, events(packed: String))]
impl OrdersV1 {
    pub async fn run(ctx: Workflow<Self>, pieces: i64) -> Result<String, Failure> {
        let left = ctx.entity::<Counter>("bolts").add(-pieces).await?;
        let paid = ctx.pay(pieces * 10).attempts(5).await?;
        let by = ctx.packed().await?;
        let parcel = format!("parcel-of-{}", ctx.key());
        ctx.child(Parcels::of(&parcel).start(by)).await?;
        Ok(format!("paid {paid}, {parcel} is on its way, {left} left"))
    }

    async fn pay(&self, price: i64) -> Result<i64, StepError> {
        Ok(price)
    }
}

/// Orders, with a discount for three pieces and more.
struct Orders;

#[workflow(name = "order", version = 2, events(packed: String), also(1 = OrdersV1))]
impl Orders {
    pub async fn run(ctx: Workflow<Self>, pieces: i64) -> Result<String, Failure> {
        if pieces <= 0 {
            return Err(Rejection::new("nothing is ordered").into());
        }
        let left = ctx.entity::<Counter>("bolts").add(-pieces).await?;
        let price = if pieces >= 3 { pieces * 9 } else { pieces * 10 };
        let paid = ctx.pay(price).attempts(5).await?;
        let by = ctx.packed().await?;
        let parcel = format!("parcel-of-{}", ctx.key());
        ctx.child(Parcels::of(&parcel).start(by)).await?;
        Ok(format!("paid {paid}, {parcel} is on its way, {left} left"))
    }

    async fn pay(&self, price: i64) -> Result<i64, StepError> {
        Ok(price)
    }
}

/// Parcels, on their way to whoever ordered them.
struct Parcels;

#[workflow(name = "parcel")]
impl Parcels {
    pub async fn run(ctx: Workflow<Self>, packed_by: String) -> Result<String, Failure> {
        ctx.hand_over(packed_by).await
    }

    async fn hand_over(&self, packed_by: String) -> Result<String, StepError> {
        Ok(format!("from {packed_by}"))
    }
}

async fn wait_for_packing(node: &Node, key: &str) -> Result<()> {
    let order = node.workflow::<Orders>(key);
    while !order.status().await?.waits_for.iter().any(|wait| wait.name == "packed") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    first_version(data.path()).await?;
    println!("the second version is deployed");
    let store = RocksStore::open(data.path())?;
    let builder = Node::builder().store(store).entity::<Counter>().with(OrdersV1);
    let node = builder.workflow(Orders).workflow(Parcels).start().await?;
    for key in ["order-1", "order-2"] {
        let order = node.workflow::<Orders>(key);
        if key == "order-2" {
            order.start(3).await?;
        }
        order.packed("kim".into()).await?;
        let (said, version) = (order.result().await?, order.status().await?.version);
        println!("{key} (version {version}): {said}");
    }
    node.drain().await?;
    Ok(())
}

/// A program of its own, some time ago.
async fn first_version(data: &Path) -> Result<()> {
    let builder = Node::builder().store(RocksStore::open(data)?).entity::<Counter>();
    let node = builder.workflow(OrdersV1).workflow(Parcels).start().await?;
    node.entity::<Counter>("bolts").add(10).await?;
    node.workflow::<OrdersV1>("order-1").start(3).await?;
    wait_for_packing(&node, "order-1").await?;
    println!("the first version runs");
    Ok(node.drain().await?)
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn an_order_is_delivered_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || {
                WorkflowDriver::new("1", Orders)
                    .with(OrdersV1)
                    .workflow(Parcels)
                    .entity::<Counter>()
            },
            |order| {
                order.step("pay").fails("the bank is closed").times(4).returns(50);
                order.start(5).unwrap();
                order.advance(Duration::from_secs(3_600)).unwrap();
                order.event("packed", "sam").unwrap();
                assert_eq!(
                    order.result().as_deref(),
                    Ok("paid 50, parcel-of-1 is on its way, -5 left")
                );
            },
        );
    }

    #[test]
    fn the_second_program_goes_on_with_runs_of_the_first() {
        let mut order = WorkflowDriver::new("1", OrdersV1).workflow(Parcels).entity::<Counter>();
        order.start(1).unwrap();
        assert_eq!(order.history().replay::<Orders>(), Ok(()));
    }
}
