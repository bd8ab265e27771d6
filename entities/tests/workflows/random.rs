//! Random workflow programs (I-W1): whatever a program is made of, and in whatever order things happen, a replay of its
//! history from any place begins and cancels the same. Each seed runs a program twice: once with nothing in memory
//! between turns and its node ending now and then, and once with everything in memory. Both make the same history.
//!
//! `STEAD_SEED` replays one seed, `STEAD_SEEDS` sets how many there are.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use stead_entities::{
    BoxFuture, EntityId, Failure, JsonSchema, Rejection,
    stock::Counter,
    testing::{StepPlay, WorkflowDriver},
    workflow::{Of2, Status, Step, StepError, StepType, Workflow, WorkflowType},
};

/// A program, as a tree.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub enum Program {
    Step(u8),
    InPlace(u8),
    Sleep(u8),
    Event(u8),
    EventWithin(u8, u8),
    Call(u8),
    Signal(u8),
    Random,
    Patched(u8, Box<Program>, Box<Program>),
    InOrder(Vec<Program>),
    All(Vec<Program>),
    Race(Vec<Program>),
    Both(Box<Program>, Box<Program>),
    Either(Box<Program>, Box<Program>),
    /// Begins the second beside the first, and drops it when that is done.
    Beside(Box<Program>, Box<Program>),
    Caught(Box<Program>),
    Repeat(u8, Box<Program>),
    /// In a critical section of some of the entities.
    Locked(u8, Box<Program>),
}

/// The entities that sections lock.
const LOCKED: [&str; 3] = ["c", "d", "e"];

pub struct Interpreter;

impl WorkflowType for Interpreter {
    const NAME: &'static str = "interpreter";
    type Input = (Program, u8);
    type Output = u64;

    async fn run(ctx: Workflow<Self>, (program, runs): (Program, u8)) -> Result<u64, Failure> {
        let result = interpret(ctx.clone(), program.clone()).await?;
        if runs > 1 {
            return ctx.continue_as((program, runs - 1)).await;
        }
        Ok(result)
    }

    fn steps() -> Vec<StepType<Self>> {
        vec![StepType::new("work", |_: Arc<Self>, _: Step, number: u8| async move {
            Ok::<_, StepError>(u64::from(number))
        })]
    }
}

fn mix(one: u64, other: u64) -> u64 {
    (one ^ other.rotate_left(17)).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ other
}

fn interpret(
    ctx: Workflow<Interpreter>,
    program: Program,
) -> BoxFuture<'static, Result<u64, Failure>> {
    Box::pin(async move {
        use Program::{All, Beside, Both, Either, Race};
        match program {
            All(_) | Race(_) | Both(..) | Either(..) | Beside(..) => {
                side_by_side(ctx, program).await
            }
            other => one_by_one(ctx, other).await,
        }
    })
}

async fn one_by_one(ctx: Workflow<Interpreter>, program: Program) -> Result<u64, Failure> {
    let secs = |seconds: u8| Duration::from_secs(seconds.into());
    Ok(match program {
        Program::Step(number) => ctx.method("work", &number).attempts(2).await?,
        Program::InPlace(number) => {
            ctx.step("place", move |_| async move { Ok(u64::from(number)) }).await?
        }
        Program::Sleep(seconds) => {
            ctx.sleep(secs(seconds)).await?;
            mix(2, ctx.now().as_micros() as u64)
        }
        Program::Event(name) => ctx.event(&format!("event-{name}")).await?,
        Program::EventWithin(name, seconds) => {
            let wait = ctx.event::<u64>(&format!("event-{name}"));
            wait.within(secs(seconds)).await?.unwrap_or(7)
        }
        Program::Call(number) => {
            // Its result depends on others; that it has one does not.
            ctx.entity::<Counter>("c").add(number.into()).await?;
            3
        }
        Program::Signal(number) => {
            ctx.signal(Counter::of("s").add(number.into()));
            4
        }
        Program::Patched(name, new, old) => match ctx.patched(&format!("patch-{name}")) {
            true => interpret(ctx, *new).await?,
            false => interpret(ctx, *old).await?,
        },
        Program::InOrder(all) => {
            let mut result = ctx.now().as_micros() as u64;
            for one in all {
                result = mix(result, interpret(ctx.clone(), one).await?);
            }
            result
        }
        Program::Caught(inner) => match interpret(ctx, *inner).await {
            Ok(result) => result,
            Err(failure) => failure.to_string().len() as u64,
        },
        Program::Repeat(times, inner) => {
            let mut result = 0;
            for _ in 0..times {
                result = mix(result, interpret(ctx.clone(), (*inner).clone()).await?);
            }
            result
        }
        Program::Locked(which, inner) => {
            let keys = (0..3).filter(|bit| which >> bit & 1 == 1).map(|bit| LOCKED[bit]);
            let ids = keys.map(|key| EntityId::new("counter", key).expect("valid"));
            let _section = ctx.lock(ids).await?;
            interpret(ctx, *inner).await?
        }
        _ => mix(ctx.random(), ctx.uuid().len() as u64),
    })
}

async fn side_by_side(ctx: Workflow<Interpreter>, program: Program) -> Result<u64, Failure> {
    Ok(match program {
        Program::All(all) => {
            let all = all.into_iter().map(|one| interpret(ctx.clone(), one));
            ctx.try_all(all).await?.into_iter().fold(5, mix)
        }
        Program::Race(all) => {
            let all = all.into_iter().map(|one| interpret(ctx.clone(), one));
            match ctx.race_of(all).await {
                Some((number, result)) => mix(number as u64, result?),
                None => 6,
            }
        }
        Program::Both(one, other) => {
            let both = (interpret(ctx.clone(), *one), interpret(ctx.clone(), *other));
            let (one, other) = ctx.all(both).await;
            mix(one?, other?)
        }
        Program::Either(one, other) => {
            let both = (interpret(ctx.clone(), *one), interpret(ctx.clone(), *other));
            match ctx.race(both).await {
                Of2::First(result) => mix(8, result?),
                Of2::Second(result) => mix(9, result?),
            }
        }
        Program::Beside(one, other) => {
            let mut beside = interpret(ctx.clone(), *other);
            let mut first = interpret(ctx.clone(), *one);
            std::future::poll_fn(|cx| {
                let polled = first.as_mut().poll(cx);
                if polled.is_pending() && beside.as_mut().poll(cx).is_ready() {
                    beside = Box::pin(std::future::pending());
                }
                polled
            })
            .await?
        }
        other => interpret(ctx, other).await?,
    })
}

/// SplitMix64, for programs and schedules.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    fn program(&mut self, depth: u32) -> Program {
        let kinds = if depth == 0 { 9 } else { 20 };
        let inner = |this: &mut Self| Box::new(this.program(depth - 1));
        let some = |this: &mut Self| {
            (0..this.below(4)).map(|_| this.program(depth - 1)).collect::<Vec<_>>()
        };
        match self.below(kinds) {
            0 | 1 => Program::Step(self.below(3) as u8),
            2 => Program::InPlace(self.below(3) as u8),
            3 => Program::Sleep(self.below(20) as u8),
            4 => Program::Event(self.below(3) as u8),
            5 => Program::EventWithin(self.below(3) as u8, self.below(20) as u8),
            6 => Program::Call(self.below(5) as u8),
            7 => Program::Signal(self.below(5) as u8),
            8 => Program::Random,
            9 => Program::Patched(self.below(2) as u8, inner(self), inner(self)),
            10 | 11 => Program::InOrder(some(self)),
            12 => Program::All(some(self)),
            13 => Program::Race(some(self)),
            14 => Program::Both(inner(self), inner(self)),
            15 => Program::Either(inner(self), inner(self)),
            16 => Program::Beside(inner(self), inner(self)),
            17 | 18 => Program::Locked(self.below(8) as u8, inner(self)),
            _ if self.below(2) == 0 => Program::Caught(inner(self)),
            _ => Program::Repeat(self.below(3) as u8 + 1, inner(self)),
        }
    }
}

/// Runs a schedule; says how it ended, with the last history.
fn run(seed: u64, is_warm: bool) -> (Option<Status>, String) {
    let mut chance = Chance(seed);
    let program = chance.program(4);
    let mut driver = WorkflowDriver::new("w", Interpreter).entity::<Counter>();
    if is_warm {
        driver = driver.warm(Interpreter);
    }
    driver.drivers().play_steps(|_| StepPlay::Hold);
    let runs = chance.below(3) as u8 / 2 + 1;
    driver.start((program, runs)).expect("started");
    for _ in 0..60 {
        if driver.status().is_some_and(Status::is_end) {
            break;
        }
        act(&mut driver, &mut chance, is_warm);
    }
    let history = serde_json::to_string(&driver.history()).expect("JSON");
    let status = driver.status();
    if !status.is_some_and(Status::is_end) {
        driver.terminate("enough").expect("terminated");
    }
    for key in LOCKED {
        driver.drivers().apply(Counter::of(key).add(0)).expect("nobody has a lock any more");
    }
    (status, history)
}

fn act(driver: &mut WorkflowDriver<Interpreter>, chance: &mut Chance, is_warm: bool) {
    let (action, choice) = (chance.below(20), chance.next());
    match action {
        0..=7 => {
            // By place: after a crash they begin in another order.
            let held = driver.drivers().held_steps();
            let mut order: Vec<usize> = (0..held.len()).collect();
            order.sort_by_key(|at| held[*at].id().place());
            let Some(at) = order.get(choice as usize % order.len().max(1)) else { return };
            let result = match choice >> 32 & 7 {
                0 => Err(StepError::new("busy")),
                1 => Err(StepError::fatal("broken")),
                2 => Err(Rejection::new("no").into()),
                _ => Ok(choice >> 40),
            };
            driver.end_step(*at, result).expect("ended");
        }
        8..=11 => driver.event(&format!("event-{}", choice % 3), choice >> 32).expect("kept"),
        12..=15 => driver.advance(Duration::from_millis(choice % 9_000)).expect("time passes"),
        16 => driver.suspend("for a while").expect("suspended"),
        17 | 18 => driver.resume().expect("resumed"),
        _ if choice % 4 == 0 => driver.cancel().expect("cancelled"),
        // Of a suspended one no steps begin again before it is resumed.
        _ if !is_warm && driver.status() != Some(Status::Suspended) => {
            driver.crash().expect("hosted anew");
        }
        _ => {}
    }
}

#[test]
fn a_history_of_any_program_is_replayed_as_it_was() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("STEAD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STEAD_SEEDS").unwrap_or(2_000),
    };
    let mut ended = 0;
    for seed in seeds {
        let run = |is_warm| {
            let run = || run(seed, is_warm);
            std::panic::catch_unwind(run)
                .unwrap_or_else(|_| panic!("STEAD_SEED={seed}, warm {is_warm}"))
        };
        let (cold, warm) = (run(false), run(true));
        assert_eq!(cold, warm, "STEAD_SEED={seed}");
        ended += u32::from(cold.0.is_some_and(Status::is_end));
    }
    assert!(number("STEAD_SEED").is_some() || ended > 100, "most programs end: {ended}");
}
