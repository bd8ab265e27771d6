//! Instances of workflows beside callers and beside one another: starts at the same time, what is told before it is
//! durable, what a purge takes along, and that a driver makes the history that a node makes.

use stead::{
    Answer, Failure, entity,
    testing::{NodeTest, TestNode, WorkflowDriver},
    workflow,
    workflow::{Of2, SavedHistory, StartPolicy, Started, Status, StepError, Workflow},
};

use stead_tests::random::Random;

use super::*;

/// Asks an entity for what is refused and for what fails, and waits.
#[derive(Default)]
struct Notes;

#[workflow(name = "note", events(go: u32))]
impl Notes {
    pub async fn run(ctx: Workflow<Self>, number: u32) -> Result<u32, Failure> {
        let noted = ctx.note(number).await?;
        let refused = ctx.entity::<Journal>("j").refuse(1).await.is_err();
        let failed = number > 1 && ctx.entity::<Journal>("j").explode(1).await.is_err();
        ctx.sleep(Duration::from_secs(5)).await?;
        let waited = ctx.race((ctx.sleep(Duration::from_secs(60)), ctx.go())).await;
        let more = match waited {
            Of2::First(_) => 0,
            Of2::Second(more) => more?,
        };
        Ok(noted + more + u32::from(refused) * 100 + u32::from(failed) * 1_000)
    }

    async fn note(&self, number: u32) -> Result<u32, StepError> {
        Ok(number)
    }
}

#[test]
fn what_is_asked_is_answered_once_also_where_it_became_a_dead_letter() {
    let node = NodeTest::new().entity::<Journal>().workflow(Notes::default);
    node.crash_everywhere(async |node| {
        node.workflow::<Notes>("a").start(2).await.expect("started");
        node.advance(Duration::from_secs(100)).await;
        let status = node.workflow::<Notes>("a").status().await.expect("a status");
        assert_eq!(status.output, Some(1_102), "it said no, and it failed: {status:?}");
        assert!(node.entity::<Journal>("j").entries().await.expect("read").is_empty());
    });
}

/// Tells notes to go on that may not be there yet, and asks one.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Herald {
    refused: u32,
}

#[entity(name = "herald")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Herald {
    pub fn tell(&mut self, ctx: &mut Context, go: u32) {
        ctx.signal(Notes::of("a").go(go));
        ctx.ask(Notes::of("b").go(go), Self::of(ctx.key()).on_asked());
    }

    pub(crate) fn on_asked(&mut self, answer: Answer<()>) {
        self.refused += u32::from(answer.is_err());
    }

    pub fn refused(&self) -> u32 {
        self.refused
    }
}

#[test]
fn an_event_that_is_sent_before_the_start_waits_for_it_and_who_hears_is_refused() {
    let node = NodeTest::new().entity::<Herald>().entity::<Journal>().workflow(Notes::default);
    node.crash_everywhere(async |node| {
        let note = node.workflow::<Notes>("a");
        node.entity::<Herald>("h").tell(7).await.expect("applied");
        note.go(8).signal().await.expect("accepted");
        node.advance(Duration::from_secs(1)).await;
        assert_eq!(node.entity::<Herald>("h").refused().await.expect("read"), 1);
        note.go(9).await.expect_err("not started");
        let status = note.status().await.expect("a status");
        assert_eq!((status.status, status.waiting_events), (None, 2));
        note.start(1).await.expect("started");
        node.advance(Duration::from_secs(10)).await;
        let status = note.status().await.expect("a status");
        assert_eq!((status.output, status.run), (Some(108), 1), "the first one: {status:?}");
    });
}

/// How many callers start the same at the same time.
const CALLERS: u32 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_starts_of_one_id_at_the_same_time_one_begins_a_run() {
    let world = World::new();
    let node = world.start_with(|builder| builder.workflow(Notes)).await;
    let start = async |key: &str, policy: StartPolicy| {
        let starts = (0..CALLERS).map(|caller| {
            let start = node.workflow::<Notes>(key).start(caller % 2).policy(policy);
            tokio::spawn(start.into_future())
        });
        let mut started = Vec::<Result<Started, CallError>>::new();
        for start in starts.collect::<Vec<_>>() {
            started.push(start.await.expect("joined"));
        }
        started
    };
    for policy in [StartPolicy::Join, StartPolicy::Once] {
        let key = format!("{policy:?}");
        let started = start(&key, policy).await;
        let new = started.iter().flatten().filter(|started| started.is_new).count();
        let joined = started.iter().flatten().filter(|started| !started.is_new).count();
        assert_eq!((new, joined), (1, 31), "{policy:?}: one input joins, and the other does not");
        assert!(started.iter().flatten().all(|started| started.run == 1));
    }
    let replaced = start("Replace", StartPolicy::Replace).await;
    let mut runs: Vec<_> = replaced.into_iter().map(|it| it.expect("started").run).collect();
    runs.sort_unstable();
    assert_eq!(runs, (1..=CALLERS).collect::<Vec<_>>(), "one behind the other");
    let last = node.workflow::<Notes>("Replace").status().await.expect("a status");
    assert_eq!((last.status, last.run), (Some(Status::Running), CALLERS));
    node.abort().await;
}

#[tokio::test]
async fn statuses_results_and_answers_of_starts_rest_on_what_is_durable() {
    let world = World::new();
    let node = world.start_with(|builder| builder.workflow(Notes)).await;
    let note = node.workflow::<Notes>("a");
    note.start(1).await.expect("started");
    let waits =
        async || note.status().await.is_ok_and(|it| it.waits_for[0].kind == workflow::Kind::Timer);
    until_true("it sleeps", waits).await;
    let result = tokio::spawn({
        let note = note.clone();
        async move { note.result().await }
    });
    world.disk.stall();
    world.advance(100);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer =
        tokio::time::timeout(Duration::from_millis(100), note.status().into_future()).await;
    let status = answer.map(|status| status.expect("a status").status);
    assert!(status.is_err() || status == Ok(Some(Status::Running)), "not durable: {status:?}");
    let second = tokio::spawn(node.workflow::<Notes>("b").start(2).into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!result.is_finished() && !second.is_finished(), "nothing of it is durable");
    world.disk.resume();
    let has_ended = async || {
        world.advance(10);
        result.is_finished()
    };
    until_true("it ends", has_ended).await;
    assert_eq!(result.await.expect("joined").expect("a result"), 101);
    assert!(second.await.expect("joined").expect("started").is_new);
    node.abort().await;
}

/// The rows of all tables but the first, in whose keys one of these is; the key of a state ends with its id.
fn rows_of(world: &World, parts: &[&str]) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Meta) {
        for (key, value) in world.disk.rows(table) {
            let text = String::from_utf8_lossy(&key).into_owned() + "\0";
            if parts.iter().any(|part| text.contains(part)) {
                found.push((table, key, value));
            }
        }
    }
    found
}

#[tokio::test]
async fn a_purge_takes_every_row_of_an_instance_and_none_of_another() {
    let world = World::new();
    let node = world.start_with(|builder| builder.workflow(Notes)).await;
    for key in ["a", "a1", "ab", "a/b"] {
        node.workflow::<Notes>(key).start(1).await.expect("started");
        node.workflow::<Notes>(key).go(7).await.expect("kept");
    }
    for key in ["a", "a1", "ab", "a/b"] {
        let sleeps = async || {
            let status = node.workflow::<Notes>(key).status().await.expect("a status");
            status.waits_for.iter().any(|wait| wait.kind == workflow::Kind::Timer)
        };
        until_true("it sleeps", sleeps).await;
    }
    assert!(rows_of(&world, &["note/a\0"]).len() > 3, "a history, a timer, an event");
    node.workflow::<Notes>("a").terminate("enough").await.expect("terminated");
    // Its event becomes a dead letter, which is no row of it.
    until_true("the event has ended", async || world.disk.rows(Table::Inbox).is_empty()).await;
    let others = || rows_of(&world, &["note/a1", "note/ab", "note/a/b"]);
    let before = others();
    node.workflow::<Notes>("a").purge().await.expect("purged");
    let left = rows_of(&world, &["note/a\0"]);
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(others(), before);
    world.advance(100);
    for key in ["a1", "ab", "a/b"] {
        let result = node.workflow::<Notes>(key).result().await;
        assert_eq!(result.expect("a result"), 108, "{key}");
    }
    node.abort().await;
}

/// Everything that a driver and a node do: steps, calls and timers side by side, children, events, runs that follow.
struct Parcels;

#[workflow(name = "parcel", events(label: u32, stop: ()))]
impl Parcels {
    pub async fn run(ctx: Workflow<Self>, rounds: u32) -> Result<u32, Failure> {
        let packed =
            ctx.try_all((0..3).map(|piece| ctx.step("pack", move |_| async move { Ok(piece) })));
        let mut sum: u32 = packed.await?.into_iter().sum();
        let journal = ctx.entity::<Journal>("parcels");
        let (one, two, three) =
            ctx.all((journal.append(1), journal.append(2), journal.append(3))).await;
        sum += one? * two? * three?;
        for _ in 0..rounds {
            let label = ctx.label().within(Duration::from_secs(100));
            match ctx.race((label, ctx.stop(), ctx.sleep(Duration::from_secs(70)))).await {
                workflow::Of3::First(label) => sum += label?.unwrap_or(1),
                workflow::Of3::Second(stopped) => return stopped.map(|()| sum),
                workflow::Of3::Third(_) => ctx.signal(Journal::of("parcels").append(sum)),
            }
            sum += ctx.child(Notes::of("child").start(0)).await.unwrap_or(5);
        }
        if rounds == 0 {
            return Ok(sum);
        }
        ctx.continue_as(rounds - 1).await
    }
}

/// What is done to a parcel from outside.
#[derive(Debug, Clone, Copy)]
enum Act {
    Label(u32),
    Advance(u64),
    Pause(u64),
    Stop,
    Cancel,
}

impl Act {
    fn random(random: &mut Random) -> Self {
        match random.below(12) {
            0..4 => Self::Label(random.below(5) as u32),
            4..8 => Self::Advance([30, 80][random.below(2) as usize]),
            8..10 => Self::Pause([30, 80][random.below(2) as usize]),
            10 => Self::Stop,
            _ => Self::Cancel,
        }
    }

    /// The seconds that pass behind it: what follows by itself comes before what is done next.
    fn seconds(self) -> u64 {
        if let Self::Advance(seconds) = self { seconds } else { 1 }
    }

    fn drive(self, parcel: &mut WorkflowDriver<Parcels>) {
        // What comes for one that has ended is refused.
        let _refused = match self {
            Self::Label(label) => parcel.event("label", label),
            Self::Advance(_) => Ok(()),
            Self::Pause(length) => {
                let _refused = parcel.suspend("a pause");
                parcel.advance(Duration::from_secs(length)).expect("time passes");
                parcel.resume()
            }
            Self::Stop => parcel.event("stop", ()),
            Self::Cancel => parcel.cancel(),
        };
        parcel.advance(Duration::from_secs(self.seconds())).expect("time passes");
    }

    async fn ask(self, node: &TestNode) {
        let parcel = node.workflow::<Parcels>("p");
        let _refused = match self {
            Self::Label(label) => parcel.label(label).await,
            Self::Advance(_) => Ok(()),
            Self::Pause(length) => {
                let _refused = parcel.suspend("a pause").await;
                node.advance(Duration::from_secs(length)).await;
                parcel.resume().await
            }
            Self::Stop => parcel.stop(()).await,
            Self::Cancel => parcel.cancel().await,
        };
        node.advance(Duration::from_secs(self.seconds())).await;
    }
}

/// The turns of a history without their times.
fn timeless(history: &SavedHistory) -> serde_json::Value {
    fn strip(value: &mut serde_json::Value) {
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|name, _| name != "at" && name != "due");
            fields.values_mut().for_each(strip);
        }
        value.as_array_mut().into_iter().flatten().for_each(strip);
    }
    let mut turns = serde_json::to_value(history).expect("storable")["turns"].take();
    strip(&mut turns);
    turns
}

#[test]
fn a_driver_makes_the_history_that_a_node_makes() {
    for seed in 0..25 {
        let mut random = Random(seed);
        let acts: Vec<_> = (0..12).map(|_| Act::random(&mut random)).collect();
        let mut parcel = WorkflowDriver::new("p", Parcels).workflow(Notes);
        parcel = parcel.entity::<Journal>();
        parcel.start(2).expect("started");
        parcel.advance(Duration::from_secs(1)).expect("time passes");
        for act in &acts {
            act.drive(&mut parcel);
        }
        let driven = parcel.history();
        let node = NodeTest::new().seed(seed).entity::<Journal>();
        node.workflow(Notes::default).workflow(|| Parcels).run(async |node| {
            node.workflow::<Parcels>("p").start(2).await.expect("started");
            node.advance(Duration::from_secs(1)).await;
            for act in &acts {
                act.ask(&node).await;
            }
            let made = node.workflow::<Parcels>("p").history().await.expect("readable");
            assert_eq!(timeless(&made), timeless(&driven), "seed {seed}: {acts:?}");
        });
    }
}
