//! A transfer: a critical section over two accounts, so that nobody sees the money on its way.
//!
//! `cargo run --release --bin transfer` prints
//!
//! ```text
//! 60 transfers among 6 accounts, and 10 audits meanwhile: each of them saw 600
//! ```

use anyhow::Result;
use serde::{Deserialize, Serialize};
use stead::{
    EntityId, Failure, JsonSchema, Layout, Node, Rejection, RocksStore, entity, workflow,
    workflow::Workflow,
};

const ACCOUNTS: u32 = 6;

/// An account.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Account {
    balance: i64,
}

#[entity(name = "account")]
impl Account {
    /// Adds an amount, and returns the balance.
    pub fn deposit(&mut self, amount: i64) -> i64 {
        self.balance += amount;
        self.balance
    }

    /// Takes an amount away, if there is so much.
    pub fn withdraw(&mut self, amount: i64) -> Result<(), Rejection> {
        if self.balance < amount {
            return Err(Rejection::new("there is not so much"));
        }
        self.balance -= amount;
        Ok(())
    }
}

fn account(key: &str) -> Result<EntityId, Failure> {
    EntityId::new("account", key).map_err(Failure::fatal)
}

/// Moves money from one account to another.
struct Transfers;

#[workflow(name = "transfer")]
impl Transfers {
    pub async fn run(
        ctx: Workflow<Self>,
        from: String,
        to: String,
        sum: i64,
    ) -> Result<(), Failure> {
        let _section = ctx.lock([account(&from)?, account(&to)?]).await?;
        // From here to the end of the block nobody else's operations are applied to the two accounts.
        ctx.entity::<Account>(&from).withdraw(sum).await?;
        ctx.entity::<Account>(&to).deposit(sum).await?;
        Ok(())
    }
}

/// Adds all accounts up, at one moment.
struct Audits;

#[workflow(name = "audit")]
impl Audits {
    pub async fn run(ctx: Workflow<Self>) -> Result<i64, Failure> {
        let keys: Vec<_> = (0..ACCOUNTS).map(|key| key.to_string()).collect();
        let accounts = keys.iter().map(|key| account(key)).collect::<Result<Vec<_>, _>>()?;
        let _section = ctx.lock(accounts).await?;
        let mut sum = 0;
        for key in keys {
            sum += ctx.entity::<Account>(&key).deposit(0).await?;
        }
        Ok(sum)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let node = Node::builder()
        .store(RocksStore::open(data.path())?)
        .entity::<Account>()
        .workflow(Transfers)
        .workflow(Audits)
        .start()
        .await?;
    for key in 0..ACCOUNTS {
        node.entity::<Account>(key.to_string()).deposit(100).await?;
    }
    for number in 0..60 {
        let (from, to) = (number % ACCOUNTS, (number * 5 + 1) % ACCOUNTS);
        let transfer = node.workflow::<Transfers>(number.to_string());
        transfer.start(from.to_string(), to.to_string(), 7).await?;
        if number % 6 == 0 {
            node.workflow::<Audits>(number.to_string()).start().await?;
        }
    }
    let mut saw = Vec::new();
    for number in 0..60 {
        // One whose account did not have so much has failed, and moved nothing.
        let _moved = node.workflow::<Transfers>(number.to_string()).result().await;
        if number % 6 == 0 {
            saw.push(node.workflow::<Audits>(number.to_string()).result().await?);
        }
    }
    let audits = saw.len();
    saw.dedup();
    let saw: Vec<_> = saw.iter().map(ToString::to_string).collect();
    println!(
        "60 transfers among {ACCOUNTS} accounts, and {audits} audits meanwhile: each of them saw {}",
        saw.join(", or ")
    );
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn the_money_is_there_and_the_accounts_are_free_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("1", Transfers).entity::<Account>(),
            |transfer| {
                transfer.drivers().apply(Account::of("a").deposit(5)).unwrap();
                transfer.start(("a".to_owned(), "b".to_owned(), 5).into()).unwrap();
                assert_eq!(transfer.result(), Ok(()));
                let balances = ["a", "b"]
                    .map(|key| transfer.drivers().apply(Account::of(key).deposit(0)).unwrap());
                assert_eq!(balances, [0, 5]);
            },
        );
    }
}
