//! Code that does not fit (I-W8): nothing of the turn stays but what arrived and the reason, and code that fits goes on as if
//! nothing had happened.

use std::cell::Cell;

use stead_entities::{
    Failure,
    testing::WorkflowDriver,
    workflow,
    workflow::{Status, StepError, Workflow},
};

use super::secs;

/// The ways in which the code is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Right,
    /// Its steps have other names.
    Renamed,
    /// It begins more than it did.
    More,
    /// It does not wait for the event.
    Less,
    Panics,
    /// It waits for what nothing will wake.
    WaitsForNothing,
    /// It is woken by another thread, beside an operation.
    WokenFromOutside,
}

thread_local!(static CODE: Cell<Code> = const { Cell::new(Code::Right) });

pub struct Tasks;

#[workflow(name = "task")]
impl Tasks {
    pub async fn run(ctx: Workflow<Self>, first: u32) -> Result<u32, Failure> {
        let code = CODE.get();
        let first: u32 = match code {
            Code::Renamed => ctx.step("renamed", move |_| async move { Ok(first) }).await?,
            Code::More => {
                let (one, _) = ctx.all((ctx.work(first), ctx.sleep(secs(9)))).await;
                one?
            }
            _ => ctx.work(first).await?,
        };
        match code {
            Code::Panics => panic!("on purpose"),
            Code::WaitsForNothing => std::future::pending::<()>().await,
            Code::WokenFromOutside => {
                let (one, _) = ctx.all((woken_by_a_thread(), ctx.sleep(secs(1)))).await;
                one
            }
            _ => {}
        }
        let second: u32 = match code {
            Code::Less => 0,
            _ => ctx.event("second").await?,
        };
        ctx.sleep(secs(60)).await?;
        Ok(first + second + ctx.work(3).await?)
    }

    async fn work(&self, number: u32) -> Result<u32, StepError> {
        Ok(number * 10)
    }
}

/// Waits for a thread, once.
async fn woken_by_a_thread() {
    let mut is_woken = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut is_woken, true) {
            return std::task::Poll::Ready(());
        }
        let waker = cx.waker().clone();
        #[allow(clippy::disallowed_methods, reason = "a foreign wake")]
        std::thread::spawn(move || waker.wake()).join().expect("woken");
        std::task::Poll::Pending
    })
    .await;
}

/// The things that happen to a task, one after the other.
const HAPPENS: [fn(&mut WorkflowDriver<Tasks>); 4] = [
    |task| assert!(task.start(1).expect("started").is_new),
    |task| task.event("second", 7).expect("taken"),
    |task| task.advance(secs(30)).expect("time passes"),
    |task| task.advance(secs(31)).expect("time passes"),
];

fn driver() -> WorkflowDriver<Tasks> {
    CODE.set(Code::Right);
    WorkflowDriver::new("t", Tasks).allowing_stuck()
}

#[test]
fn code_that_does_not_fit_changes_nothing_and_code_that_fits_goes_on() {
    let mut right = driver();
    HAPPENS.iter().for_each(|happens| happens(&mut right));
    assert_eq!(right.result(), Ok(10 + 7 + 30));
    let all = [
        (Code::Renamed, "began step work"),
        (Code::More, "the code began timer"),
        (Code::Less, "began event second"),
        (Code::Panics, "panicked: on purpose"),
        (Code::WaitsForNothing, "waits for something that is not the workflow's"),
    ];
    for (wrong, reason) in all {
        for swapped in 0..HAPPENS.len() {
            let mut task = driver();
            HAPPENS[..swapped].iter().for_each(|happens| happens(&mut task));
            let before = (swapped > 0).then(|| task.history());
            CODE.set(wrong);
            HAPPENS[swapped..].iter().for_each(|happens| happens(&mut task));
            if let (Some(before), Some(why)) = (before, task.stuck()) {
                assert!(why.contains(reason), "{wrong:?} behind {swapped}: {why}");
                assert_eq!(task.history(), before, "{wrong:?} behind {swapped}");
                assert_eq!(task.status(), Some(Status::Running));
            } else if swapped > 0 {
                assert_eq!(swapped, HAPPENS.len(), "{wrong:?} behind {swapped} is not noticed");
            } else {
                // What began with the code is its own.
                continue;
            }
            CODE.set(Code::Right);
            task.retry().expect("tried again");
            assert_eq!(task.stuck(), None, "{wrong:?} behind {swapped}");
            // A timer begins when its turn does.
            task.advance(secs(61)).expect("time passes");
            assert_eq!(task.result(), right.result(), "{wrong:?} behind {swapped}");
        }
    }
}

#[test]
fn a_panic_is_tried_again_by_itself_and_can_be_ended() {
    let mut task = driver();
    CODE.set(Code::Panics);
    task.start(1).expect("started");
    assert!(task.stuck().is_some_and(|why| why.contains("on purpose")));
    CODE.set(Code::Right);
    task.advance(secs(1)).expect("time passes");
    assert_eq!((task.stuck(), task.waits_for()), (None, vec!["event second".to_owned()]));

    let mut task = driver();
    CODE.set(Code::Panics);
    task.start(1).expect("started");
    task.terminate("it is broken").expect("without its code");
    assert_eq!(task.result(), Err(Failure::Terminated("it is broken".into())));
}

#[test]
fn a_wake_by_something_else_is_noticed_when_it_comes() {
    let mut task = driver();
    CODE.set(Code::WokenFromOutside);
    task.start(1).expect("started");
    assert_eq!(task.waits_for(), ["timer in PT1S"], "the turn that it is beside stands");
    let before = task.history();
    task.advance(secs(2)).expect("time passes");
    let why = task.stuck().expect("it is stuck");
    assert!(why.contains("woken by something that is not the workflow's"), "{why}");
    assert_eq!(task.history(), before);
}
