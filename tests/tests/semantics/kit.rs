//! The kit for tests of entities: a test on it passes where the entities are right whatever goes wrong, and
//! fails where they are not.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use stead::{
    Answer, Failure,
    testing::{CommitFaults, Committed, NodeTest, TestNode},
};

use super::*;

/// An outside service, which does a thing once for each token where it is told it.
#[derive(Default)]
struct Bank {
    by_token: Mutex<BTreeMap<String, u64>>,
    without: Mutex<u64>,
    calls: std::sync::atomic::AtomicU64,
}

impl Bank {
    fn pay(&self, token: &str, cents: u64) {
        self.by_token.lock().expect("whole").insert(token.to_owned(), cents);
        *self.without.lock().expect("whole") += cents;
    }

    fn paid(&self) -> u64 {
        self.by_token.lock().expect("whole").values().sum()
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Purse {
    cents: u64,
}

#[entity(name = "purse")]
impl Purse {
    pub fn fill(&mut self, cents: u64) -> u64 {
        self.cents += cents;
        self.cents
    }

    pub fn take(&mut self, cents: u64) -> Result<u64, Rejection> {
        self.cents = self.cents.checked_sub(cents).ok_or_else(|| Rejection::new("too little"))?;
        Ok(self.cents)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Trip {
    steps: Vec<String>,
}

#[entity(name = "trip", needs(Bank))]
impl Trip {
    pub fn book(&mut self, ctx: &mut Context, purse: String, cents: u64) {
        ctx.ask(Purse::of(purse).take(cents), Self::of(ctx.key()).on_taken(cents));
        ctx.remind("leave", After(Duration::from_secs(24 * 3_600)), Self::of(ctx.key()).leave());
    }

    pub(crate) fn on_taken(&mut self, ctx: &mut Context, answer: Answer<u64>, cents: u64) {
        match answer {
            Ok(left) => {
                self.steps.push(format!("taken, {left} left"));
                ctx.signal(Self::of(ctx.key()).pay(cents));
            }
            Err(why) => {
                self.steps.push(format!("not taken: {why}"));
                ctx.cancel_reminder("leave");
            }
        }
    }

    /// Pays at the second try, after a while.
    #[operation(backoff = Duration::from_secs(60))]
    pub(crate) async fn pay(&mut self, ctx: &mut Context, cents: u64) -> Result<(), Failure> {
        let bank = ctx.get::<Bank>();
        tokio::time::sleep(Duration::from_secs(2)).await;
        if bank.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Failure::retry("the bank is closed"));
        }
        bank.pay(&ctx.token(), cents);
        self.steps.push("paid".into());
        Ok(())
    }

    pub(crate) fn leave(&mut self) {
        self.steps.push("left".into());
    }

    /// Goes on for ever.
    pub fn wander(&mut self, ctx: &mut Context) {
        ctx.signal(Self::of(ctx.key()).wander());
    }

    pub async fn rest(&mut self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    pub fn hourly(&mut self, ctx: &mut Context) {
        ctx.remind("hourly", Every(Duration::from_secs(3_600)), Self::of(ctx.key()).leave());
    }
}

fn trips() -> NodeTest {
    NodeTest::new().entity::<Purse>().entity::<Trip>().with(Bank::default)
}

async fn two_trips(node: TestNode) {
    assert_eq!(node.entity::<Purse>("kim").fill(70).await.expect("filled"), 70);
    node.entity::<Trip>("a").book("kim".into(), 50).await.expect("booked");
    node.assert_settles().await;
    node.entity::<Trip>("b").book("kim".into(), 50).signal().await.expect("accepted");
    node.assert_settles().await;
    node.advance(Duration::from_secs(25 * 3_600)).await;
    let steps = async |key: &str| node.state::<Trip>(key).await.expect("read").steps;
    assert_eq!(steps("a").await, ["taken, 20 left", "paid", "left"]);
    assert_eq!(steps("b").await, ["not taken: rejected: too little"]);
    assert_eq!(node.state::<Purse>("kim").await.expect("read").cents, 20);
    assert_eq!(node.dependency::<Bank>().paid(), 50);
    assert!(node.dead_letters().await.expect("read").is_empty());
}

#[test]
fn a_test_passes_with_a_crash_before_and_behind_every_commit() {
    trips().crash_everywhere(two_trips);
}

#[test]
fn a_test_passes_with_faults_by_seed_and_they_do_happen() {
    let starts = std::sync::atomic::AtomicU64::new(0);
    let counted = async |node: TestNode| {
        two_trips(node.clone()).await;
        starts.fetch_add(node.starts(), Ordering::SeqCst);
    };
    trips().faults(CommitFaults::usual()).run_seeds(0..30, counted);
    assert!(starts.load(Ordering::SeqCst) > 60, "{starts:?} starts");
    // One kind at a time.
    for set in [
        |faults: &mut CommitFaults| faults.refused = 0.3,
        |faults: &mut CommitFaults| faults.answer_lost = 0.3,
        |faults: &mut CommitFaults| faults.crash_before = 0.3,
        |faults: &mut CommitFaults| faults.crash_after = 0.3,
        |faults: &mut CommitFaults| faults.delay = Duration::from_millis(500),
    ] {
        trips().faults(CommitFaults::default().with(set)).run_seeds(0..5, two_trips);
    }
}

#[test]
fn what_is_wrong_turns_a_test_red() {
    let fails = |test: &dyn Fn()| catch_unwind(AssertUnwindSafe(test)).is_err();
    // Money that is paid at each attempt is paid twice where an attempt is repeated.
    let is_paid_once = async |node: TestNode| {
        two_trips(node.clone()).await;
        assert_eq!(*node.dependency::<Bank>().without.lock().expect("whole"), 50);
    };
    trips().run(is_paid_once);
    assert!(fails(&|| trips().crash_everywhere(is_paid_once)));
    // What waits for a type that nobody hosts does not settle, and is named.
    let hangs = catch_unwind(|| {
        NodeTest::new().entity::<Trip>().with(Bank::default).run(async |node| {
            node.entity::<Trip>("a").book("kim".into(), 50).await.expect("booked");
            node.assert_settles().await;
        });
    });
    let why = hangs.expect_err("it hangs");
    let why = why.downcast_ref::<String>().expect("a text");
    assert!(why.contains("not settled") && why.contains("take for purse/kim"), "{why}");
    // A failure is told at once, and not repeated.
    let unknown = async |node: TestNode| {
        let asked = node.entity::<Purse>("x").take(1).await;
        assert_eq!(kind(&asked.expect_err("not hosted")), Some(ErrorKind::NotFound));
    };
    NodeTest::new().run(unknown);
}

#[test]
fn effects_are_seen_in_order_and_a_run_is_the_same_each_time() {
    let seen = || {
        let log = Mutex::new(Vec::new());
        trips().seed(3).faults(CommitFaults::usual()).run(async |node| {
            two_trips(node.clone()).await;
            *log.lock().expect("whole") = node.take_committed();
            assert!(node.take_committed().is_empty());
        });
        log.into_inner().expect("whole")
    };
    let first = seen();
    assert_eq!(first, seen());
    trips().run(async |node| {
        node.entity::<Purse>("kim").fill(70).await.expect("filled");
        node.entity::<Trip>("a").book("kim".into(), 80).await.expect("booked");
        node.assert_settles().await;
        let texts = node.take_committed().into_iter().map(|it| match it {
            Committed::Sent { from, to, operation, .. } => format!("{from} -> {to}.{operation}"),
            Committed::ReminderSet { entity, name, operation, .. } => {
                format!("{entity}: {name} is set to {operation}")
            }
            Committed::ReminderEnded { entity, name } => format!("{entity}: {name} ends"),
            Committed::State { entity, revision } => format!("{entity} at {revision}"),
            other => format!("{other:?}"),
        });
        assert_eq!(
            texts.collect::<Vec<_>>(),
            [
                "purse/kim at 1",
                "trip/a -> purse/kim.take",
                "trip/a: leave is set to leave",
                "trip/a at 1",
                "purse/kim -> trip/a.on_taken",
                "trip/a: leave ends",
                "trip/a at 2",
            ]
        );
    });
}

#[test]
fn time_moves_when_told_and_over_downtime() {
    let began = std::time::Instant::now();
    trips().run(async |node| {
        let start = node.now();
        node.entity::<Purse>("kim").fill(70).await.expect("filled");
        node.entity::<Trip>("a").book("kim".into(), 50).await.expect("booked");
        assert_eq!(node.now(), start, "nothing has waited for anything");
        node.kill().await;
        let asked = node.entity::<Purse>("kim").fill(1);
        let asked = tokio::spawn(async move { asked.await });
        node.advance(Duration::from_secs(3_600)).await;
        assert!(!asked.is_finished(), "it waits for the node");
        node.restart().await;
        assert_eq!(asked.await.expect("ends").expect("filled"), 21);
        node.assert_settles().await;
        assert_eq!(node.state::<Trip>("a").await.expect("read").steps.len(), 2, "paid");
        node.advance(Duration::from_secs(22 * 3_600)).await;
        assert_eq!(node.state::<Trip>("a").await.expect("read").steps.len(), 2, "not yet");
        node.advance(Duration::from_secs(3_600)).await;
        assert_eq!(node.state::<Trip>("a").await.expect("read").steps.len(), 3, "left");
        node.advance(Duration::from_secs(365 * 24 * 3_600)).await;
        assert_eq!(node.starts(), 2);
    });
    println!("a year takes {:?}", began.elapsed());
}

#[test]
fn a_fault_that_a_test_injects_is_told_or_survived() {
    trips().run(async |node| {
        let purse = node.entity::<Purse>("kim");
        node.inject(Fault::Refuse);
        assert_eq!(kind(&purse.fill(1).await.expect_err("refused")), Some(ErrorKind::Unavailable));
        node.inject(Fault::Full);
        assert_eq!(kind(&purse.fill(1).await.expect_err("refused")), Some(ErrorKind::Full));
        for (fault, total) in [
            (Fault::LoseAndPoison, 1),
            (Fault::KeepAndPoison, 2),
            (Fault::Stop { is_written: false }, 3),
            (Fault::Stop { is_written: true }, 4),
            (Fault::Delay(Duration::from_secs(1)), 5),
        ] {
            node.inject(fault);
            assert_eq!(purse.fill(1).await.expect("once"), total, "{fault:?}");
        }
        assert_eq!(node.starts(), 5);
    });
}

#[test]
fn a_test_that_ends_and_starts_the_node_meets_its_crashes() {
    let test = async |node: TestNode| {
        node.entity::<Purse>("kim").fill(70).await.expect("filled");
        let asked: Vec<_> = (0..5).map(|_| node.entity::<Purse>("kim").take(10).signal()).collect();
        let asked: Vec<_> = asked.into_iter().map(|it| tokio::spawn(it.into_future())).collect();
        node.restart().await;
        for accepted in asked {
            accepted.await.expect("ends").expect("accepted");
        }
        node.kill().await;
        let starts = node.starts();
        node.advance(Duration::from_secs(60)).await;
        assert_eq!(node.starts(), starts, "it stays down");
        node.restart().await;
        node.assert_settles().await;
        assert_eq!(node.state::<Purse>("kim").await.expect("read").cents, 20);
        node.delete::<Purse>("kim").await.expect("deleted");
        assert_eq!(node.entity::<Purse>("kim").fill(1).await.expect("filled"), 1, "deleted once");
    };
    trips().crash_everywhere(test);
    trips().faults(CommitFaults::usual()).run_seeds(0..20, test);
}

#[test]
fn a_node_that_nobody_starts_is_told() {
    let why = |test: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("it panics");
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).expect("a text")
    };
    let down = why(&|| {
        trips().run(async |node| {
            node.kill().await;
            drop(node.entity::<Purse>("kim").fill(1).await);
        });
    });
    assert!(down.contains("the node is down, and nobody restarts it"), "{down}");
    let missing = why(&|| NodeTest::new().entity::<Trip>().run(async |_node| {}));
    assert!(missing.contains("does not start") && missing.contains("Bank"), "{missing}");
}

#[test]
fn what_goes_on_for_ever_does_not_settle() {
    let test = || {
        trips().run(async |node| {
            node.entity::<Trip>("a").wander().await.expect("begun");
            node.assert_settles_within(Duration::from_secs(60)).await;
        });
    };
    let why = catch_unwind(test).expect_err("it panics");
    let why = why.downcast_ref::<String>().expect("a text");
    assert!(why.contains("wander for trip/a"), "{why}");
}

#[test]
fn each_thing_happens_at_its_time_also_under_faults() {
    let day = Duration::from_secs(24 * 3_600);
    let hours = async |node: TestNode| -> Result<(), CallError> {
        node.entity::<Trip>("a").hourly().await?;
        // Many calls, with a crash somewhere among them, just before time moves.
        let many: Vec<_> = (0..20).map(|n| node.entity::<Purse>(format!("p{n}")).fill(1)).collect();
        let many: Vec<_> = many.into_iter().map(|it| tokio::spawn(it.into_future())).collect();
        node.advance(day).await;
        for filled in many {
            assert_eq!(filled.await.expect("ends")?, 1);
        }
        // A run that met a crash may have missed an hour, and caught it up once.
        assert_eq!(node.state::<Trip>("a").await?.steps.len(), 24);
        node.assert_no_dead_letters().await;
        Ok(())
    };
    trips().run(hours);
    trips().faults(CommitFaults::usual()).run_seeds(0..40, hours);
    trips().run(async |node| {
        // A call that was just begun is not leapt over.
        let trip = node.entity::<Trip>("b");
        let (rested, ()) =
            tokio::join!(trip.rest(3).into_future(), node.advance(Duration::from_secs(600)));
        rested.expect("in time");
        node.drain().await.expect("drained");
        node.restart().await;
        assert!(node.state::<Trip>("b").await.expect("read").steps.is_empty());
    });
}
