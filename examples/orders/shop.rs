//! Carts, stock and orders: an order asks for all that it needs, pays, and makes up for what it got in vain.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::{collections::BTreeSet, fs, io::Write as _, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Answer, Context, DeadLetter, Failure, Layout, Rejection, entity};

/// The client of a bank, which books a token once, however often it is asked. Its books are a file.
pub struct Bank {
    pub books: PathBuf,
    pub calls: AtomicU32,
}

impl Bank {
    /// Says whether the bank pays. It is away now and then.
    async fn charge(&self, token: &str, cents: u64) -> std::io::Result<bool> {
        if self.calls.fetch_add(1, Relaxed).is_multiple_of(5) {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        if cents > 1_000 {
            return Ok(false);
        }
        let books = fs::OpenOptions::new().create(true).append(true).open(&self.books)?;
        writeln!(&books, "{token} {cents}").map(|()| true)
    }

    /// How many payments are booked.
    pub fn booked(&self) -> usize {
        let books = fs::read_to_string(&self.books).unwrap_or_default();
        books.lines().collect::<BTreeSet<_>>().len()
    }
}

/// So many pieces of something, at a price for all of them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Line {
    pub sku: String,
    pub pieces: u32,
    pub cents: u64,
}

/// The wishes of somebody, forgotten an hour after they changed last.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Cart {
    lines: Vec<Line>,
}

#[entity(name = "cart", ttl = Duration::from_secs(3600))]
impl Cart {
    pub fn put(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Orders what is in the cart, and empties it.
    pub fn check_out(&mut self, ctx: &mut Context, order: String) -> Result<(), Rejection> {
        if self.lines.is_empty() {
            return Err(Rejection::new("the cart is empty").with_code("empty"));
        }
        ctx.signal(Order::of(order).place(std::mem::take(&mut self.lines)));
        Ok(())
    }
}

/// The pieces that are left.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Stock {
    pieces: u32,
}

#[entity(name = "stock")]
impl Stock {
    pub fn fill(&mut self, pieces: u32) {
        self.pieces += pieces;
    }

    pub(crate) fn reserve(&mut self, pieces: u32) -> Result<(), Rejection> {
        let left = self.pieces.checked_sub(pieces).ok_or_else(|| Rejection::new("sold out"));
        left.map(|left| self.pieces = left)
    }

    pub fn pieces(&self) -> u32 {
        self.pieces
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub enum Status {
    #[default]
    New,
    Paid,
    Refused(String),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Order {
    lines: Vec<Line>,
    is_reserved: Vec<bool>,
    status: Status,
}

#[entity(name = "order", needs(Bank), on_dead_letter = on_lost)]
impl Order {
    pub(crate) fn place(&mut self, ctx: &mut Context, lines: Vec<Line>) {
        let questions = lines.iter().map(|line| Stock::of(&line.sku).reserve(line.pieces));
        ctx.ask_all(questions, Self::of(ctx.key()).on_reserved());
        self.lines = lines;
    }

    pub(crate) fn on_reserved(&mut self, ctx: &mut Context, answers: Vec<Answer<()>>) {
        self.is_reserved = answers.iter().map(Result::is_ok).collect();
        match answers.into_iter().find_map(Result::err) {
            None => ctx.signal(Self::of(ctx.key()).pay()),
            Some(failure) => self.give_up(ctx, &failure.to_string()),
        }
    }

    #[operation(deadline = Duration::from_secs(10), retries = 20, backoff = Duration::from_millis(20))]
    pub(crate) async fn pay(&mut self, ctx: &mut Context) -> Result<(), Failure> {
        let cents = self.lines.iter().map(|line| line.cents).sum();
        match ctx.get::<Bank>().charge(&ctx.token(), cents).await.map_err(Failure::retry)? {
            true => self.status = Status::Paid,
            false => self.give_up(ctx, "the bank does not pay"),
        }
        Ok(())
    }

    /// The bank was away for too long.
    pub(crate) fn on_lost(&mut self, ctx: &mut Context, letter: DeadLetter) {
        self.give_up(ctx, &letter.reason);
    }

    /// Puts back what was reserved.
    fn give_up(&mut self, ctx: &mut Context, why: &str) {
        let is_reserved = std::mem::take(&mut self.is_reserved);
        for (line, _) in self.lines.iter().zip(is_reserved).filter(|(_, reserved)| *reserved) {
            ctx.signal(Stock::of(&line.sku).fill(line.pieces));
        }
        self.status = Status::Refused(why.to_owned());
        ctx.expire_after(Duration::from_secs(30 * 24 * 3600));
    }

    pub fn status(&self) -> Status {
        self.status.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orders a bolt and so many nuts, with a crash at every commit. Expects what is left of them.
    fn order(pieces: u32, cents: u64, expected: (Status, u32, u32)) {
        let bank = || Bank { books: "/dev/null".into(), calls: 1.into() };
        let shop = stead::testing::NodeTest::new().entity::<Cart>().entity::<Stock>();
        shop.entity::<Order>().with(bank).crash_everywhere(async |node| {
            let cart = node.entity::<Cart>("c");
            for (sku, pieces) in [("bolts", 1), ("nuts", pieces)] {
                node.entity::<Stock>(sku).fill(5).await.unwrap();
                cart.put(Line { sku: sku.into(), pieces, cents }).await.unwrap();
            }
            cart.check_out("1".into()).await.unwrap();
            node.assert_settles().await;
            let left = async |sku: &str| node.state::<Stock>(sku).await.unwrap().pieces;
            let (order, bolts) = (node.state::<Order>("1").await.unwrap(), left("bolts").await);
            assert_eq!((order.status, bolts, left("nuts").await), expected);
        });
    }

    #[test]
    fn an_order_is_paid_or_leaves_nothing() {
        order(5, 100, (Status::Paid, 4, 0));
        order(6, 100, (Status::Refused("rejected: sold out".into()), 5, 5));
        order(5, 1_000, (Status::Refused("the bank does not pay".into()), 5, 5));
    }
}
