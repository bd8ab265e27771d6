//! Arguments that are named like variables of generated code, and those of unusual types.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{Context, Context as Ctx, Layout, entity, testing::Driver};

use crate::now;

type Environment = Context;

/// A copy of the state has the type of the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Dial {
    at: i64,
}

#[entity(name = "dial")]
#[allow(clippy::needless_arbitrary_self_type, reason = "a receiver may be written out")]
impl Dial {
    const SIZE: usize = 2;

    pub fn is(&self, state: Dial) -> bool {
        *self == state
    }

    pub fn turn_to(&mut self, state: Dial) -> i64 {
        std::mem::replace(self, state).at
    }

    pub async fn turn_slowly(&mut self, state: Self, ctx: i64) -> i64 {
        self.at = state.at + ctx;
        self.at
    }

    pub fn all(&mut self, state: i64, ctx: i64, input: i64, self_: i64, answer: i64) -> String {
        format!("{state} {ctx} {input} {self_} {answer}")
    }

    pub fn more(&self, layout: i64, request: i64, key: i64, value: i64, of: i64) -> String {
        format!("{layout} {request} {key} {value} {of}")
    }

    pub fn with_context(&mut self, input: i64, environment: &mut Context, ctx: i64) -> String {
        format!("{input} {} {ctx}", environment.key())
    }

    pub async fn awaited(&mut self, state: &mut Context, ctx: i64) -> String {
        format!("{} {ctx}", state.key())
    }

    pub fn renamed(self: &mut Self, environment: &mut Ctx, more: i64) -> String {
        environment.cancel_reminder("none");
        format!("{} {more}", environment.key())
    }

    pub async fn renamed_awaited(&mut self, environment: &mut Environment) -> String {
        environment.key().to_owned()
    }

    pub fn renamed_asked(self: &Self, environment: &Environment) -> String {
        environment.key().to_owned()
    }

    pub fn marked(&mut self, mut amount: i64, _unused: i64, __double: i64) -> i64 {
        amount += 1;
        amount
    }

    pub fn one(&mut self, input: Option<i64>) -> Option<i64> {
        input.map(|input| input + 1)
    }

    pub fn two(&mut self, state: Option<i64>, ctx: Option<i64>) -> (Option<i64>, Option<i64>) {
        (ctx, state)
    }

    pub fn pair(&mut self, pair: (i64, String)) -> (String, i64) {
        (pair.1, pair.0)
    }

    pub fn nothing(&mut self, input: ()) {
        input
    }

    pub fn lent(&self, text: Cow<'_, str>) -> usize {
        text.len()
    }

    pub fn lent_twice(&self, text: Cow<'_, str>, r#static: Cow<'static, [u8]>) -> usize {
        text.len() + r#static.len()
    }

    pub fn selves(&mut self, all: Vec<Self>, one: Option<Self>) -> Vec<Option<Self>> {
        all.into_iter().map(Some).chain([one]).collect()
    }

    pub fn sized(&mut self, sized: [i64; Self::SIZE], more: i64) -> [i64; Self::SIZE] {
        sized.map(|one| one + more)
    }

    pub fn projected(&mut self, item: <Self as Iterator>::Item, more: i64) -> i64 {
        item + more
    }

    pub fn by_path(&mut self, a: crate::arguments::Dial, b: self::Dial, c: super::arguments::Dial) {
        self.at = a.at + b.at + c.at;
    }

    pub fn conditional(
        &mut self,
        first: i64,
        #[cfg(any())] missing: Missing,
        #[cfg(test)]
        #[allow(unused_variables)]
        second: i64,
        #[cfg_attr(all(), cfg(any()))] missing_too: Missing,
    ) -> i64 {
        first - second
    }

    pub fn left_alone(&mut self, only: i64, #[cfg(any())] missing: Missing) -> i64 {
        only
    }
}

impl Iterator for Dial {
    type Item = i64;
    fn next(&mut self) -> Option<i64> {
        None
    }
}

#[test]
fn an_argument_with_the_name_of_a_variable_of_the_macro_is_the_argument() {
    let (dial, mut driver) = (Dial::of("a"), Driver::<Dial>::new("a"));
    assert!(!driver.query(dial.is(Dial { at: 5 })).expect("another state"));
    assert_eq!(driver.apply(dial.turn_to(Dial { at: 5 })).expect("turned"), 0);
    assert!(driver.query(dial.is(Dial { at: 5 })).expect("this state"));
    let slowly = now(driver.apply_async(dial.turn_slowly(Dial { at: 7 }, 1)));
    assert_eq!((slowly.expect("turned"), driver.state().at), (8, 8));
    assert_eq!(driver.apply(dial.all(1, 2, 3, 4, 5)).expect("all"), "1 2 3 4 5");
    assert_eq!(driver.query(dial.more(1, 2, 3, 4, 5)).expect("more"), "1 2 3 4 5");
    assert_eq!(driver.apply(dial.with_context(1, 2)).expect("with the context"), "1 a 2");
    assert_eq!(now(driver.apply_async(dial.awaited(3))).expect("awaited"), "a 3");
    assert_eq!(driver.apply(dial.renamed(4)).expect("renamed"), "a 4");
    assert_eq!(now(driver.apply_async(dial.renamed_awaited())).expect("awaited"), "a");
    assert_eq!(driver.query(dial.renamed_asked()).expect("asked"), "a");
}

#[test]
fn arguments_of_unusual_types_arrive() {
    let (dial, mut driver) = (Dial::of("a"), Driver::<Dial>::new("a"));
    assert_eq!(driver.apply(dial.marked(1, 2, 3)).expect("marked"), 2);
    assert_eq!(driver.apply(dial.one(Some(1))).expect("one"), Some(2));
    assert_eq!(driver.apply(dial.one(None)).expect("none"), None);
    assert_eq!(driver.apply(dial.two(Some(1), None)).expect("two"), (None, Some(1)));
    assert_eq!(driver.apply(dial.pair((1, "a".into()))).expect("a pair"), ("a".into(), 1));
    driver.apply(dial.nothing(())).expect("nothing");
    assert_eq!(driver.query(dial.lent("four".into())).expect("lent"), 4);
    let bytes = Cow::Owned(vec![1, 2]);
    assert_eq!(driver.query(dial.lent_twice("four".into(), bytes)).expect("lent twice"), 6);
    let (one, two) = (Dial { at: 1 }, Dial { at: 2 });
    let selves = driver.apply(dial.selves(vec![one], Some(two))).expect("selves");
    assert_eq!(selves, [Some(one), Some(two)]);
    assert_eq!(driver.apply(dial.sized([1, 2], 3)).expect("sized"), [4, 5]);
    assert_eq!(driver.apply(dial.projected(1, 2)).expect("projected"), 3);
    driver.apply(dial.by_path(one, one, two)).expect("by path");
    assert_eq!(driver.state().at, 4);
}

#[test]
fn an_argument_that_is_configured_out_is_nowhere() {
    let (dial, mut driver) = (Dial::of("a"), Driver::<Dial>::new("a"));
    assert_eq!(driver.apply(dial.conditional(5, 3)).expect("two of four"), 2);
    assert_eq!(driver.apply(dial.left_alone(5)).expect("one of two"), 5);
}
