//! Rewinding: what has failed is made again, and no success before it.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use stead_entities::{
    BoxFuture, CallError, Failure,
    testing::WorkflowDriver,
    workflow,
    workflow::{Instance, Of2, Status, Step, StepError, Workflow},
};

use super::secs;

/// A service that is broken for some pieces of work, and what was asked of it, with the tokens.
#[derive(Clone, Default)]
pub struct Service {
    broken: Arc<Mutex<Vec<u32>>>,
    /// Whether it is worth another try.
    is_busy: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<(u32, String)>>>,
}

impl Service {
    fn work(&self, token: String, number: u32) -> Result<u32, StepError> {
        self.asked.lock().expect("not poisoned").push((number, token));
        match self.broken.lock().expect("not poisoned").contains(&number) {
            true if self.is_busy.load(Ordering::Relaxed) => Err(StepError::new("busy")),
            true => Err(StepError::fatal("broken")),
            false => Ok(number),
        }
    }

    fn breaks_for(&self, numbers: &[u32]) {
        *self.broken.lock().expect("not poisoned") = numbers.to_vec();
    }

    /// What was asked since it was looked at last.
    fn take_asked(&self) -> Vec<u32> {
        let mut asked = std::mem::take(&mut *self.asked.lock().expect("not poisoned"));
        asked.sort_unstable();
        asked.into_iter().map(|(number, _)| number).collect()
    }
}

thread_local!(static IS_NEW: Cell<bool> = const { Cell::new(false) });

pub struct Works(Service);

#[workflow(name = "works")]
impl Works {
    pub async fn run(ctx: Workflow<Self>, how: String, count: u32) -> Result<u32, Failure> {
        let first = ctx.work(u32::try_from(ctx.random() % 90).expect("small") + 1_000).await?;
        match &*how {
            "side by side" => {
                let done = ctx.all_of((1..=count).map(|number| ctx.work(number))).await;
                let mut sum = 0;
                for outcome in done {
                    sum += outcome?;
                }
                Ok(sum)
            }
            "first failure" => {
                let done = ctx.try_all((1..=count).map(|number| ctx.work(number))).await?;
                Ok(done.into_iter().sum())
            }
            "with compensation" => match ctx.work(1).await {
                Ok(number) => Ok(number),
                Err(failure) => {
                    ctx.work(500).await?;
                    Err(failure)
                }
            },
            "changed" => {
                let number = match IS_NEW.get() {
                    true => ctx.step("other", |works| async move { works.0.work("".into(), 2) }),
                    false => ctx.step("one", |works| async move { works.0.work("".into(), 1) }),
                };
                let number = number.await?;
                ctx.sleep(secs(60)).await?;
                Ok(number)
            }
            "changed to wait" if IS_NEW.get() => Ok(ctx.event("later").await?),
            "changed to wait" => {
                ctx.work(1).await?;
                ctx.sleep(secs(60)).await?;
                Ok(1)
            }
            "in time" => in_time(ctx).await,
            "raced" => raced(ctx).await,
            "told" => told(ctx).await,
            "two and one" => two_and_one(ctx).await,
            "by a deadline" => ctx.work(1).attempts(100).deadline(secs(600)).await,
            "waits" => {
                ctx.sleep(secs(3_600)).await?;
                Ok(1)
            }
            "a slow and a broken child" => {
                let child =
                    |key: &str, how: &str| ctx.child(Works::of(key).start(how.into(), count));
                let children = [child("slow", "waits"), child("broken", "side by side")];
                Ok(ctx.try_all(children).await?.into_iter().sum())
            }
            "changed beside a child" => changed_beside_a_child(ctx).await,
            "ends slowly" => ends_slowly(ctx).await,
            "gives a child up" => {
                let child = ctx.child(Works::of("slow").start("waits".into(), count));
                drop(ctx.race((child, ctx.sleep(secs(1)))).await);
                ctx.sleep(secs(60)).await?;
                Ok(1)
            }
            "children" => {
                let key = ctx.child_key();
                ctx.child(Works::of(&key).start("first failure".into(), count)).await
            }
            _ => Err(Failure::fatal(format!("{first} is enough"))),
        }
    }

    async fn work(&self, step: &Step, number: u32) -> Result<u32, StepError> {
        self.0.work(step.token(), number)
    }
}

async fn raced(ctx: Workflow<Works>) -> Result<u32, Failure> {
    match ctx.race((ctx.event::<u32>("ok"), ctx.sleep(secs(10)))).await {
        Of2::First(number) => ctx.work(number?).await,
        Of2::Second(_) => ctx.work(99).await,
    }
}

async fn told(ctx: Workflow<Works>) -> Result<u32, Failure> {
    let number = ctx.work(1).await?;
    let told = ctx.event::<u32>("ok").await?;
    ctx.work(number + told).await
}

async fn in_time(ctx: Workflow<Works>) -> Result<u32, Failure> {
    let work = async { ctx.work(1).await };
    let (event, work) = ctx.all((ctx.event::<u32>("ok").within(secs(3_600)), work)).await;
    Ok(event?.unwrap_or(1_000) + work?)
}

async fn changed_beside_a_child(ctx: Workflow<Works>) -> Result<u32, Failure> {
    let child = ctx.child(Works::of("slow").start("ends slowly".into(), 0));
    let beside = async {
        match IS_NEW.get() {
            true => ctx.work(2).await,
            false => ctx.sleep(secs(60)).await.map(|()| 1),
        }
    };
    let (child, beside) = ctx.all((child, beside)).await;
    Ok(child? * 10 + beside?)
}

async fn ends_slowly(ctx: Workflow<Works>) -> Result<u32, Failure> {
    let waited = ctx.sleep(secs(3_600)).await;
    // What a compensation would wait for.
    if waited.is_err() {
        ctx.sleep(secs(3_600)).await?;
    }
    waited.map(|()| 1)
}

async fn two_and_one(ctx: Workflow<Works>) -> Result<u32, Failure> {
    let two = async {
        ctx.work(1).await?;
        ctx.work(3).await
    };
    let one = async { ctx.work(2).await };
    let both: [BoxFuture<'_, _>; 2] = [Box::pin(two), Box::pin(one)];
    Ok(ctx.try_all(both).await?.into_iter().sum())
}

fn works(how: &str, count: u32, broken: &[u32]) -> (WorkflowDriver<Works>, Service) {
    let service = Service::default();
    service.breaks_for(broken);
    let mut works = WorkflowDriver::new("w", Works(service.clone()));
    works.start((how.to_owned(), count).into()).expect("started");
    (works, service)
}

/// One that began before its code was changed, and does not fit it any more.
fn stuck_by_a_change(how: &str) -> WorkflowDriver<Works> {
    IS_NEW.set(false);
    let mut works = WorkflowDriver::new("w", Works(Service::default())).allowing_stuck();
    works.start((how.to_owned(), 0).into()).expect("started");
    IS_NEW.set(true);
    works.advance(secs(60)).expect("advanced");
    assert!(works.stuck().is_some());
    works
}

fn is_rejected<T: std::fmt::Debug>(result: &Result<T, CallError>, with: &str) -> bool {
    matches!(result, Err(CallError::Rejected(no)) if no.code() == Some(with))
}

#[test]
fn what_has_failed_is_made_again_and_successes_stay() {
    for how in ["side by side", "first failure"] {
        let (mut works, service) = works(how, 4, &[2, 4]);
        assert_eq!(works.status(), Some(Status::Failed), "{how}");
        service.take_asked();
        service.breaks_for(&[4]);
        assert_eq!(works.rewind(None).expect("rewound").run, 2);
        assert_eq!(works.status(), Some(Status::Failed), "{how}: the fourth is broken yet");
        let expected: &[u32] = if how == "side by side" { &[2, 4] } else { &[2, 3, 4] };
        assert_eq!(service.take_asked(), expected, "{how}");
        service.breaks_for(&[]);
        works.rewind(None).expect("rewound once more");
        assert_eq!(works.result(), Ok(10), "{how}");
        let asked = service.take_asked();
        assert!(asked.contains(&4) && !asked.contains(&1), "{how}: {asked:?}");
        assert!(is_rejected(&works.rewind(None), "conflict"), "it has a result");
    }
}

#[test]
fn a_failure_that_was_handled_is_made_again_with_what_came_behind_it() {
    let (mut works, service) = works("with compensation", 0, &[1]);
    assert_eq!(works.status(), Some(Status::Failed));
    service.take_asked();
    service.breaks_for(&[]);
    works.rewind(None).expect("rewound");
    assert_eq!(works.result(), Ok(1));
    assert_eq!(service.take_asked(), [1], "neither the first step nor the compensation");
}

#[test]
fn a_rewound_step_has_another_token() {
    let (mut works, service) = works("with compensation", 0, &[1]);
    service.breaks_for(&[]);
    works.rewind(None).expect("rewound");
    let asked = service.asked.lock().expect("not poisoned");
    let tokens: std::collections::BTreeSet<_> = asked.iter().map(|(_, token)| token).collect();
    assert_eq!(tokens.len(), asked.len(), "{asked:?}");
}

#[test]
fn what_ends_late_and_is_not_waited_for_leaves_no_trace() {
    let (mut works, _) = works("gives a child up", 0, &[]);
    works.advance(secs(1)).expect("the child is given up");
    let child = works.drivers().state::<Instance<Works>>("slow").status();
    assert_eq!(child, Some(Status::Cancelled), "and has told its parent that it ended");
    works.advance(secs(60)).expect("it ends");
    assert_eq!(works.result(), Ok(1));
    assert_eq!(works.history().deliveries(), 4, "the start, the step and both timers");
}

#[test]
fn a_step_has_one_token_in_all_of_its_attempts() {
    let service = Service::default();
    service.is_busy.store(true, Ordering::Relaxed);
    service.breaks_for(&[1]);
    let mut works = WorkflowDriver::new("w", Works(service.clone()));
    works.start(("first failure".to_owned(), 2).into()).expect("started");
    service.breaks_for(&[]);
    works.advance(secs(60)).expect("it is tried again");
    assert_eq!(works.result(), Ok(3));
    let asked = service.asked.lock().expect("not poisoned");
    assert_eq!(asked.iter().filter(|(number, _)| *number == 1).count(), 2, "{asked:?}");
    let steps: std::collections::BTreeSet<_> = asked.iter().collect();
    let tokens: std::collections::BTreeSet<_> = asked.iter().map(|(_, token)| token).collect();
    assert_eq!((steps.len(), tokens.len()), (3, 3), "{asked:?}");
}

#[test]
fn a_run_goes_on_from_the_place_that_an_operator_names() {
    let (mut works, service) = works("side by side", 3, &[]);
    assert_eq!(works.result(), Ok(6));
    service.take_asked();
    assert!(is_rejected(&works.rewind(Some("9")), "unknown_place"));
    works.rewind(Some("3")).expect("rewound");
    assert_eq!(works.result(), Ok(6));
    assert_eq!(
        service.take_asked(),
        [1, 2, 3],
        "and what began in the same turn, and nothing before"
    );
    works.rewind(Some("1")).expect("to its beginning");
    assert_eq!((works.result(), service.take_asked().len()), (Ok(6), 4));
}

#[test]
fn what_is_stuck_goes_on_from_before_the_change() {
    IS_NEW.set(false);
    let service = Service::default();
    let mut works = WorkflowDriver::new("w", Works(service.clone())).allowing_stuck();
    works.start(("changed".to_owned(), 0).into()).expect("started");
    assert!(is_rejected(&works.rewind(Some("2")), "conflict"), "it goes on");
    IS_NEW.set(true);
    works.advance(secs(60)).expect("advanced");
    assert!(works.stuck().is_some_and(|why| why.contains("place 2")), "{:?}", works.stuck());
    assert!(is_rejected(&works.rewind(None), "conflict"), "nothing has failed");
    service.take_asked();
    works.rewind(Some("2")).expect("rewound");
    assert_eq!(service.take_asked(), [2], "the step whose result led to the place stays");
    assert_eq!(works.stuck(), None);
    works.advance(secs(60)).expect("advanced");
    assert_eq!(works.result(), Ok(2));
    IS_NEW.set(false);
}

#[test]
fn what_led_to_a_place_comes_before_what_was_kept_and_before_timers() {
    for (place, led) in [("2", "\"Ok\":10"), ("1", "Start")] {
        let mut works = stuck_by_a_change("changed");
        works.cancel().expect("kept");
        works.rewind(Some(place)).expect("rewound");
        IS_NEW.set(false);
        assert_eq!(works.status(), Some(Status::Cancelled), "{place}");
        let history = serde_json::to_string(&works.history()).expect("JSON");
        assert!(history.contains(led), "{place}: {history}");
    }
    let service = Service::default();
    let mut works = WorkflowDriver::new("w", Works(service.clone()));
    works.start(("raced".to_owned(), 0).into()).expect("started");
    works.suspend("for a while").expect("suspended");
    works.advance(secs(5)).expect("advanced");
    works.event("ok", 7).expect("kept");
    works.advance(secs(60)).expect("advanced");
    works.resume().expect("resumed");
    assert_eq!(works.result(), Ok(7));
    service.take_asked();
    works.rewind(Some("5")).expect("rewound");
    assert_eq!((works.result(), service.take_asked()), (Ok(7), vec![7]));
}

#[test]
fn an_event_that_was_taken_in_the_turn_of_a_place_led_to_it() {
    let mut works = WorkflowDriver::new("w", Works(Service::default()));
    works.step("work").returns(5).holds();
    works.start(("told".to_owned(), 0).into()).expect("started");
    works.event("ok", 7).expect("kept");
    works.end_step(0, Ok(1)).expect("ended");
    works.terminate("enough").expect("terminated");
    works.rewind(Some("4")).expect("rewound");
    assert_eq!(works.drivers().held_steps().len(), 1, "the place alone");
    works.end_step(0, Ok(8)).expect("ended");
    assert_eq!(works.result(), Ok(8));
    // Another place in the same turn: the wait for the event is made again.
    works.rewind(Some("3")).expect("rewound");
    assert_eq!(works.waits_for(), ["event ok"]);
}

#[test]
fn what_failed_behind_the_beginning_of_a_place_is_made_again() {
    let mut works = WorkflowDriver::new("w", Works(Service::default()));
    works.step("work").returns(5).holds();
    works.start(("two and one".to_owned(), 0).into()).expect("started");
    works.suspend("for a while").expect("suspended");
    works.end_step(0, Ok(1)).expect("ended");
    works.end_step(0, Err::<u32, _>(StepError::fatal("broken"))).expect("ended");
    works.resume().expect("resumed");
    assert_eq!(works.status(), Some(Status::Failed));
    works.rewind(Some("2.1.2")).expect("rewound");
    assert_eq!(works.drivers().held_steps().len(), 2, "the one that failed, and the place");
    works.end_step(0, Ok(20)).expect("ended");
    works.end_step(0, Ok(3)).expect("ended");
    assert_eq!(works.result(), Ok(23));
}

#[test]
fn one_that_was_terminated_goes_on_and_one_that_ended_by_itself_needs_a_place() {
    let (mut works, service) = works("", 0, &[]);
    assert!(is_rejected(&works.rewind(None), "conflict"), "no operation has failed");
    works.rewind(Some("1")).expect("rewound");
    assert_eq!((works.status(), service.take_asked().len()), (Some(Status::Failed), 2));

    let mut held = WorkflowDriver::new("w", Works(service));
    held.step("work").holds();
    held.start(("with compensation".to_owned(), 0).into()).expect("started");
    held.terminate("too early").expect("terminated");
    held.rewind(None).expect("rewound");
    assert_eq!(held.status(), Some(Status::Running));
    held.end_step(0, Ok(1_000)).expect("ended");
    held.end_step(0, Ok(1)).expect("ended");
    assert_eq!(held.result(), Ok(1));
}

#[test]
fn children_that_have_failed_are_rewound_and_purged_ones_begin_anew() {
    for is_purged in [false, true] {
        let (mut works, service) = works("children", 3, &[3]);
        assert_eq!(works.status(), Some(Status::Failed));
        service.breaks_for(&[]);
        service.take_asked();
        if is_purged {
            works.drivers().apply(Works::of("w~2").purge()).expect("purged");
        }
        works.rewind(None).expect("rewound");
        assert_eq!(works.result(), Ok(6));
        let asked = service.take_asked();
        assert_eq!(asked.len(), if is_purged { 4 } else { 1 }, "{asked:?}");
        let child = works.drivers().driver::<Instance<Works>>("w~2").expect("a child");
        assert_eq!(child.state().status(), Some(Status::Completed));
    }
}

#[test]
fn a_rewound_run_survives_a_crash_behind_each_of_its_turns() {
    let make = || WorkflowDriver::new("w", Works(Service::default()));
    WorkflowDriver::crash_everywhere(make, |works| {
        works.step("work").fails("broken").times(100);
        works.start(("with compensation".to_owned(), 0).into()).expect("started");
        works.advance(secs(3_600)).expect("advanced");
        assert_eq!(works.status(), Some(Status::Failed));
        works.step("work").returns(7);
        works.rewind(None).expect("rewound");
        works.advance(secs(3_600)).expect("advanced");
        assert_eq!(works.result(), Ok(7));
    });
}

#[test]
fn successes_stay_however_many_there_are() {
    let (mut works, service) = works("side by side", 400, &[7]);
    assert_eq!(works.status(), Some(Status::Failed));
    service.take_asked();
    service.breaks_for(&[]);
    works.rewind(None).expect("rewound");
    assert_eq!((works.result(), service.take_asked()), (Ok(400 * 401 / 2), vec![7]));
}

#[test]
fn a_timer_that_is_overdue_by_then_does_not_come_before_what_came_in_time() {
    let (mut works, service) = works("in time", 0, &[1]);
    works.event("ok", 40_u32).expect("taken");
    assert_eq!(works.status(), Some(Status::Failed));
    works.advance(secs(100_000)).expect("advanced");
    service.breaks_for(&[]);
    works.rewind(None).expect("rewound");
    assert_eq!(works.result(), Ok(41));
}

#[test]
fn a_step_that_is_made_again_has_its_time_again() {
    let mut late = WorkflowDriver::new("l", Works(Service::default()));
    late.step("work").returns(1_000).fails("closed");
    late.start(("by a deadline".to_owned(), 0).into()).expect("started");
    late.advance(secs(700)).expect("advanced");
    assert_eq!(late.result(), Err(Failure::TimedOut));
    late.advance(secs(10_000)).expect("advanced");
    late.step("work").returns(5);
    late.rewind(None).expect("rewound");
    assert_eq!(late.result(), Ok(5));
}

#[test]
fn a_child_that_ends_as_it_is_rewound_tells_its_parent() {
    let (mut works, service) = works("a slow and a broken child", 2, &[2]);
    assert_eq!(works.status(), Some(Status::Failed));
    works.advance(secs(7_200)).expect("advanced");
    service.breaks_for(&[]);
    works.rewind(None).expect("rewound");
    assert_eq!(works.result(), Ok(1 + 3));
}

#[test]
fn a_child_that_still_runs_gives_way_to_the_one_that_is_begun_anew() {
    let mut works = stuck_by_a_change("changed beside a child");
    works.rewind(Some("2")).expect("rewound");
    let child = works.drivers().driver::<Instance<Works>>("slow").expect("a child");
    assert_eq!(child.state().status(), Some(Status::Running));
    works.advance(secs(3_600)).expect("advanced");
    assert_eq!(works.result(), Ok(12), "the child that began anew answers");
    IS_NEW.set(false);
}

#[test]
fn events_that_came_while_it_was_stuck_reach_a_rewound_run() {
    let mut works = stuck_by_a_change("changed to wait");
    works.event("later", 7_u32).expect("kept");
    works.rewind(Some("2")).expect("rewound");
    assert_eq!(works.result(), Ok(7));
    IS_NEW.set(false);
}
