//! What one node promises, over a store in memory whose flushes can be held, refused or lost.

mod asks;
mod bounds;
mod buffered;
mod bulk;
mod changes;
mod collections;
mod committed;
mod dependencies;
mod events;
mod failures;
mod histories;
mod indexes;
mod indexing;
mod instances;
mod keys;
mod kit;
mod limits;
mod origins;
mod policies;
mod reminders;
mod routes;
mod schedules;
mod sections;
mod signals;
mod topics;
mod turns;
mod type_changes;
mod upgrades;
mod workflows;

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use stead::{
    After, CallError, Config, Context, EntityId, ErrorKind, Every, JsonSchema, Layout, Node,
    NodeBuilder, Rejection, Timestamp,
    clock::{Clock, ManualClock},
    entity,
    stock::Counter,
    store::{
        memory::{Fault, MemoryDisk},
        tables::Table,
    },
};
use stead_tests::wait::until_true;

/// An append-only list of what was applied, with every way to go wrong.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Journal {
    entries: Vec<u32>,
    attempts: u32,
}

#[entity(name = "journal")]
impl Journal {
    pub fn append(&mut self, entry: u32) -> u32 {
        self.entries.push(entry);
        self.entries.len() as u32
    }

    pub fn refuse(&mut self, entry: u32) -> Result<(), Rejection> {
        self.entries.push(entry);
        Err(Rejection::new("never"))
    }

    #[allow(unconditional_panic, clippy::panic)]
    pub fn explode(&mut self, entry: u32) {
        self.entries.push(entry);
        panic!("on purpose")
    }

    /// Sends `count` numbered entries to another journal.
    pub fn scatter(&mut self, ctx: &mut Context, to: String, count: u32) {
        for entry in 0..count {
            ctx.signal(Self::of(&to).append(entry));
        }
    }

    /// Sends an operation that fails, and one behind it.
    pub fn send_trouble(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Self::of(&to).explode(1));
        ctx.signal(Self::of(&to).append(2));
    }

    pub fn remind_once(&mut self, ctx: &mut Context, seconds: u64, entry: u32) {
        let length = Duration::from_secs(seconds);
        ctx.remind("once", After(length), Self::of(ctx.key()).append(entry));
    }

    pub fn remind_every(&mut self, ctx: &mut Context, seconds: u64) {
        let length = Duration::from_secs(seconds);
        ctx.remind("every", Every(length), Self::of(ctx.key()).append(7));
    }

    pub fn cancel(&mut self, ctx: &mut Context) {
        ctx.cancel_reminder("once");
        ctx.cancel_reminder("every");
    }

    pub fn end(&mut self, ctx: &mut Context) {
        ctx.delete();
    }

    pub async fn fetch(&mut self, entry: u32) -> Result<u32, Rejection> {
        tokio::task::yield_now().await;
        self.entries.push(entry);
        Ok(entry)
    }

    pub async fn hang(&mut self) {
        std::future::pending::<()>().await;
    }

    /// Blocks its thread until the test lets it go.
    pub fn block(&mut self) {
        while !LET_GO.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    pub fn send_block(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Self::of(&to).block());
    }

    pub(crate) fn hidden(&mut self) {}

    pub fn entries(&self) -> Vec<u32> {
        self.entries.clone()
    }
}

static LET_GO: AtomicBool = AtomicBool::new(false);

struct World {
    disk: MemoryDisk,
    clock: Arc<ManualClock>,
    config: Config,
}

impl World {
    fn new() -> Self {
        let config = Config::with(|config| {
            config.retry_delay = Duration::from_millis(10);
            config.retries = 2;
            config.turn_deadline = Duration::from_millis(200);
        });
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_000_000_000)));
        Self { disk: MemoryDisk::new(), clock, config }
    }

    async fn start(&self) -> Node {
        self.start_with(|builder| builder).await
    }

    /// Starts the node with more types.
    async fn start_with(&self, more: impl FnOnce(NodeBuilder) -> NodeBuilder) -> Node {
        let store = self.disk.open().expect("readable");
        let builder = Node::builder().store(store).config(self.config.clone());
        let builder = builder.clock(self.clock.clone()).entity::<Journal>().entity::<Counter>();
        more(builder).start().await.expect("starts")
    }

    /// Moves the clock and lets the node look at it: ticks are real, times are not.
    fn advance(&self, seconds: u64) {
        self.clock.advance_to(self.clock.now() + Duration::from_secs(seconds));
    }
}

/// Serves routes on a port of this machine: their URL, and the task that serves them.
async fn serve(app: axum::Router) -> (String, tokio::task::JoinHandle<std::io::Result<()>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    (url, tokio::spawn(axum::serve(listener, app).into_future()))
}

/// Reads until `expected` is there; the caller's deadline ends a wait that is in vain.
async fn expect_entries(node: &Node, key: &str, expected: &[u32]) {
    let journal = node.entity::<Journal>(key);
    let are_there = async || journal.entries().await.expect("a query") == expected;
    until_true(&format!("{key} has {expected:?}"), are_there).await;
}

fn kind(error: &CallError) -> Option<ErrorKind> {
    match error {
        CallError::Failed(error) => Some(error.kind()),
        CallError::Rejected(_) => None,
    }
}
