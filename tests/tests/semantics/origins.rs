//! Who asked, and in which trace: through signals, delays, retries, restarts and other nodes, to the turn.

use stead::{CallerIdentity, Client, ReminderId, TraceContext};

use stead::store::tables::reminders::ReminderRecord;

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const ALICE: &str = "alice in 4bf92f3577b34da6a3ce929d0e0e4736, congo=1";
const NOBODY: &str = "nobody";

/// Writes down who asked for each of its turns.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Witness {
    seen: Vec<String>,
    fails: bool,
}

#[entity(name = "witness")]
impl Witness {
    pub fn see(&mut self, ctx: &mut Context) -> String {
        self.seen.push(origin(ctx));
        origin(ctx)
    }

    pub async fn see_later(&mut self, ctx: &mut Context) -> String {
        tokio::task::yield_now().await;
        self.seen.push(origin(ctx));
        origin(ctx)
    }

    /// Has another one see at once, in an operation that awaits, and later.
    pub fn pass(&mut self, ctx: &mut Context, to: String, seconds: u64) {
        ctx.signal(Self::of(&to).see());
        ctx.signal(Self::of(&to).see_later());
        ctx.signal(Self::of(&to).see().after(Duration::from_secs(seconds)));
    }

    pub fn remind(&mut self, ctx: &mut Context) {
        ctx.remind("r", After(Duration::from_secs(60)), Self::of(ctx.key()).see());
    }

    #[allow(clippy::panic)]
    pub fn fail_until_told(&mut self, ctx: &mut Context) {
        assert!(!FAILS.load(Ordering::SeqCst), "on purpose");
        self.seen.push(origin(ctx));
    }

    pub fn end(&mut self, ctx: &mut Context) {
        ctx.delete();
    }

    pub fn who(&self, ctx: &Context) -> String {
        origin(ctx)
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.clone()
    }
}

static FAILS: AtomicBool = AtomicBool::new(true);

fn origin(ctx: &Context) -> String {
    let Some(caller) = ctx.caller() else { return NOBODY.into() };
    let trace = ctx.trace().map_or_else(
        || "no trace".into(),
        |trace| format!("{}, {}", trace.trace_id(), trace.state().unwrap_or("no state")),
    );
    format!("{caller} in {trace}")
}

fn trace() -> TraceContext {
    TraceContext::new(PARENT, Some("congo=1")).expect("valid")
}

async fn expect_seen(node: &Node, key: &str, expected: &[&str]) {
    let witness = node.entity::<Witness>(key);
    let are_there = async || witness.seen().await.expect("a query") == expected;
    until_true(&format!("{key} has seen {expected:?}"), are_there).await;
}

async fn start(world: &World) -> Node {
    let store = world.disk.open().expect("readable");
    let builder = Node::builder().store(store).config(world.config.clone());
    let builder = builder.clock(world.clock.clone()).entity::<Witness>();
    builder.start().await.expect("starts")
}

#[tokio::test]
async fn who_asked_is_known_after_delays_retries_and_a_crash() {
    let world = World::new();
    let node = start(&world).await;
    let a = || node.entity::<Witness>("a");
    let as_alice = |node: &Node, to: &str| {
        node.entity::<Witness>("a").pass(to.to_owned(), 60).caller("alice").trace(trace())
    };
    assert_eq!(a().see().caller("alice").trace(trace()).await.expect("applied"), ALICE);
    assert_eq!(a().see_later().caller("alice").trace(trace()).await.expect("applied"), ALICE);
    assert_eq!(a().who().caller("bob").await.expect("answered"), "bob in no trace");
    assert_eq!(a().see().await.expect("applied"), NOBODY);
    as_alice(&node, "b").await.expect("applied");
    expect_seen(&node, "b", &[ALICE, ALICE]).await;
    a().remind().caller("alice").await.expect("applied");
    a().fail_until_told().caller("alice").trace(trace()).signal().await.expect("accepted");
    let fails = node.entity::<Witness>("d").fail_until_told().caller("alice").trace(trace());
    fails.after(Duration::from_millis(1)).signal().await.expect("accepted");
    world.advance(1);
    until_true("a delayed signal was tried", async || {
        world.disk.rows(Table::Reminders).iter().any(|(_, record)| {
            stead::store::record::decode::<ReminderRecord>(record).is_ok_and(|it| it.attempts > 0)
        })
    })
    .await;
    let delayed = a().see().caller("alice").trace(trace()).after(Duration::from_secs(30));
    delayed.signal().await.expect("accepted");
    node.abort().await;

    // What waits on disk for a retry or its time says who asked.
    FAILS.store(false, Ordering::SeqCst);
    let node = start(&world).await;
    expect_seen(&node, "a", &[ALICE, ALICE, NOBODY, ALICE]).await;
    expect_seen(&node, "d", &[ALICE]).await;
    world.advance(90);
    expect_seen(&node, "b", &[ALICE, ALICE, ALICE]).await;
    expect_seen(&node, "a", &[ALICE, ALICE, NOBODY, ALICE, ALICE, NOBODY]).await;
    until_true("nothing is kept of what was applied", async || {
        world.disk.rows(Table::Origins).is_empty()
    })
    .await;

    // Nor of what was cancelled, or died with its entity.
    let c = node.entity::<Witness>("c");
    let cancelled = c.see().caller("alice").after(Duration::from_secs(60));
    let id = cancelled.signal().await.expect("accepted").reminder.expect("delayed");
    assert!(matches!(id, ReminderId::Delayed(_)));
    as_alice(&node, "c").await.expect("applied");
    expect_seen(&node, "c", &[ALICE, ALICE]).await;
    assert_eq!(world.disk.rows(Table::Origins).len(), 2);
    c.0.cancel_reminder(id).await.expect("cancelled");
    assert_eq!(world.disk.rows(Table::Origins).len(), 1);
    c.end().await.expect("deleted");
    assert_eq!(world.disk.rows(Table::Origins).len(), 0);
    node.drain().await.expect("drained");
}

#[tokio::test]
async fn an_idempotency_key_is_its_callers_own() {
    let world = World::new();
    let node = start(&world).await;
    let see = |caller: &str| {
        node.entity::<Witness>("a").see().idempotency_key("k").caller(caller.to_owned())
    };
    for _ in 0..2 {
        assert_eq!(see("alice").await.expect("applied"), "alice in no trace");
        assert_eq!(see("bob").await.expect("applied"), "bob in no trace");
    }
    expect_seen(&node, "a", &["alice in no trace", "bob in no trace"]).await;
    let nameless = see("").await.expect_err("refused");
    assert_eq!(kind(&nameless), Some(ErrorKind::Invalid));
    node.drain().await.expect("drained");
}

#[test]
fn who_asked_is_known_at_other_nodes() {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let (disk, network) =
            (MemoryDisk::new(), stead::transport::Network::new(1, Default::default()));
        let start = async |name: &str| {
            let builder = Node::builder().share(disk.share(), network.at(name), name).name(name);
            builder.deterministic(7).entity::<Witness>().start().await.expect("starts")
        };
        let nodes = [start("one").await, start("two").await];
        for number in 0..20 {
            let (key, to) = (format!("a{number}"), format!("b{number}"));
            for node in &nodes {
                let a = node.entity::<Witness>(&key);
                assert_eq!(a.see().caller("alice").trace(trace()).await.expect("applied"), ALICE);
                assert_eq!(a.who().caller("bob").await.expect("answered"), "bob in no trace");
            }
            let a = nodes[0].entity::<Witness>(&key);
            a.pass(to.clone(), 10).caller("alice").trace(trace()).await.expect("applied");
            // It is due within what the receiver keeps in memory.
            expect_seen(&nodes[1], &to, &[ALICE, ALICE, ALICE]).await;
        }
        assert_eq!(disk.rows(Table::Origins).len(), 0);
    });
}

#[tokio::test]
async fn http_tells_the_turn_who_asked() {
    let world = World::new();
    let node = start(&world).await;
    let caller = axum::Extension(CallerIdentity("alice".into()));
    let (url, serving) = serve(node.router().layer(caller)).await;
    let client = Client::new(&url).expect("a client");
    let a = client.entity::<Witness>("a");
    assert_eq!(a.see().trace(trace()).await.expect("applied"), ALICE);
    assert_eq!(a.who().trace(trace()).await.expect("answered"), ALICE);
    a.see().trace(trace()).signal().await.expect("accepted");
    assert_eq!(a.see().caller("mallory").await.expect("applied"), "alice in no trace");
    expect_seen(&node, "a", &[ALICE, ALICE, "alice in no trace"]).await;
    let delete = format!("{url}/v1/entities/witness/a");
    let key = ("idempotency-key", "k");
    let http = reqwest::Client::new();
    assert_eq!(http.delete(&delete).header(key.0, key.1).send().await.expect("sent").status(), 204);
    a.see().await.expect("applied");
    assert_eq!(http.delete(&delete).header(key.0, key.1).send().await.expect("sent").status(), 204);
    assert_eq!(a.seen().await.expect("answered").len(), 1, "it was deleted once");
    // What breaks the standard's rules is ignored.
    let call = format!("{url}/v1/entities/witness/a/calls/see");
    for wrong in ["", "00-0-0-0", &PARENT.to_uppercase(), &format!("{PARENT}-more")] {
        let sent = http.post(&call).header("traceparent", wrong).header("tracestate", "congo=1");
        let told: String = sent.send().await.expect("sent").json().await.expect("json");
        assert_eq!(told, "alice in no trace");
    }
    let twice = http.post(&call).header("traceparent", PARENT).header("traceparent", PARENT);
    let told: String = twice.send().await.expect("sent").json().await.expect("json");
    assert_eq!(told, "alice in no trace");
    serving.abort();
    node.drain().await.expect("drained");
}
