//! Events that come before the workflow that they are for has begun.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{
    Answer, CallError, Context, Failure, Layout, Operation, entity,
    operation::Reference,
    testing::{DeadLetter, Drivers},
    workflow,
    workflow::{Instance, InstanceReference, Status, Workflow},
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
fn an_early_event_is_as_right_and_as_one_of_few_as_a_later_one() {
    let mut all = drivers();
    all.apply(Teller::of("t").show("poem".into())).expect("applied");
    assert!(told(&all.take_dead_letters())[0].contains("album has no event \"poem\""));
    assert!(is_blank(&all), "nothing stays of it");
    for part in 0..9 {
        let words = part * 500..(part + 1) * 500;
        all.apply(Teller::of("t").tell(words.collect())).expect("applied");
    }
    let letters = all.take_dead_letters();
    assert_eq!(letters.len(), 9 * 500 - 4_096);
    assert!(told(&letters)[0].contains("events of"), "{}", letters[0].error);
}
