//! Forty checkouts of twenty-five bolts, through kills: nothing is sold twice, and nothing is lost.
//!
//! `cargo run --release --bin orders` runs itself as a child, which it kills six times, and prints
//!
//! ```text
//! 25 paid, 15 refused; 0 bolts and 75 nuts left; 25 payments booked
//! ```

mod shop;

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;
use stead::{Node, RocksStore};

use shop::{Bank, Cart, Line, Order, Status, Stock};

const ORDERS: usize = 40;

#[tokio::main]
async fn main() -> Result<()> {
    if let Some(data) = std::env::args().nth(1) {
        return serve(Path::new(&data)).await.map(drop);
    }
    let data = tempfile::tempdir()?;
    for kill in 0..6 {
        let mut child = Command::new(std::env::current_exe()?).arg(data.path()).spawn()?;
        std::thread::sleep(Duration::from_millis(40 + 15 * kill));
        child.kill()?;
        child.wait()?;
    }
    println!("{}", serve(data.path()).await?);
    Ok(())
}

/// Checks out what was not checked out before, waits until every order is settled, and says what came of it.
async fn serve(data: &Path) -> Result<String> {
    let bank = || Bank { books: data.join("books"), calls: 0.into() };
    let store = RocksStore::open(data.join("stead"))?;
    let builder = Node::builder().store(store).entity::<Cart>().entity::<Stock>();
    let node = builder.entity::<Order>().with(bank()).start().await?;
    node.entity::<Stock>("bolts").fill(25).idempotency_key("first").await?;
    node.entity::<Stock>("nuts").fill(100).idempotency_key("first").await?;
    for number in 0..ORDERS {
        let cart = node.entity::<Cart>(number.to_string());
        for sku in ["bolts", "nuts"] {
            let line = Line { sku: sku.into(), pieces: 1, cents: 50 };
            cart.put(line).idempotency_key(sku).await?;
        }
        cart.check_out(number.to_string()).idempotency_key("check out").await?;
    }
    loop {
        let (mut paid, mut refused) = (0, 0);
        for number in 0..ORDERS {
            match node.entity::<Order>(number.to_string()).status().committed().await? {
                Status::Paid => paid += 1,
                Status::Refused(_) => refused += 1,
                Status::New => {}
            }
        }
        let pieces = async |sku: &str| node.entity::<Stock>(sku).pieces().await;
        let (bolts, nuts) = (pieces("bolts").await?, pieces("nuts").await?);
        // What is put back is a signal, and comes in its own time.
        if paid + refused == ORDERS && nuts as usize + paid == 100 {
            node.drain().await?;
            let left = format!("{bolts} bolts and {nuts} nuts left");
            let booked = format!("{} payments booked", bank().booked());
            return Ok(format!("{paid} paid, {refused} refused; {left}; {booked}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
