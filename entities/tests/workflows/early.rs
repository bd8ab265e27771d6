//! Events that come before the workflow that they are for has begun.

use std::cell::Cell;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{
    Answer, CallError, Context, Failure, Layout, Operation, entity,
    operation::Reference,
    testing::{DeadLetter, Drivers},
    workflow,
    workflow::{Instance, InstanceReference, StartPolicy, Status, Workflow},
};

use super::days;

pub struct Albums;

/// It is full when it has two words and a picture.
#[workflow(name = "album", events(word: u32, picture: String))]
impl Albums {
    pub async fn run(ctx: Workflow<Self>, _pages: u32) -> Result<String, Failure> {
        let picture = ctx.picture().await?;
        Ok(format!("{} {} {picture}", ctx.word().await?, ctx.word().await?))
    }
}

/// Sends to albums, and asks them, and counts what was refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Teller {
    refused: u32,
}

#[entity(name = "teller")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Teller {
    pub fn tell(&mut self, ctx: &mut Context, words: Vec<u32>) {
        words.into_iter().for_each(|word| ctx.signal(Albums::of("a").word(word)));
    }

    pub fn show(&mut self, ctx: &mut Context, event: String) {
        ctx.signal(InstanceReference::new("album", "a").event(&event, "p"));
    }

    pub fn ask(&mut self, ctx: &mut Context) {
        ctx.ask(Albums::of("a").word(9), Self::of(ctx.key()).on_asked());
    }

    pub(crate) fn on_asked(&mut self, answer: Answer<()>) {
        self.refused += u32::from(answer.is_err());
    }

    pub fn begin(&mut self, ctx: &mut Context) {
        ctx.signal(Albums::of("a").start(2).operation());
    }
}

fn drivers() -> Drivers {
    Drivers::new().entity::<Teller>().workflow(Albums)
}

fn status(drivers: &Drivers) -> Option<Status> {
    drivers.state::<Instance<Albums>>("a").status()
}

fn outcome(drivers: &Drivers) -> String {
    let album = drivers.state::<Instance<Albums>>("a");
    String::from_utf8(album.outcome().to_vec()).expect("JSON")
}

fn is_blank(drivers: &Drivers) -> bool {
    let blank = format!("{:?}", Instance::<Albums>::default());
    format!("{:?}", drivers.state::<Instance<Albums>>("a")) == blank
}

/// What the letters say.
fn told(letters: &[DeadLetter]) -> Vec<String> {
    letters.iter().map(|letter| letter.error.to_string()).collect()
}

#[test]
fn signals_wait_for_a_start_in_their_order_and_who_hears_is_refused() {
    let mut all = drivers();
    let teller = || Teller::of("t");
    all.apply(teller().tell(vec![3, 1])).expect("applied");
    all.apply(teller().show("picture".into())).expect("applied");
    assert_eq!((status(&all), &*outcome(&all)), (None, ""), "it is not started by that");
    all.apply(teller().ask()).expect("applied");
    assert_eq!(all.state::<Teller>("t").refused, 1, "it is told");
    let called = all.apply(Albums::of("a").word(8)).expect_err("not started");
    assert!(matches!(called, CallError::Rejected(no) if no.code() == Some("unknown")));
    for refused in [Albums::of("a").cancel(), Albums::of("a").purge(), Albums::of("a").suspend("")]
    {
        all.apply(refused).expect_err("not started");
    }
    all.apply(Albums::of("a").restart()).expect_err("not started");
    all.apply(Albums::of("a").rewind()).expect_err("not started");
    all.apply(teller().begin()).expect("applied");
    assert_eq!((status(&all), &*outcome(&all)), (Some(Status::Completed), r#"{"Ok":"3 1 p"}"#));
    assert!(all.take_dead_letters().is_empty());
    all.advance(days(100)).expect("time passes");
    assert!(all.take_dead_letters().is_empty(), "nothing is left that was given up");
}

#[test]
fn what_no_start_comes_for_is_a_dead_letter_and_can_be_replayed_behind_one() {
    let mut all = drivers();
    all.apply(Teller::of("t").tell((0..2_500).collect())).expect_err("more than a turn sends");
    for part in 0..5 {
        let words = part * 500..(part + 1) * 500;
        all.apply(Teller::of("t").tell(words.collect())).expect("applied");
    }
    all.advance(days(6)).expect("time passes");
    assert!(all.take_dead_letters().is_empty(), "they wait for seven days");
    all.apply(Teller::of("t").show("picture".into())).expect("applied");
    all.advance(days(2)).expect("time passes");
    assert!(!is_blank(&all), "the last one has waited for two days");
    let letters = all.take_dead_letters();
    assert_eq!(letters.len(), 2_500);
    all.advance(days(6)).expect("time passes");
    assert_eq!(all.take_dead_letters().len(), 1);
    let why = "there is no such instance: start it first";
    assert!(told(&letters).iter().all(|told| told.contains(why)), "{}", letters[0].error);
    assert!(is_blank(&all), "nothing stays of it");
    all.apply(Albums::of("a").start(2).operation()).expect("started");
    for letter in letters.into_iter().take(2) {
        let argument: serde_json::Value =
            serde_json::from_slice(&letter.signal.input).expect("JSON");
        let again: Operation<()> = Reference::new("album", "a").operation("event", Some(&argument));
        all.signal(again).expect("replayed");
    }
    all.apply(Albums::of("a").picture("q".into())).expect("taken");
    assert_eq!(outcome(&all), r#"{"Ok":"0 1 q"}"#);
}

#[test]
fn an_early_event_is_as_right_as_a_later_one() {
    let mut all = drivers();
    all.apply(Teller::of("t").show("poem".into())).expect("applied");
    assert!(told(&all.take_dead_letters())[0].contains("album has no event \"poem\""));
    assert!(is_blank(&all), "nothing stays of it");
}

thread_local! {
    static BREAKS: Cell<bool> = const { Cell::new(false) };
}

/// Counts numbers in the order in which they come, and takes a break where it is told to.
pub struct Counts;

#[workflow(name = "count", events(number: u32, go: u32))]
impl Counts {
    pub async fn run(ctx: Workflow<Self>, upto: u32) -> Result<u32, Failure> {
        let first = ctx.go().await?;
        for expected in first..upto {
            let number = ctx.number().await?;
            assert!(!BREAKS.get() || number != 600, "on purpose");
            if number != expected {
                return Err(Failure::Failed(format!("{number} came in the place of {expected}")));
            }
            if number % 1_000 == 999 {
                return ctx.continue_as(upto).await;
            }
        }
        Ok(upto)
    }
}

/// Sends numbers to a count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Source {
    next: u32,
}

#[entity(name = "source")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Source {
    pub fn send(&mut self, ctx: &mut Context, count: u32) {
        for _ in 0..count {
            ctx.signal(Counts::of("c").number(self.next));
            self.next += 1;
        }
    }

    pub fn go(&mut self, ctx: &mut Context, from: u32) {
        ctx.signal(Counts::of("c").go(from));
    }

    pub fn end(&mut self, ctx: &mut Context) {
        ctx.signal(Counts::of("c").terminate("enough"));
        ctx.signal(Counts::of("c").purge());
    }

    pub fn ask(&mut self, ctx: &mut Context) {
        ctx.ask(Counts::of("c").number(0), Self::of(ctx.key()).on_asked());
    }

    pub(crate) fn on_asked(&mut self, answer: Answer<()>) {
        self.next += 1_000_000 * u32::from(answer.is_err());
    }
}

fn counts() -> Drivers {
    let mut all = Drivers::new().entity::<Source>().workflow(Counts);
    all.apply(Counts::of("c").start(5_345).operation()).expect("started");
    all
}

fn send(all: &mut Drivers, count: u32) {
    for _ in 0..count / 1_000 {
        all.apply(Source::of("s").send(1_000)).expect("applied");
    }
    all.apply(Source::of("s").send(count % 1_000)).expect("applied");
}

fn waiting(all: &Drivers) -> Option<u64> {
    let shown = serde_json::to_value(all.state::<Instance<Counts>>("c")).expect("JSON");
    shown["waiting_events"].as_u64()
}

#[test]
fn events_of_signals_wait_in_their_order_however_many_they_are_and_who_hears_is_refused() {
    let mut all = counts();
    send(&mut all, 5_000);
    assert_eq!(waiting(&all), Some(5_000));
    let refused = all.apply(Counts::of("c").number(1)).expect_err("a caller hears of it");
    let is_full = |no: &CallError| matches!(no, CallError::Rejected(no) if no.code() == Some("too_many_events"));
    assert!(is_full(&refused), "{refused}");
    all.apply(Source::of("s").ask()).expect("applied");
    assert_eq!(all.state::<Source>("s").next, 1_005_000, "who asks hears of it");
    all.apply(Source::of("t").send(2)).expect("applied");
    assert_eq!(waiting(&all), Some(5_002));
}

#[test]
fn a_run_takes_events_for_which_there_was_no_room_in_the_order_of_their_name() {
    let mut all = counts();
    all.apply(Counts::of("c").suspend("for a while")).expect("suspended");
    for run in 0..6 {
        all.apply(Counts::of("c").go(run * 1_000)).expect("there is room");
    }
    send(&mut all, 5_000);
    all.apply(Counts::of("c").resume()).expect("resumed");
    send(&mut all, 345);
    let count = all.state::<Instance<Counts>>("c");
    assert_eq!(count.status(), Some(Status::Completed), "{count:?}");
    assert!(all.take_dead_letters().is_empty());
}

#[test]
fn a_run_that_is_rewound_takes_the_events_that_came_first_first() {
    let mut all = counts();
    all.apply(Counts::of("c").suspend("for a while")).expect("suspended");
    all.apply(Counts::of("c").go(0)).expect("there is room");
    send(&mut all, 4_500);
    BREAKS.set(true);
    all.apply(Counts::of("c").resume()).expect("resumed");
    let stuck = all.state::<Instance<Counts>>("c").stuck().expect("stuck").to_owned();
    assert!(stuck.contains("on purpose"), "{stuck}");
    BREAKS.set(false);
    all.apply(Counts::of("c").rewind_to("1")).expect("rewound");
    let count = all.state::<Instance<Counts>>("c");
    let taken = 4_500 - u32::try_from(waiting(&all).expect("a number")).expect("few");
    assert_eq!((count.status(), taken), (Some(Status::Running), 511), "what came behind is kept");
    all.apply(Source::of("other").go(taken)).expect("applied");
    for run in 1..6 {
        all.apply(Source::of("other").go(run * 1_000)).expect("applied");
    }
    send(&mut all, 845);
    let count = all.state::<Instance<Counts>>("c");
    assert_eq!(count.status(), Some(Status::Completed), "{count:?}");
}

#[test]
fn a_run_that_is_replaced_leaves_its_events_to_the_next_one() {
    let mut all = counts();
    send(&mut all, 5_000);
    let replaced = Counts::of("c").start(5).policy(StartPolicy::Replace);
    all.apply(replaced.operation()).expect("started");
    assert_eq!(waiting(&all), Some(5_000));
    assert!(all.take_dead_letters().is_empty());
    all.apply(Source::of("other").go(0)).expect("applied");
    assert_eq!(waiting(&all), Some(5_001), "it is behind them");
}

#[test]
fn what_waits_for_room_when_the_workflow_ends_is_a_dead_letter_behind_the_others() {
    let mut all = counts();
    send(&mut all, 5_000);
    // The purge comes while they are given up.
    all.apply(Source::of("other").end()).expect("applied");
    assert_eq!(all.state::<Instance<Counts>>("c").status(), None, "it is gone");
    let letters = all.take_dead_letters();
    let number = |letter: &DeadLetter| {
        let argument: serde_json::Value =
            serde_json::from_slice(&letter.signal.input).expect("JSON");
        argument["payload"].as_u64()
    };
    let numbers: Vec<_> = letters.iter().filter_map(number).collect();
    assert_eq!(numbers, (0..5_000).collect::<Vec<_>>());
    let mut all = drivers();
    for part in 0..5 {
        let words = part * 1_000..(part + 1) * 1_000;
        all.apply(Teller::of("t").tell(words.collect())).expect("applied");
    }
    all.advance(days(8)).expect("time passes");
    assert_eq!(all.take_dead_letters().len(), 5_000);
    assert!(is_blank(&all), "nothing stays of it");
}
