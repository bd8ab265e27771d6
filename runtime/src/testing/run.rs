//! Runs of one test: alone, with faults by seed, and with a crash before and behind every commit.

use std::{
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::{ExitCode, Termination},
    sync::Arc,
};

use stead_entities::{
    Dependencies, Entity,
    workflow::{Instance, WorkflowType},
};

use super::{
    CommitFaults, TestNode,
    commits::{Crash, Watcher},
};
use crate::{Config, NodeBuilder};

/// A test of entities on a whole node, in memory, with time that moves when told.
///
/// The node is a real one: turns, commits, retries, reminders, recoveries. It runs on one thread, and what is
/// random follows from a seed, so that a run does the same each time. Nothing is kept between two runs.
///
/// ```
/// use std::time::Duration;
/// use stead::{Context, After, Layout, Rejection, entity, testing::NodeTest};
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Stock { pieces: u32 }
///
/// #[entity(name = "stock")]
/// impl Stock {
///     pub fn fill(&mut self, pieces: u32) { self.pieces += pieces; }
///     pub fn take(&mut self, ctx: &mut Context, order: String) -> Result<(), Rejection> {
///         self.pieces = self.pieces.checked_sub(1).ok_or_else(|| Rejection::new("none left"))?;
///         ctx.signal(Order::of(order).ship().after(Duration::from_secs(3_600)));
///         Ok(())
///     }
/// }
///
/// #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema, Layout)]
/// struct Order { shipped: u32 }
///
/// #[entity(name = "order")]
/// impl Order {
///     pub fn place(&mut self, ctx: &mut Context, what: String) {
///         ctx.signal(Stock::of(what).take(ctx.key().to_owned()));
///     }
///     pub fn ship(&mut self) { self.shipped += 1; }
/// }
///
/// NodeTest::new().entity::<Stock>().entity::<Order>().crash_everywhere(async |node| {
///     node.entity::<Stock>("bolts").fill(1).await.unwrap();
///     node.entity::<Order>("1").place("bolts".into()).await.unwrap();
///     node.assert_settles().await;
///     assert_eq!(node.state::<Order>("1").await.unwrap().shipped, 0);
///     node.advance(Duration::from_secs(3_600)).await;
///     assert_eq!(node.state::<Order>("1").await.unwrap().shipped, 1);
///     assert_eq!(node.state::<Stock>("bolts").await.unwrap().pieces, 0);
/// });
/// ```
///
/// What differs from a node of production: there is one thread, so an operation that blocks it blocks the
/// test; an operation that awaits something outside of the runtime, such as a socket or another thread, lets time
/// run on meanwhile, and meets its deadline at once; and the store is in memory. A call that fails for its
/// author's reasons (`Failure::retry`) is told, and not repeated: send a signal, and see it settle. Nodes among
/// others have tests of their own.
#[derive(Default)]
pub struct NodeTest {
    types: Vec<fn(NodeBuilder) -> NodeBuilder>,
    dependencies: Vec<Give>,
    config: Config,
    seed: u64,
    faults: CommitFaults,
}

/// Makes a dependency, anew for each run.
type Give = Box<dyn Fn(Dependencies) -> Dependencies>;

/// The parts of a test that a node needs each time it starts.
pub(super) struct Setup {
    types: Vec<fn(NodeBuilder) -> NodeBuilder>,
    pub(super) dependencies: Dependencies,
    config: Config,
    pub(super) seed: u64,
}

impl Setup {
    /// Hosts the types of the test, with what they need.
    pub(super) fn add_to(&self, builder: NodeBuilder) -> NodeBuilder {
        let builder = builder.config(self.config.clone()).given(self.dependencies.clone());
        self.types.iter().fold(builder, |builder, add| add(builder))
    }
}

impl NodeTest {
    /// No types, no dependencies, the usual settings, no faults, and seed 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hosts an entity type.
    #[must_use]
    pub fn entity<E: Entity>(mut self) -> Self {
        self.types.push(NodeBuilder::entity::<E>);
        self
    }

    /// Hosts a workflow type. The value that its steps use is made anew for each run, and outlives the crashes of a
    /// run.
    #[must_use]
    pub fn workflow<W: WorkflowType>(self, make: impl Fn() -> W + 'static) -> Self {
        self.entity::<Instance<W>>().with(make)
    }

    /// Gives a dependency to the types that name it. It is made anew for each run, and outlives the crashes of a
    /// run, as an outside service does. The test finds it by [`TestNode::dependency`].
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, make: impl Fn() -> T + 'static) -> Self {
        self.dependencies.push(Box::new(move |given| given.with(make())));
        self
    }

    /// Replaces the settings of the node.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Replaces the seed, from which everything random follows.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets how often commits go wrong.
    ///
    /// # Panics
    /// Where a share is not 0 to 1, or all together are more than 1.
    #[must_use]
    pub fn faults(mut self, faults: CommitFaults) -> Self {
        if let Some(problem) = faults.problem() {
            panic!("{problem}: {faults:?}");
        }
        self.faults = faults;
        self
    }

    /// Runs a test once: an async closure that takes the node, `async |node| { .. }`, and returns nothing or a
    /// `Result`. Behind the test, the indexes of all entities are recomputed and compared.
    ///
    /// # Panics
    /// Where the test does, or returns an error, where the node does not start, and within a runtime: a test that uses this is a
    /// plain `#[test]`.
    pub fn run<R: Termination>(&self, test: impl AsyncFn(TestNode) -> R) {
        self.run_with(self.seed, None, &test);
    }

    /// Runs a test once for each seed, in place of its own.
    ///
    /// # Panics
    /// As [`NodeTest::run`]; which seed it was is printed.
    pub fn run_seeds<R: Termination>(&self, seeds: Range<u64>, test: impl AsyncFn(TestNode) -> R) {
        for seed in seeds {
            told(&format!("seed {seed}"), || self.run_with(seed, None, &test));
        }
    }

    /// Runs a test once without a crash, and then once for each of its commits with a crash before that, and
    /// once with a crash behind it, before anybody hears of the commit. The node starts again by itself, and
    /// what the test asks for is asked again. A closure that counts runs uses a `Cell`: it is called more than once.
    ///
    /// # Panics
    /// As [`NodeTest::run`]; which crash it was is printed.
    pub fn crash_everywhere<R: Termination>(&self, test: impl AsyncFn(TestNode) -> R) {
        let commits = self.run_with(self.seed, None, &test);
        for commit in 1..=commits {
            for is_written in [false, true] {
                let crash = Crash { commit, is_written };
                told(&format!("{crash} of {commits}, seed {}", self.seed), || {
                    self.run_with(self.seed, Some(crash), &test)
                });
            }
        }
    }

    /// Runs a test, and returns how many commits were begun.
    fn run_with<R: Termination>(
        &self,
        seed: u64,
        crash: Option<Crash>,
        test: &impl AsyncFn(TestNode) -> R,
    ) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime of one thread");
        let dependencies = self.dependencies.iter();
        let setup = Setup {
            types: self.types.clone(),
            dependencies: dependencies.fold(Dependencies::new(), |given, give| give(given)),
            config: self.config.clone(),
            seed,
        };
        let watcher = Arc::new(Watcher::new(self.faults, seed, crash));
        runtime.block_on(async {
            let node = TestNode::start(setup, watcher.clone()).await;
            let is_good = test(node.clone()).await.report() == ExitCode::SUCCESS;
            assert!(is_good, "the test returned an error");
            let wrong =
                node.node().await.check_indexes().await.expect("the disk in memory is read");
            assert!(wrong.is_empty(), "indexes are not what the states say: {wrong:?}");
            node.kill().await;
        });
        watcher.commits()
    }
}

/// Says which run it was that failed.
fn told<T>(which: &str, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        #[allow(clippy::print_stderr, reason = "the output of a test")]
        {
            eprintln!("the test fails with {which}");
        }
        resume_unwind(panic)
    })
}

impl fmt::Debug for NodeTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTest").field("seed", &self.seed).finish_non_exhaustive()
    }
}
