//! Workflows on a node: whatever crashes, a run goes on where it was, its steps come to one outcome each, and what it
//! asks of entities is applied once.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use stead::{
    Failure,
    testing::{CommitFaults, NodeTest, TestNode},
    workflow,
    workflow::{Kind, Of2, ResultError, Status, StatusView, Step, StepError, WaitView, Workflow},
};

use super::*;

/// An outside service: what steps asked of it, by token.
#[derive(Default)]
struct Outside {
    by_token: Mutex<BTreeMap<String, Vec<u32>>>,
}

impl Outside {
    fn note(&self, token: String, attempt: u32) {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        by_token.entry(token).or_default().push(attempt);
    }
}

/// A tour: steps one behind the other and side by side, a call, a timer, an event.
#[derive(Default)]
struct Tours {
    outside: Outside,
}

#[workflow(name = "tour", events(bonus: u32))]
impl Tours {
    pub async fn run(ctx: Workflow<Self>, first: u32) -> Result<u32, Failure> {
        let mut sum = ctx.visit(first).await?;
        sum += ctx.try_all((2..5).map(|place| ctx.visit(place))).await?.into_iter().sum::<u32>();
        let counted = ctx.entity::<Counter>("tours").add(1).await?;
        ctx.set_status(&counted);
        ctx.sleep(Duration::from_secs(3_600)).await?;
        let waited = ctx.race((ctx.bonus(), ctx.sleep(Duration::from_secs(60)))).await;
        Ok(sum
            + match waited {
                Of2::First(bonus) => bonus?,
                Of2::Second(_) => 1,
            })
    }

    async fn visit(&self, step: &Step, place: u32) -> Result<u32, StepError> {
        self.outside.note(step.token(), step.attempt());
        tokio::time::sleep(Duration::from_millis(u64::from(place) * 20)).await;
        if place == 2 && step.attempt() == 1 {
            return Err(StepError::new("closed"));
        }
        Ok(place * 10)
    }
}

async fn status(node: &TestNode, key: &str) -> StatusView<u32> {
    node.workflow::<Tours>(key).status().await.expect("a status")
}

async fn tour(node: TestNode) {
    let tour = node.workflow::<Tours>("a");
    tour.start(1).await.expect("started");
    node.advance(Duration::from_secs(30)).await;
    let before = status(&node, "a").await;
    assert_eq!(before.status, Some(Status::Running), "{before:?}");
    assert_eq!(before.custom_status, 1);
    tour.bonus(500).await.expect("kept");
    node.advance(Duration::from_secs(3_600)).await;
    let after = status(&node, "a").await;
    assert_eq!((after.status, after.output), (Some(Status::Completed), Some(600)), "{after:?}");
    assert_eq!(node.entity::<Counter>("tours").value().await.expect("read"), 1);
    node.assert_no_dead_letters().await;
    let outside = node.dependency::<Tours>();
    let by_token = outside.outside.by_token.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(by_token.len(), 4, "one token for each step: {by_token:?}");
}

fn tours() -> NodeTest {
    NodeTest::new().entity::<Counter>().workflow(Tours::default)
}

#[test]
fn a_workflow_runs_to_its_end() {
    tours().run(tour);
}

#[test]
fn a_workflow_runs_to_its_end_with_a_crash_before_and_behind_every_commit() {
    tours().crash_everywhere(tour);
}

#[test]
fn a_workflow_runs_to_its_end_with_faults_by_seed() {
    let faults = CommitFaults::usual();
    tours().faults(faults).run_seeds(0..30, tour);
}

#[tokio::test]
async fn a_step_begins_when_its_turn_is_durable() {
    let world = World::new();
    let tours = Arc::new(Mutex::new(Vec::new()));
    let node = world.start_with(|builder| builder.workflow(Visits(tours.clone()))).await;
    world.disk.stall();
    let visit = node.workflow::<Visits>("a");
    let started = tokio::spawn(visit.start(1).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = || tours.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(begun().is_empty() && !started.is_finished(), "nothing of it is durable");
    world.disk.resume();
    assert!(started.await.expect("joined").expect("started").is_new);
    until_true("the step runs", async || begun() == [1]).await;
}

/// Notes the steps that begin.
struct Visits(Arc<Mutex<Vec<u32>>>);

#[workflow(name = "visits")]
impl Visits {
    pub async fn run(ctx: Workflow<Self>, place: u32) -> Result<(), Failure> {
        ctx.step("visit", move |visits| async move {
            visits.0.lock().unwrap_or_else(PoisonError::into_inner).push(place);
            Ok(())
        })
        .await
    }
}

/// Code that awaits what is not its own.
struct Foreign;

#[workflow(name = "foreign")]
impl Foreign {
    pub async fn run(ctx: Workflow<Self>, what: String) -> Result<String, Failure> {
        ctx.step("first", |_| async { Ok(()) }).await?;
        match &*what {
            "timer" => tokio::time::sleep(Duration::from_millis(1)).await,
            "socket" => drop(tokio::net::TcpStream::connect("127.0.0.1:1").await),
            "task" => drop(tokio::spawn(async {})),
            "channel" => {
                let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
                let _kept = sender;
                let _never = receiver.await;
            }
            "blocking" => drop(tokio::task::spawn_blocking(|| 1).await),
            _ => {}
        }
        ctx.sleep(Duration::from_secs(1)).await?;
        Ok(what)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_await_of_something_else_is_refused_with_its_name_and_its_place() {
    let world = World::new();
    let node = world.start_with(|builder| builder.workflow(Foreign)).await;
    let refused = [
        ("timer", "awaited tokio's timer"),
        ("socket", "used tokio's sockets"),
        ("task", "spawned a task"),
        ("channel", "waits for something that is not the workflow's"),
        ("blocking", "waits for something that is not the workflow's"),
    ];
    for (what, why) in refused {
        let foreign = node.workflow::<Foreign>(what);
        foreign.start(what.into()).await.expect("started");
        let is_stuck = async || foreign.status().await.expect("a status").stuck.is_some();
        until_true(&format!("{what} is stuck"), is_stuck).await;
        let status = foreign.status().await.expect("a status");
        let stuck = status.stuck.expect("stuck");
        assert!(stuck.reason.contains(why), "{what}: {}", stuck.reason);
        let place = if what == "task" { "behind place 2" } else { "behind place 1" };
        assert!(stuck.reason.contains(place), "{what}: {}", stuck.reason);
        assert_eq!(status.history.turns, 1, "nothing of the turn stays");
        foreign.terminate("enough").await.expect("without its code");
        let ended = foreign.result().await;
        assert!(matches!(ended, Err(ResultError::Ended(Failure::Terminated(_)))), "{ended:?}");
    }
    let good = node.workflow::<Foreign>("good");
    good.start("good".into()).await.expect("started");
    let sleeps = |wait: &WaitView| wait.kind == Kind::Timer;
    let is_asleep = async || good.status().await.expect("read").waits_for.iter().any(sleeps);
    until_true("it sleeps", is_asleep).await;
    world.advance(2);
    assert_eq!(good.result().await.expect("a result"), "good");
}

#[tokio::test]
async fn the_first_workflow_of_a_store_is_noted_with_its_commit() {
    let world = World::new();
    let visits = Visits(Arc::default());
    let node = world.start_with(|builder| builder.workflow(visits)).await;
    let is_noted = || world.disk.rows(Table::Meta).iter().any(|(key, _)| key == b"workflows");
    node.entity::<Journal>("a").append(1).await.expect("applied");
    assert!(!is_noted(), "it has no workflows");
    node.workflow::<Visits>("a").start(1).await.expect("started");
    assert!(is_noted());
}

/// Steps of two kinds: of one there is one at a time, and it takes until it is let go.
struct Kinds(Arc<tokio::sync::Semaphore>);

#[workflow(name = "kinds")]
impl Kinds {
    pub async fn run(ctx: Workflow<Self>, held: u32) -> Result<u32, Failure> {
        let first = ctx.quick().await?;
        Ok(first + ctx.try_all((0..held).map(|_| ctx.held())).await?.into_iter().sum::<u32>())
    }

    #[step(at_most = 1)]
    async fn held(&self) -> Result<u32, StepError> {
        let _let_go = self.0.acquire().await?;
        Ok(1)
    }

    async fn quick(&self) -> Result<u32, StepError> {
        Ok(1_000)
    }
}

#[tokio::test]
async fn steps_that_wait_for_room_of_their_own_kind_take_none_from_others() {
    let (world, gate) = (World::new(), Arc::new(tokio::sync::Semaphore::new(0)));
    let kinds = Kinds(gate.clone());
    let node = world.start_with(|builder| builder.workflow(kinds)).await;
    let (many, other) = (node.workflow::<Kinds>("many"), node.workflow::<Kinds>("other"));
    many.start(1_100).await.expect("started");
    let are_begun = async || many.status().await.expect("a status").outstanding == 1_100;
    until_true("all of them were begun", are_begun).await;
    other.start(0).await.expect("started");
    assert_eq!(other.result().await.expect("a result"), 1_000);
    gate.add_permits(1);
    assert_eq!(many.result().await.expect("a result"), 2_100);
}

/// A step whose process ends during some attempts, and which fails in others.
#[derive(Default)]
struct Unlucky;

#[workflow(name = "unlucky")]
impl Unlucky {
    pub async fn run(ctx: Workflow<Self>) -> Result<u32, Failure> {
        ctx.work().attempts(3).await
    }

    async fn work(&self, step: &Step) -> Result<u32, StepError> {
        match step.attempt() {
            1 | 6 => Err(StepError::new("closed")),
            2..=5 => std::future::pending().await,
            attempt => Ok(attempt),
        }
    }
}

#[test]
fn attempts_that_ended_with_the_process_do_not_count_as_failed() {
    NodeTest::new().workflow(Unlucky::default).run(async |node| {
        let unlucky = node.workflow::<Unlucky>("a");
        unlucky.start().await.expect("started");
        for _ in 2..=5 {
            node.advance(Duration::from_secs(5)).await;
            node.kill().await;
            node.restart().await;
        }
        node.advance(Duration::from_secs(60)).await;
        let status = unlucky.status().await.expect("a status");
        assert_eq!(status.output, Some(7), "the seventh attempt: {status:?}");
    });
}

/// A workflow of a few lines, over HTTP.
struct Greetings;

#[workflow(name = "greeting", events(name: String))]
impl Greetings {
    /// Greets whoever is named.
    pub async fn run(ctx: Workflow<Self>, word: String) -> Result<String, Failure> {
        if word.is_empty() {
            return Err(Rejection::new("no word").into());
        }
        let name = ctx.name().await?;
        ctx.step("print", move |_| async move { Ok(format!("{word}, {name}")) }).await
    }
}

/// Sends a request: the status, the headers, and the body as JSON.
async fn send(
    request: reqwest::RequestBuilder,
) -> (u16, reqwest::header::HeaderMap, serde_json::Value) {
    let answer = request.send().await.expect("an answer");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("text");
    (status, headers, serde_json::from_str(&text).unwrap_or_default())
}

async fn greetings() -> (String, reqwest::Client, tokio::task::JoinHandle<std::io::Result<()>>) {
    let node = World::new().start_with(|builder| builder.workflow(Greetings)).await;
    let (url, server) = serve(node.router()).await;
    (url, reqwest::Client::new(), server)
}

#[tokio::test]
async fn a_workflow_is_started_told_and_asked_over_http() {
    let (url, http, server) = greetings().await;
    let path = format!("{url}/v1/workflows/greeting/a%2Fb-1");
    assert_eq!(send(http.get(&path)).await.0, 404, "it was not started");
    assert_eq!(send(http.post(format!("{path}/events/name")).body("\"kim\"")).await.0, 404);
    assert_eq!(send(http.post(&path).body("5")).await.0, 422, "the input is a text");
    assert_eq!(send(http.post(&path).body("\"hi")).await.0, 400);

    let (status, headers, body) = send(http.post(&path).body("\"hi\"")).await;
    assert_eq!((status, &body["is_new"], &body["run"]), (202, &true.into(), &1.into()));
    assert_eq!(headers["location"], "/v1/workflows/greeting/a%2Fb-1");
    let joined = send(http.post(&path).body(" \"hi\" ")).await;
    assert_eq!((joined.0, &joined.2["is_new"]), (202, &false.into()));
    let other = send(http.post(&path).body("\"hello\"")).await;
    assert_eq!((other.0, &other.2["type"]), (409, &"urn:stead:problem:workflow-conflict".into()));

    let (status, _, shown) = send(http.get(&path)).await;
    assert_eq!((status, &shown["status"], &shown["input"]), (200, &"running".into(), &"hi".into()));
    assert_eq!(shown["waits_for"][0]["name"], "name");
    assert_eq!((&shown["type"], &shown["key"]), (&"greeting".into(), &"a/b-1".into()));

    assert_eq!(send(http.post(format!("{path}/events/other")).body("1")).await.0, 404);
    assert_eq!(send(http.post(format!("{path}/events/name")).body("1")).await.0, 422);
    let waiting = tokio::spawn(http.get(format!("{path}?wait=30s")).send());
    assert_eq!(send(http.post(format!("{path}/events/name")).body("\"kim\"")).await.0, 202);
    let ended = waiting.await.expect("joined").expect("an answer");
    let ended: serde_json::Value = ended.json().await.expect("JSON");
    assert_eq!((&ended["status"], &ended["output"]), (&"completed".into(), &"hi, kim".into()));
    assert_eq!(send(http.post(format!("{path}/events/name")).body("\"x\"")).await.0, 410);
    assert_eq!(send(http.post(format!("{path}/cancel"))).await.0, 410);

    let (status, _, page) = send(http.get(format!("{path}/history?limit=2"))).await;
    assert_eq!((status, page["turns"].as_array().map(Vec::len)), (200, Some(2)), "{page}");
    let next = page["next"].as_u64().expect("there is more");
    let (_, _, rest) = send(http.get(format!("{path}/history?after={next}"))).await;
    assert_eq!((rest["turns"].as_array().map(Vec::len), &rest["next"]), (Some(1), &().into()));
    assert_eq!(send(http.delete(&path)).await.0, 204);
    assert_eq!(send(http.get(&path)).await.0, 404, "it is purged");
    server.abort();
}

#[tokio::test]
async fn who_waits_over_http_hears_the_result_and_finds_workflows_by_status() {
    let (url, http, server) = greetings().await;
    let now = http.post(format!("{url}/v1/workflows/greeting/now")).header("prefer", "wait=30");
    let waiting = tokio::spawn(now.body("\"hey\"").send());
    let event = format!("{url}/v1/workflows/greeting/now/events/name");
    until_true("it is there", async || send(http.post(&event).body("\"you\"")).await.0 == 202)
        .await;
    let answer = waiting.await.expect("joined").expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.expect("text"), "\"hey, you\"");
    let refused = http.post(format!("{url}/v1/workflows/greeting/no")).header("prefer", "wait=30");
    let refused = send(refused.body("\"\"")).await;
    assert_eq!((refused.0, &refused.2["detail"]), (422, &"no word".into()));

    let (status, _, list) =
        send(http.get(format!("{url}/v1/workflows/greeting?status=completed"))).await;
    assert_eq!((status, list["workflows"].as_array().map(Vec::len)), (200, Some(1)), "{list}");
    let (_, _, all) = send(http.get(format!("{url}/v1/workflows/greeting"))).await;
    assert_eq!(all["workflows"].as_array().map(Vec::len), Some(2), "{all}");
    let (_, _, types) = send(http.get(format!("{url}/v1/workflows"))).await;
    assert_eq!(types["types"][0]["name"], "greeting");
    let (_, _, entities) = send(http.get(format!("{url}/v1/entities"))).await;
    assert!(!entities.to_string().contains("greeting"), "{entities}");
    assert_eq!(send(http.get(format!("{url}/v1/entities/greeting/now"))).await.0, 404);
    assert_eq!(send(http.get(format!("{url}/v1/workflows/counter/a"))).await.0, 404);

    server.abort();
}

#[tokio::test]
async fn a_workflow_behind_a_url_is_used_as_one_of_a_node() {
    let (url, _, server) = greetings().await;
    let client = stead::Client::new(&url).expect("a URL");
    let greeting = client.workflow::<Greetings>("a b/c");
    let code = |error: CallError| match error {
        CallError::Rejected(no) => no.code().unwrap_or("none").to_owned(),
        CallError::Failed(error) => format!("{:?}", error.kind()),
    };
    assert_eq!(greeting.name("kim".into()).await.map_err(code), Err("unknown".into()));
    let missing = greeting.result().await.expect_err("it was not started");
    assert!(matches!(&missing, ResultError::Failed(error) if error.kind() == ErrorKind::NotFound));
    let word = || "hi".to_owned();
    assert!(greeting.start(word()).operation().idempotency_key("k").await.expect("started").is_new);
    assert!(greeting.start(word()).operation().idempotency_key("k").await.expect("again").is_new);
    assert!(!greeting.start(word()).await.expect("joined").is_new);
    assert_eq!(greeting.start("ho".into()).await.map_err(code), Err("conflict".into()));
    let status = greeting.status().await.expect("a status");
    assert_eq!((status.status, &*status.waits_for[0].name), (Some(Status::Running), "name"));
    assert_eq!(
        greeting.result_within::<String>(Duration::from_millis(1)).await.expect("asked"),
        None
    );
    let waiting = tokio::spawn({
        let greeting = greeting.clone();
        async move { greeting.result().await }
    });
    greeting.suspend("a pause").await.expect("suspended");
    greeting.name("kim".into()).await.expect("kept");
    greeting.resume().await.expect("goes on");
    assert_eq!(waiting.await.expect("joined").expect("a result"), "hi, kim");
    assert_eq!(greeting.cancel().await.map_err(code), Err("ended".into()));

    let other = client.workflow::<Greetings>("other");
    greeting.restart_as("other").await.expect("started");
    until_true("it is there", async || other.name("jo".into()).await.is_ok()).await;
    assert_eq!(other.result().await.expect("a result"), "hi, jo");
    let silent = client.instance("greeting", "silent");
    assert!(silent.start_of::<Greetings>(&String::new()).await.expect("started").is_new);
    let failed = silent.result_of::<String>().await.expect_err("no word");
    assert!(
        matches!(&failed, ResultError::Ended(Failure::Rejected(no)) if no.reason() == "no word")
    );
    silent.purge().await.expect("purged");
    assert!(matches!(silent.result_of::<String>().await, Err(ResultError::Failed(_))));
    let counter = client.instance("counter", "c").cancel().await;
    assert_eq!(counter.map_err(code), Err("NotFound".into()), "an entity is no workflow");
    server.abort();
}

/// A run that takes much memory, and is counted as long as it is there.
struct Heavy;

struct Counted;

static HEAVY: AtomicUsize = AtomicUsize::new(0);

impl Counted {
    fn new() -> Self {
        HEAVY.fetch_add(1, Ordering::Relaxed);
        Self
    }
}
impl Drop for Counted {
    fn drop(&mut self) {
        HEAVY.fetch_sub(1, Ordering::Relaxed);
    }
}

#[workflow(name = "heavy", events(go: u32))]
impl Heavy {
    pub async fn run(ctx: Workflow<Self>) -> Result<u32, Failure> {
        let (ballast, _counted) = ([1_u8; 64 << 10], Counted::new());
        let place = ctx.go().await?;
        Ok(u32::from(std::hint::black_box(&ballast)[place as usize]))
    }
}

#[tokio::test]
async fn runs_leave_memory_where_they_take_more_than_there_is_for_entities() {
    let config = Config::with(|config| config.memory = 256 << 20);
    let world = World { config, ..World::new() };
    let node = world.start_with(|builder| builder.workflow(Heavy)).await;
    let runs = 1_500;
    for number in 0..runs {
        let started = node.workflow::<Heavy>(format!("h-{number}")).start().await;
        assert!(started.expect("started").is_new);
    }
    // Their states would have room for long; 1,500 futures are 94 MiB, of which 72 are for entities.
    until_true("some have left", async || HEAVY.load(Ordering::Relaxed) < runs * 9 / 10).await;
    for number in [0, 1, 2, runs / 2, runs - 1] {
        let heavy = node.workflow::<Heavy>(format!("h-{number}"));
        heavy.go(7).await.expect("kept");
        assert_eq!(heavy.result().await.expect("a result"), 1, "h-{number}");
    }
    node.abort().await;
}

/// A report of an earlier program, which writes before it waits.
struct ReportsV1;

#[workflow(name = "report", events(print: u32))]
impl ReportsV1 {
    pub async fn run(ctx: Workflow<Self>) -> Result<String, Failure> {
        let text: String = ctx.step("write", |_| async { Ok("old".to_owned()) }).await?;
        ctx.print().await?;
        Ok(text)
    }
}

/// The same report of a later one, which waits first.
struct Reports;

#[workflow(name = "report", version = 2, events(print: u32), also(1 = ReportsV1))]
impl Reports {
    pub async fn run(ctx: Workflow<Self>) -> Result<String, Failure> {
        ctx.print().await?;
        ctx.step("write", |_| async { Ok("new".to_owned()) }).await
    }
}

#[tokio::test]
async fn a_run_goes_on_with_the_code_that_it_began_with_and_new_ones_begin_with_the_newest() {
    let world = World::new();
    let node = world.start_with(|builder| builder.workflow(ReportsV1)).await;
    let old = node.workflow::<ReportsV1>("a");
    old.start().await.expect("started");
    let writes = async || old.status().await.is_ok_and(|it| it.waits_for[0].name == "print");
    until_true("it has written", writes).await;
    node.drain().await.expect("drained");
    drop(node);

    let node = world.start_with(|builder| builder.with(ReportsV1).workflow(Reports)).await;
    node.workflow::<Reports>("b").start().await.expect("started");
    for (key, expected) in [("a", "old"), ("b", "new")] {
        let report = node.workflow::<Reports>(key);
        report.print(1).await.expect("kept");
        let result = report.result_within::<String>(Duration::from_secs(30)).await;
        assert_eq!(result.expect("asked").as_deref(), Some(expected), "{key}");
    }
    let versions = async |key| node.workflow::<Reports>(key).status().await.expect("read").version;
    assert_eq!((versions("a").await, versions("b").await), (1, 2));
    node.abort().await;
}
