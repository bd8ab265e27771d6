//! Workflows that interpret random programs: of every operation that there is, one behind the other, side by side, and in
//! each other. The tests of the runtime use them too.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use stead_entities::{
    BoxFuture, EntityId, Failure, JsonSchema,
    stock::Counter,
    workflow::{InstanceReference, Of2, Step, StepError, StepType, Workflow, WorkflowType},
};

/// A program, as a tree.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub enum Program {
    Step(u8),
    InPlace(u8),
    /// In milliseconds.
    Sleep(u32),
    Event(u8),
    EventWithin(u8, u32),
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
    /// In another workflow.
    Child(Box<Program>),
}

/// How many names of events there are: `event-0` and so on.
pub const EVENTS: u64 = 3;
/// The entities that sections lock; the first is also called.
pub const LOCKED: [&str; 3] = ["c", "d", "e"];
/// The entity that is signalled.
pub const SIGNALLED: &str = "s";

/// Does the work of a step outside.
pub type Work = Arc<dyn Fn(Step, u8) -> BoxFuture<'static, Result<u64, StepError>> + Send + Sync>;

/// Interprets a program, in so many runs.
pub struct Interpreter(pub Work);

impl Interpreter {
    /// One whose steps return their argument.
    pub fn idle() -> Self {
        Self(Arc::new(|_, number| Box::pin(async move { Ok(number.into()) })))
    }
}

impl fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interpreter")
    }
}

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
        vec![StepType::new("work", |given: Arc<Self>, step: Step, number: u8| {
            (given.0)(step, number)
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
    let millis = |millis: u32| Duration::from_millis(millis.into());
    Ok(match program {
        Program::Step(number) => {
            let work = ctx.method("work", &number).attempts(2);
            work.backoff(Duration::from_millis(100), Duration::from_secs(1)).await?
        }
        Program::InPlace(number) => {
            ctx.step("place", move |_| async move { Ok(u64::from(number)) }).await?
        }
        Program::Sleep(length) => {
            ctx.sleep(millis(length)).await?;
            mix(2, ctx.now().as_micros() as u64)
        }
        Program::Event(name) => ctx.event(format!("event-{name}")).await?,
        Program::EventWithin(name, length) => {
            let wait = ctx.event::<u64>(format!("event-{name}"));
            wait.within(millis(length)).await?.unwrap_or(7)
        }
        Program::Call(number) => {
            // Its result depends on others; that it has one does not.
            ctx.entity::<Counter>(LOCKED[0]).add(number.into()).await?;
            3
        }
        Program::Signal(number) => {
            ctx.signal(Counter::of(SIGNALLED).add(number.into()));
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
        Program::Child(inner) => {
            let child = InstanceReference::new(Interpreter::NAME, &ctx.child_key());
            ctx.child(child.start_of::<Interpreter>(&(*inner, 1))).await?
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

/// How programs are made.
#[derive(Debug, Clone, Copy)]
pub struct Making {
    /// How deep they are at most.
    pub depth: u32,
    /// Longer than what they wait for at most.
    pub longest: Duration,
    /// Whether they call and signal entities.
    pub has_effects: bool,
    /// Where they are in a section: another workflow that is waited for there must not wait for its locks.
    pub in_section: bool,
}

impl Program {
    /// A program, of numbers below a limit.
    pub fn random(below: &mut dyn FnMut(u64) -> u64, making: Making) -> Self {
        let kinds = if making.depth == 0 { 9 } else { 22 };
        let deeper = Making { depth: making.depth.saturating_sub(1), ..making };
        let inner = |below: &mut dyn FnMut(u64) -> u64| Box::new(Self::random(below, deeper));
        let some = |below: &mut dyn FnMut(u64) -> u64| {
            (0..below(4)).map(|_| Self::random(below, deeper)).collect::<Vec<_>>()
        };
        let length = |below: &mut dyn FnMut(u64) -> u64| {
            below(20) as u32 * making.longest.as_millis() as u32 / 20
        };
        match below(kinds) {
            0 | 1 => Self::Step(below(3) as u8),
            2 => Self::InPlace(below(3) as u8),
            3 => Self::Sleep(length(below)),
            4 => Self::Event(below(EVENTS) as u8),
            5 => Self::EventWithin(below(EVENTS) as u8, length(below)),
            6 | 7 if !making.has_effects => Self::Random,
            6 => Self::Call(below(5) as u8),
            7 => Self::Signal(below(5) as u8),
            8 => Self::Random,
            9 => Self::Patched(below(2) as u8, inner(below), inner(below)),
            10 | 11 => Self::InOrder(some(below)),
            12 => Self::All(some(below)),
            13 => Self::Race(some(below)),
            14 => Self::Both(inner(below), inner(below)),
            15 => Self::Either(inner(below), inner(below)),
            16 => Self::Beside(inner(below), inner(below)),
            17 | 18 if making.in_section && !making.has_effects => Self::InOrder(some(below)),
            17 | 18 => {
                let inside = Making { in_section: true, ..deeper };
                Self::Locked(below(8) as u8, Box::new(Self::random(below, inside)))
            }
            20 | 21 => {
                let has_effects = making.has_effects && !making.in_section;
                let inside = Making { has_effects, ..deeper };
                // Its step tells the outside of it.
                Self::Child(Box::new(Self::InOrder(vec![
                    Self::Step(0),
                    Self::random(below, inside),
                ])))
            }
            _ if below(2) == 0 => Self::Caught(inner(below)),
            _ => Self::Repeat(below(3) as u8 + 1, inner(below)),
        }
    }
}
