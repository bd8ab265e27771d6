//! Children, runs that follow one another, versions and patches.

use std::cell::Cell;

use stead_entities::{
    Failure,
    testing::{StepPlay, WorkflowDriver},
    workflow,
    workflow::{Status, StepError, Workflow},
};

use super::secs;

pub struct Parents;

#[workflow(name = "parent")]
impl Parents {
    pub async fn run(ctx: Workflow<Self>, children: u32, waits: bool) -> Result<u32, Failure> {
        let key = ctx.child_key();
        let first = ctx.child(Children::of(&key).start(children));
        ctx.start(Children::of("detached").start(1));
        if waits {
            let (first, other) = ctx.all((first, ctx.child(Children::of("named").start(2)))).await;
            return Ok(first? + other?);
        }
        ctx.race((first, ctx.sleep(secs(60)))).await;
        Ok(0)
    }
}

pub struct Children;

#[workflow(name = "child", events(finish: u32))]
impl Children {
    pub async fn run(ctx: Workflow<Self>, number: u32) -> Result<u32, Failure> {
        if number == 0 {
            return Err(Failure::fatal("no number"));
        }
        let more = ctx.finish().await?;
        if more == 0 {
            return ctx.continue_as(number + 100).await;
        }
        Ok(number + more)
    }
}

fn parent(children: u32, waits: bool) -> WorkflowDriver<Parents> {
    let mut parent = WorkflowDriver::new("p", Parents).workflow(Children);
    parent.start((children, waits).into()).expect("started");
    parent
}

fn finish(parent: &mut WorkflowDriver<Parents>, child: &str, more: u32) {
    parent.drivers().apply(Children::of(child).finish(more)).expect("taken");
}

#[test]
fn a_parent_hears_of_each_child_once_also_behind_another_run() {
    let mut parent = parent(5, true);
    assert_eq!(parent.waits_for().len(), 2, "{:?}", parent.waits_for());
    finish(&mut parent, "p~1", 0);
    assert_eq!(parent.waits_for().len(), 2, "it goes on as another run");
    finish(&mut parent, "p~1", 7);
    finish(&mut parent, "named", 1);
    assert_eq!(parent.result(), Ok(105 + 7 + 2 + 1));
    assert!(parent.drivers().take_dead_letters().is_empty());
}

#[test]
fn a_child_that_fails_or_is_there_already_fails_the_call() {
    let mut failed = parent(0, true);
    finish(&mut failed, "named", 1);
    assert_eq!(failed.result(), Err(Failure::Failed("no number".into())));

    let mut collided = WorkflowDriver::new("p", Parents).workflow(Children);
    collided.drivers().apply(Children::of("named").start(9).operation()).expect("started");
    collided.start((5, true).into()).expect("started");
    finish(&mut collided, "p~1", 1);
    assert!(matches!(collided.result(), Err(Failure::Conflict(_))), "{:?}", collided.result());
}

#[test]
fn children_end_with_their_parent_and_detached_ones_go_on() {
    let ends: [fn(&mut WorkflowDriver<Parents>); 3] = [
        |parent| parent.terminate("enough").expect("terminated"),
        |parent| parent.cancel().expect("cancelled"),
        |parent| parent.advance(secs(61)).expect("the race is lost"),
    ];
    for (which, end) in ends.into_iter().enumerate() {
        let mut parent = parent(5, false);
        end(&mut parent);
        let status = |parent: &mut WorkflowDriver<Parents>, key: &str| {
            let driver = parent.drivers().driver::<workflow::Instance<Children>>(key);
            driver.and_then(|driver| driver.state().status())
        };
        let expected = if which == 0 { Status::Terminated } else { Status::Cancelled };
        assert_eq!(status(&mut parent, "p~1"), Some(expected), "{which}");
        assert_eq!(status(&mut parent, "detached"), Some(Status::Running), "{which}");
    }
}

thread_local!(static IS_NEW: Cell<bool> = const { Cell::new(false) });

pub struct Rounds;

#[workflow(name = "rounds")]
impl Rounds {
    pub async fn run(ctx: Workflow<Self>, rounds: u32) -> Result<Vec<String>, Failure> {
        let mut story = Vec::new();
        for _ in 0..rounds {
            let event: u32 = ctx.event("round").await?;
            let is_new = IS_NEW.get();
            let once = is_new && ctx.patched("once");
            let each = is_new && ctx.patched_now("each");
            story.push(format!(
                "{event}{}{}",
                if once { " once" } else { "" },
                if each { " each" } else { "" }
            ));
            match each {
                true => ctx.work("new".into()).await?,
                false => ctx.work("old".into()).await?,
            };
        }
        Ok(story)
    }

    async fn work(&self, what: String) -> Result<String, StepError> {
        Ok(what)
    }
}

#[test]
fn a_patch_answers_the_same_on_every_replay() {
    for switched in 0..4 {
        IS_NEW.set(false);
        let mut rounds = WorkflowDriver::new("r", Rounds);
        rounds.start(4).expect("started");
        for round in 0..4 {
            IS_NEW.set(round >= switched);
            rounds.event("round", round).expect("taken");
            // Also where nothing happens.
            rounds.crash().expect("hosted anew");
        }
        let expected: Vec<String> = (0..4)
            .map(|round| {
                // The run was past the place before the patch was there, unless it was there from the beginning.
                let once = if switched == 0 { " once" } else { "" };
                let each = if round >= switched { " each" } else { "" };
                format!("{round}{once}{each}")
            })
            .collect();
        assert_eq!(rounds.result(), Ok(expected), "switched behind {switched}");
    }
}

pub struct ReportsV1;

#[workflow(name = "report", version = 1)]
impl ReportsV1 {
    pub async fn run(ctx: Workflow<Self>, name: String) -> Result<String, Failure> {
        let text: String = ctx.step("write", |_| async { Ok("old".to_owned()) }).await?;
        ctx.event::<()>("print").await?;
        Ok(format!("{name}: {text}"))
    }
}

pub struct Reports;

#[workflow(name = "report", version = 2, also(1 = ReportsV1))]
impl Reports {
    pub async fn run(ctx: Workflow<Self>, name: String) -> Result<String, Failure> {
        ctx.event::<()>("print").await?;
        Ok(format!("{name}: {}", ctx.write().await?))
    }

    async fn write(&self) -> Result<String, StepError> {
        Ok("new".to_owned())
    }
}

#[test]
fn a_run_keeps_the_version_that_it_began_with() {
    let mut old = WorkflowDriver::new("a", ReportsV1);
    old.start("a".into()).expect("started");
    let saved = old.history();
    assert_eq!(saved.replay::<Reports>(), Ok(()), "the later program has its code");
    let mut new = WorkflowDriver::new("a", Reports).with(ReportsV1);
    new.start("a".into()).expect("started");
    new.event("print", ()).expect("taken");
    assert_eq!(new.result().as_deref(), Ok("a: new"));
    assert!(new.history().replay::<ReportsV1>().is_err(), "the earlier one does not know it");
}

#[test]
fn a_step_in_place_is_made_anew_for_each_attempt() {
    let mut report = WorkflowDriver::new("a", ReportsV1);
    let mut attempts = 0;
    report.drivers().play_steps(move |start| {
        attempts += 1;
        assert_eq!(start.attempt(), attempts);
        match attempts {
            1 => StepPlay::End(Err(StepError::new("not yet"))),
            2 => StepPlay::TimeOut,
            _ => StepPlay::Run,
        }
    });
    report.start("a".into()).expect("started");
    report.advance(secs(60)).expect("time passes");
    report.event("print", ()).expect("taken");
    assert_eq!(report.result().as_deref(), Ok("a: old"));
}

pub struct Crowds;

#[workflow(name = "crowd")]
impl Crowds {
    pub async fn run(ctx: Workflow<Self>, count: u32) -> Result<u32, Failure> {
        let done = ctx.try_all((0..count).map(|number| ctx.work(number))).await?;
        Ok(done.into_iter().sum())
    }

    async fn work(&self, number: u32) -> Result<u32, StepError> {
        Ok(number)
    }
}

#[test]
fn what_has_no_room_in_one_turn_begins_in_the_next_ones_by_itself() {
    let mut crowd = WorkflowDriver::new("c", Crowds);
    crowd.drivers().play_steps(|_| StepPlay::Hold);
    crowd.start(2_500).expect("started");
    assert_eq!(crowd.drivers().held_steps().len(), 2_500);
    crowd.crash().expect("hosted anew");
    assert_eq!(crowd.drivers().held_steps().len(), 2_500);
    for _ in 0..2_500 {
        crowd.drivers().end_step(0, Some(Ok(b"1".to_vec()))).expect("ended");
    }
    assert_eq!(crowd.result(), Ok(2_500));
}

pub struct Sums;

#[workflow(name = "sums", events(add: u32))]
impl Sums {
    pub async fn run(ctx: Workflow<Self>, so_far: u32, left: u32) -> Result<u32, Failure> {
        let sum = so_far * 10 + ctx.add().await?;
        match left {
            0 => Ok(sum),
            _ => ctx.continue_as((sum, left - 1).into()).await,
        }
    }
}

#[test]
fn events_that_wait_go_over_to_the_next_run_in_their_order() {
    let mut sums = WorkflowDriver::new("s", Sums);
    sums.start((0, 3).into()).expect("started");
    sums.suspend("so that they wait").expect("suspended");
    for number in 1..=4 {
        sums.event("add", number).expect("kept");
    }
    sums.crash().expect("hosted anew");
    sums.resume().expect("goes on");
    assert_eq!(sums.result(), Ok(1_234), "each is taken by a run of its own");
}
