//! A question and its answer between two entities, beside a signal there and a signal back.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use stead::{
    Answer, Context, Deserialize, JsonSchema, Layout, Node, RocksStore, Serialize, entity,
};

use crate::table::{Figure, Table, median_ratio, medians, thousands};

/// How many pairs of entities are at it at one time.
const PAIRS: usize = 500;
/// How often each goes there and back.
const TURNS: u32 = 100;
const FLOOR: f64 = 0.70;

/// How many pairs are done.
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Goes there and back as often as it is told to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
#[serde(crate = "stead::serde")]
#[schemars(crate = "stead::schemars")]
struct Player {
    left: u32,
    other: String,
}

#[entity(name = "player")]
impl Player {
    pub fn ask(&mut self, ctx: &mut Context, other: String, turns: u32) {
        (self.left, self.other) = (turns, other);
        self.ask_again(ctx);
    }

    pub fn signal(&mut self, ctx: &mut Context, other: String, turns: u32) {
        (self.left, self.other) = (turns, other);
        self.signal_again(ctx);
    }

    pub(crate) fn answer(&mut self, number: u32) -> u32 {
        self.left = number;
        number
    }

    pub(crate) fn on_answer(&mut self, ctx: &mut Context, answer: Answer<u32>) {
        self.left = answer.unwrap_or_default();
        self.ask_again(ctx);
    }

    pub(crate) fn bounce(&mut self, ctx: &mut Context, number: u32, from: String) {
        self.left = number;
        ctx.signal(Self::of(from).on_bounce(number));
    }

    pub(crate) fn on_bounce(&mut self, ctx: &mut Context, number: u32) {
        self.left = number;
        self.signal_again(ctx);
    }

    fn ask_again(&mut self, ctx: &mut Context) {
        if self.left == 0 {
            DONE.fetch_add(1, Ordering::Relaxed);
        } else {
            let then = Self::of(ctx.key()).on_answer();
            ctx.ask(Self::of(&self.other).answer(self.left - 1), then);
        }
    }

    fn signal_again(&mut self, ctx: &mut Context) {
        if self.left == 0 {
            DONE.fetch_add(1, Ordering::Relaxed);
        } else {
            let from = ctx.key().to_owned();
            ctx.signal(Self::of(&self.other).bounce(self.left - 1, from));
        }
    }
}

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = RocksStore::open(directory.path().join("stead"))?;
    let node = Node::builder().store(store).entity::<Player>().start().await?;
    let mut pairs = Vec::new();
    for _ in 0..rounds {
        let signals = turns_per_second(&node, false).await?;
        pairs.push((turns_per_second(&node, true).await?, signals));
    }
    node.drain().await?;
    let (asks, signals) = medians(&pairs);
    let ratio = median_ratio(&pairs);
    table.add(Figure {
        name: "a question and its answer, 500 pairs of entities",
        figure: thousands(asks),
        ceiling: format!("{} signals there and back", thousands(signals)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "70 %",
        is_met: ratio >= FLOOR,
    });
    Ok(())
}

/// How often a second all pairs together go there and back.
async fn turns_per_second(node: &Node, asks: bool) -> Result<f64> {
    DONE.store(0, Ordering::Relaxed);
    let started = Instant::now();
    for pair in 0..PAIRS {
        let player = node.entity::<Player>(format!("a{pair}"));
        let other = format!("b{pair}");
        match asks {
            true => player.ask(other, TURNS).signal().await?,
            false => player.signal(other, TURNS).signal().await?,
        };
    }
    while DONE.load(Ordering::Relaxed) < PAIRS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(PAIRS as f64 * f64::from(TURNS) / started.elapsed().as_secs_f64())
}
