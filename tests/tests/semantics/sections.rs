//! Critical sections on a node: while a workflow has locked entities nobody else's operations are applied to them, whatever
//! crashes and however many wait; and no lock outlives its section.

use stead::{
    Context, Failure, Routes,
    testing::{CommitFaults, NodeTest, TestNode},
    workflow,
    workflow::{Instance, Status, Workflow},
};

use stead_tests::random::Random;

use super::*;

/// An account that remembers who did what.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema, Layout)]
struct Safe {
    log: Vec<String>,
}

#[entity(name = "safe")]
impl Safe {
    pub fn note(&mut self, what: String) -> u64 {
        self.log.push(what);
        self.log.len() as u64
    }

    pub fn note_from(
        &mut self,
        ctx: &mut Context,
        at: Timestamp,
        what: String,
    ) -> Result<(), Failure> {
        if ctx.now() < at {
            return Err(Failure::retry("it is too early").after(Duration::from_secs(5)));
        }
        self.log.push(what);
        Ok(())
    }

    pub fn burn(&mut self, ctx: &mut Context) {
        ctx.delete();
    }

    /// What was done.
    pub fn log(&self) -> Vec<String> {
        self.log.clone()
    }
}

/// Sends many notes at one time.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema, Layout)]
struct Noise {}

#[entity(name = "noise")]
impl Noise {
    pub fn make(&mut self, ctx: &mut Context, safe: String, count: u32) {
        for number in 0..count {
            ctx.signal(Safe::of(&safe).note(format!("{}-{number}", ctx.key())));
        }
    }
}

/// Opens safes, does something for a while, and closes them.
struct Visits;

#[workflow(name = "visit")]
impl Visits {
    pub async fn run(ctx: Workflow<Self>, safes: Vec<String>, burns: bool) -> Result<u64, Failure> {
        let ids = safes.iter().map(|safe| EntityId::new("safe", safe).expect("valid"));
        let _section = ctx.lock(ids).await?;
        for safe in &safes {
            ctx.entity::<Safe>(safe).note(format!("{} in", ctx.key())).await?;
        }
        ctx.sleep(Duration::from_secs(100)).await?;
        if burns {
            ctx.entity::<Safe>(&safes[0]).burn().await?;
        }
        let mut last = 0;
        for safe in safes.iter().rev() {
            last = ctx.entity::<Safe>(safe).note(format!("{} out", ctx.key())).await?;
        }
        Ok(last)
    }
}

/// Sends something that is taken later, and locks then.
struct Messages;

#[workflow(name = "message")]
impl Messages {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        let at = ctx.now() + Duration::from_secs(8);
        ctx.signal(Safe::of("a").note_from(at, "first".into()));
        let _section = ctx.lock([EntityId::new("safe", "a").expect("valid")]).await?;
        ctx.entity::<Safe>("a").note("second".into()).await?;
        Ok(())
    }
}

fn sections() -> NodeTest {
    let test = NodeTest::new().entity::<Safe>().entity::<Noise>();
    test.workflow(|| Visits).workflow(|| Messages)
}

async fn status(node: &TestNode, key: &str) -> Option<Status> {
    node.workflow::<Visits>(key).status().await.expect("a status").status
}

/// Whether nothing was noted between the ins and outs of the visits; returns how much was noted beside them.
fn beside(log: &[String]) -> usize {
    let mut inside: Option<&str> = None;
    let mut others = 0;
    for line in log {
        match (line.split_once(' '), inside) {
            (Some((visit, "in")), None) => inside = Some(visit),
            (Some((visit, "out")), Some(known)) if visit == known => inside = None,
            (None, None) => others += 1,
            _ => panic!("{line} is inside of {inside:?}: {log:?}"),
        }
    }
    others
}

async fn visits(node: TestNode) {
    for (visit, safes) in [("one", ["a", "b"]), ("two", ["b", "a"]), ("three", ["b", "c"])] {
        let safes = safes.map(str::to_owned).to_vec();
        node.workflow::<Visits>(visit).start(safes, false).await.expect("started");
    }
    node.advance(Duration::from_secs(1)).await;
    for noise in ["x", "y"] {
        node.entity::<Noise>(noise).make("b".into(), 20).await.expect("made");
    }
    node.advance(Duration::from_secs(1)).await;
    let before = node.entity::<Safe>("b").log().await.expect("read").len();
    assert!(before <= 1, "it is locked, or on its way to be");
    node.advance(Duration::from_secs(2_000)).await;
    for visit in ["one", "two", "three"] {
        let visit = node.workflow::<Visits>(visit);
        if visit.status().await.expect("a status").stuck.is_some() {
            // Its process ended during three attempts of one turn.
            visit.retry().await.expect("tried again");
            node.advance(Duration::from_secs(1_000)).await;
        }
    }
    for visit in ["one", "two", "three"] {
        let status = node.workflow::<Visits>(visit).status().await.expect("a status");
        assert_eq!(status.status, Some(Status::Completed), "{visit}: {status:?}");
    }
    let log = node.entity::<Safe>("b").log().await.expect("read");
    assert_eq!((log.len(), beside(&log)), (46, 40), "{log:?}");
    for noise in ["x", "y"] {
        let of = |line: &&String| line.starts_with(noise);
        let numbers = log.iter().filter(of).map(|line| line.split_once('-').expect("a number").1);
        let numbers: Vec<u32> = numbers.map(|number| number.parse().expect("a number")).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>(), "in the order of their sender");
    }
    node.assert_no_dead_letters().await;
}

#[test]
fn nobody_comes_between_the_operations_of_a_section() {
    sections().run(visits);
}

#[test]
fn sections_survive_a_crash_before_and_behind_every_commit() {
    sections().crash_everywhere(visits);
}

#[test]
fn sections_survive_faults_by_seed() {
    sections().faults(CommitFaults::usual()).run_seeds(0..30, visits);
}

#[test]
fn who_has_the_lock_passes_more_than_a_mailbox_of_others_also_behind_a_restart() {
    for restarts in [false, true] {
        let config = Config::with(|config| config.mailbox_max = 16);
        sections().config(config).run(async move |node| {
            let visit = node.workflow::<Visits>("v");
            visit.start(vec!["a".into()], false).await.expect("started");
            node.advance(Duration::from_secs(1)).await;
            for noise in 0..10 {
                let noise = format!("{noise}");
                node.entity::<Noise>(&noise).make("a".into(), 20).await.expect("made");
            }
            node.advance(Duration::from_secs(1)).await;
            if restarts {
                node.kill().await;
                node.restart().await;
            }
            node.advance(Duration::from_secs(200)).await;
            assert_eq!(status(&node, "v").await, Some(Status::Completed), "{restarts}");
            let log = node.entity::<Safe>("a").log().await.expect("read");
            assert_eq!((log.len(), beside(&log)), (202, 200), "{restarts}");
            assert_eq!(log[1], "v out", "{restarts}: nobody came before");
        });
    }
}

#[test]
fn a_lock_of_nobody_is_let_go_when_others_have_waited_for_long() {
    sections().run(async |node| {
        let visit = node.workflow::<Visits>("v");
        visit.start(vec!["a".into()], false).await.expect("started");
        node.advance(Duration::from_secs(1)).await;
        // Behind its back: its code has no chance to let go.
        node.delete::<Instance<Visits>>("v").await.expect("deleted");
        node.entity::<Noise>("x").make("a".into(), 1).await.expect("made");
        node.advance(Duration::from_secs(50)).await;
        assert_eq!(node.entity::<Safe>("a").log().await.expect("read"), ["v in"]);
        node.advance(Duration::from_secs(20)).await;
        assert_eq!(node.entity::<Safe>("a").log().await.expect("read"), ["v in", "x-0"]);
    });
}

#[test]
fn a_workflow_of_the_same_key_gets_the_lock_that_an_earlier_one_has_left() {
    sections().run(async |node| {
        let visit = node.workflow::<Visits>("v");
        visit.start(vec!["a".into()], false).await.expect("started");
        node.advance(Duration::from_secs(1)).await;
        node.delete::<Instance<Visits>>("v").await.expect("deleted");
        visit.start(vec!["a".into()], false).await.expect("started");
        node.advance(Duration::from_secs(300)).await;
        assert_eq!(status(&node, "v").await, Some(Status::Completed));
        let log = node.entity::<Safe>("a").log().await.expect("read");
        assert_eq!(log, ["v in", "v in", "v out"]);
    });
}

#[test]
fn a_lock_comes_behind_what_its_workflow_has_sent_before() {
    sections().run(async |node| {
        node.workflow::<Messages>("m").start().await.expect("started");
        node.advance(Duration::from_secs(60)).await;
        assert_eq!(node.entity::<Safe>("a").log().await.expect("read"), ["first", "second"]);
        node.assert_no_dead_letters().await;
    });
}

#[test]
fn what_is_asked_under_a_lock_that_is_gone_is_refused() {
    sections().run(async |node| {
        let visit = node.workflow::<Visits>("v");
        visit.start(vec!["a".into()], true).await.expect("started");
        node.advance(Duration::from_secs(200)).await;
        let status = visit.status().await.expect("a status");
        assert_eq!(status.status, Some(Status::Failed), "{status:?}");
        let why = status.failure.expect("a failure").to_string();
        assert!(why.contains("is not locked by who asks any more"), "{why}");
        assert_eq!(node.entity::<Safe>("a").note("later".into()).await.expect("applied"), 1);
    });
}

#[test]
fn an_operator_ends_a_lock_and_its_holder_is_refused_from_then_on() {
    let config = Config::with(|config| config.mailbox_max = 16);
    sections().config(config).run(async |node| {
        let visit = node.workflow::<Visits>("v");
        visit.start(vec!["a".into()], false).await.expect("started");
        node.advance(Duration::from_secs(1)).await;
        for noise in ["x", "y"] {
            node.entity::<Noise>(noise).make("a".into(), 20).await.expect("made");
        }
        node.advance(Duration::from_secs(1)).await;
        let operator = node.node().await;
        let [safe, other] = ["a", "b"].map(|key| EntityId::new("safe", key).expect("valid"));
        assert_eq!(operator.lock_of(&other).await.expect("read"), None);
        let lock = operator.lock_of(&safe).await.expect("read").expect("it is locked");
        assert_eq!(lock.holder, "visit/v");
        assert_eq!(visit.status().await.expect("a status").locks, ["safe/a"]);
        let refused = async |id: &EntityId, holder: Option<&str>| {
            operator.free_lock(id, holder).await.expect_err("refused").kind()
        };
        assert_eq!(refused(&safe, Some("visit/w")).await, ErrorKind::Conflict);
        assert_eq!(refused(&other, None).await, ErrorKind::NotFound);
        operator.free_lock(&safe, Some("visit/v")).await.expect("it passes what waits");
        assert_eq!(refused(&safe, None).await, ErrorKind::NotFound);
        drop(operator);
        node.kill().await;
        node.restart().await;
        node.advance(Duration::from_secs(200)).await;
        let status = visit.status().await.expect("a status");
        let why = status.failure.expect("a failure").to_string();
        assert!(why.contains("is not locked by who asks any more"), "{why}");
        let log = node.entity::<Safe>("a").log().await.expect("read");
        assert_eq!((log.len(), &*log[0]), (41, "v in"), "{log:?}");
    });
}

/// Frees locks at random moments, through crashes: nothing of a holder is applied that has lost its lock.
#[test]
fn what_is_asked_under_a_lock_that_an_operator_has_ended_is_refused_whenever_that_was() {
    let mut ended = 0;
    for seed in 0..40 {
        let test = sections().seed(seed).faults(CommitFaults::usual());
        let count = std::rc::Rc::<std::cell::Cell<u32>>::default();
        let counted = count.clone();
        test.run(async move |node| {
            let mut random = Random(seed);
            for visit in 0..4 {
                let mut safes = ["a", "b", "c"].map(str::to_owned).to_vec();
                safes.remove(random.below(3) as usize);
                let visit = node.workflow::<Visits>(format!("v{visit}"));
                visit.start(safes, false).await.expect("started");
            }
            let mut lost = Vec::new();
            for _ in 0..6 {
                node.advance(Duration::from_secs(1 + random.below(100))).await;
                let safe = ["a", "b", "c"][random.below(3) as usize];
                let id = EntityId::new("safe", safe).expect("valid");
                let operator = node.node().await;
                let Ok(Some(lock)) = operator.lock_of(&id).await else { continue };
                if operator.free_lock(&id, Some(&lock.holder)).await.is_ok() {
                    let log = node.entity::<Safe>(safe).log().await.expect("read");
                    lost.push((safe, lock.holder, log.len()));
                }
            }
            counted.set(lost.len() as u32);
            node.advance(Duration::from_secs(3_000)).await;
            for (safe, holder, length) in lost {
                let log = node.entity::<Safe>(safe).log().await.expect("read");
                let key = holder.strip_prefix("visit/").expect("a visit");
                let late = log[length..].iter().find(|line| line.starts_with(key));
                assert_eq!(late, None, "{holder} had lost {safe}: {log:?}");
            }
        });
        ended += count.get();
    }
    assert!(ended > 40, "only {ended} locks were ended");
}

#[tokio::test]
async fn a_lock_is_seen_and_ended_over_http() {
    let world = World::new();
    let node = world.start_with(|builder| builder.entity::<Safe>().workflow(Visits)).await;
    let (url, server) = serve(node.router()).await;
    let (shown, narrow) = serve(node.router_of(Routes::new().entity::<Safe>())).await;
    let http = reqwest::Client::new();
    let ask = async |method: reqwest::Method, url: String| {
        let answer = http.request(method, url).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let json: serde_json::Value = answer.json().await.unwrap_or_default();
        (status, json)
    };
    let [get, delete] = [reqwest::Method::GET, reqwest::Method::DELETE];
    let path = "v1/entities/safe/a/lock";
    assert_eq!(ask(get.clone(), format!("{url}/{path}")).await.0, 404);
    assert_eq!(ask(delete.clone(), format!("{url}/{path}")).await.0, 404);
    node.workflow::<Visits>("v").start(vec!["a".into()], false).await.expect("started");
    let is_locked = async || ask(get.clone(), format!("{url}/{path}")).await.0 == 200;
    until_true("it is locked", is_locked).await;
    let lock = ask(get.clone(), format!("{url}/{path}")).await.1;
    assert_eq!(lock["holder"], "visit/v");
    assert!(lock["since"].is_string(), "{lock}");
    let hidden = ask(get, format!("{shown}/{path}")).await.1;
    assert!(hidden["holder"].is_null() && hidden["since"] == lock["since"], "{hidden}");
    let (status, refused) = ask(delete.clone(), format!("{url}/{path}?holder=visit/w")).await;
    assert_eq!((status, &refused["detail"]), (409, &"safe/a is locked by another workflow".into()));
    assert_eq!(ask(delete.clone(), format!("{url}/{path}?holder=visit/v")).await.0, 204);
    assert_eq!(ask(delete, format!("{url}/{path}")).await.0, 404);
    server.abort();
    narrow.abort();
}
