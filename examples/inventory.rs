//! An inventory: items in warehouses, found by what is in their states.
//!
//! `cargo run --release --bin inventory` prints
//!
//! ```text
//! 300 items, 60 of them short
//! short in the north, fewest first: item-000 (0), item-020 (0), item-040 (0)
//! the most in the south: item-299 (19 pieces)
//! after a delivery 57 are short, also when the program starts again
//! ```

use std::path::Path;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Context, Layout, Node, Rejection, RocksStore, Timestamp, entity};

#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout,
)]
#[serde(rename_all = "lowercase")]
enum Warehouse {
    #[default]
    North,
    South,
}

/// One item of the inventory. Its key is its article number.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Item {
    warehouse: Warehouse,
    pieces: u32,
    /// Below so many pieces it is short.
    reorder_below: u32,
    moved_at: Option<Timestamp>,
}

#[entity(name = "item", index(warehouse: Warehouse, pieces: u32))]
impl Item {
    /// Takes an item into the inventory.
    pub fn list(&mut self, warehouse: Warehouse, reorder_below: u32) {
        (self.warehouse, self.reorder_below) = (warehouse, reorder_below);
    }

    /// Pieces have arrived.
    pub fn deliver(&mut self, ctx: &Context, pieces: u32) {
        self.pieces += pieces;
        self.moved_at = Some(ctx.now());
    }

    /// Pieces go out.
    pub fn take(&mut self, ctx: &Context, pieces: u32) -> Result<u32, Rejection> {
        let none = || Rejection::new("too few are left").with_code("short");
        self.pieces = self.pieces.checked_sub(pieces).ok_or_else(none)?;
        self.moved_at = Some(ctx.now());
        Ok(self.pieces)
    }

    /// Whether it is to be ordered.
    #[index]
    fn is_short(&self) -> bool {
        self.pieces < self.reorder_below
    }
}

async fn open(data: &Path) -> Result<Node> {
    let store = RocksStore::open(data)?;
    Ok(Node::builder().store(store).entity::<Item>().start().await?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let node = open(data.path()).await?;
    for number in 0..300_u32 {
        let item = node.entity::<Item>(format!("item-{number:03}"));
        let warehouse = if number % 4 == 0 { Warehouse::North } else { Warehouse::South };
        item.list(warehouse, 4).await?;
        item.deliver(number % 20).await?;
    }
    let short = node.find::<Item>().filter(Item::by_is_short().is(true));
    println!("{} items, {} of them short", node.count::<Item>("").await?, short.count().await?);

    let in_the_north = short.clone().filter(Item::by_warehouse().is(Warehouse::North));
    let fewest = in_the_north.order_by(Item::by_pieces()).limit(3).states().await?;
    let shown =
        |(key, item): &(String, stead::Snapshot<Item>)| format!("{key} ({})", item.state.pieces);
    let fewest: Vec<_> = fewest.rows.iter().map(shown).collect();
    println!("short in the north, fewest first: {}", fewest.join(", "));

    let in_the_south = node.find::<Item>().matching("warehouse:south,pieces:>=10");
    let most = in_the_south.order_by(Item::by_pieces()).descending().limit(1).states().await?;
    for (key, item) in most.rows {
        println!("the most in the south: {key} ({} pieces)", item.state.pieces);
    }

    for number in [0, 20, 40] {
        node.entity::<Item>(format!("item-{number:03}")).deliver(50).await?;
    }
    node.drain().await?;
    drop((node, short));
    let node = open(data.path()).await?;
    let short = node.find::<Item>().filter(Item::by_is_short().is(true)).count().await?;
    println!("after a delivery {short} are short, also when the program starts again");
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::NodeTest;

    use super::*;

    #[test]
    fn what_is_short_is_found_wherever_the_process_ends() {
        NodeTest::new().entity::<Item>().crash_everywhere(async |node| {
            for key in ["bolts", "nuts"] {
                node.entity::<Item>(key).list(Warehouse::South, 5).await.unwrap();
                node.entity::<Item>(key).deliver(5).await.unwrap();
            }
            node.entity::<Item>("nuts").take(1).await.unwrap();
            assert!(node.entity::<Item>("bolts").take(6).await.is_err());
            let short = node.node().await.find::<Item>().matching("is_short:true");
            let page = short.page().await.unwrap();
            assert_eq!(page.rows.iter().map(|row| &*row.key).collect::<Vec<_>>(), ["nuts"]);
        });
    }
}
