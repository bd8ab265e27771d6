//! No state is kept that cannot be read back: what derives cannot promise is proven turn by turn.

#![allow(unreachable_pub, reason = "operations of an entity are `pub`")]

use std::{collections::BTreeMap, time::Duration};

use stead_entities::{
    After, Context, Deserialize, ErrorKind, Json, JsonSchema, Layout, Operation, Reference,
    Serialize, entity, state::LayoutText, stored::Checks, testing::Driver,
};

/// A shape that a codec by position cannot read: it asks what comes next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Shape {
    #[default]
    Empty,
    Circle {
        radius: f64,
    },
}

/// A type that reads something else than it writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
struct Forgetful(u32);

impl<'de> Deserialize<'de> for Forgetful {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer).map(|number| Self(number / 10))
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Canvas {
    /// Declared opaque, which does not make it readable.
    #[layout(opaque = "shape/v1")]
    shape: Option<Shape>,
    #[layout(opaque = "forgetful/v1")]
    forgetful: Forgetful,
    kept: Json<Shape>,
    settings: Json<serde_json::Value>,
    number: f64,
}

#[entity(name = "canvas")]
impl Canvas {
    pub fn draw(&mut self, radius: f64) {
        self.shape = Some(Shape::Circle { radius });
    }
    pub fn forget(&mut self, number: u32) {
        self.forgetful = Forgetful(number);
    }
    pub fn keep(&mut self, radius: f64) {
        self.kept = Shape::Circle { radius }.into();
    }
    pub fn configure(&mut self, settings: serde_json::Value) {
        *self.settings = settings;
    }
    pub fn divide(&mut self, by: f64) -> f64 {
        1.0 / by
    }
    pub fn store_quotient(&mut self, by: f64) {
        self.number = 1.0 / by;
    }
    pub fn remind_of(&mut self, ctx: &mut Context, operation: String) {
        let wanted: Operation<()> =
            Reference::new("canvas", ctx.key()).operation(operation, Some(&7_u32));
        ctx.remind("later", After(Duration::from_secs(1)), wanted);
    }
    pub fn end_then_remind(&mut self, ctx: &mut Context) {
        ctx.delete();
        ctx.remind("later", After(Duration::from_secs(1)), Self::of(ctx.key()).forget(1));
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, stead_entities::CallError>) -> String {
    answer.expect_err("refused").to_string()
}

#[test]
fn a_state_that_cannot_be_read_back_is_not_kept() {
    let mut canvas = Driver::<Canvas>::new("c");
    let why = refused(canvas.apply(Canvas::of("c").draw(2.0)));
    assert!(why.contains("could not be read again") && why.contains("Json<T>"), "{why}");
    let why = refused(canvas.apply(Canvas::of("c").forget(57)));
    assert!(why.contains("read back as another one"), "{why}");
    assert_eq!((canvas.revision(), &canvas.state().shape), (0, &None), "nothing was kept");
    canvas.apply(Canvas::of("c").forget(0)).expect("this one is read back as it is");
}

#[test]
fn what_describes_itself_is_kept_as_json_with_every_digit() {
    let mut canvas = Driver::<Canvas>::new("c");
    canvas.apply(Canvas::of("c").keep(0.1)).expect("kept");
    let settings = serde_json::json!({
        "large": 9_007_199_254_740_993_u64, "small": 0.1, "odd": 2.2250738585072014e-308,
        "list": [null, true, {"a": "b"}],
    });
    canvas.apply(Canvas::of("c").configure(settings.clone())).expect("kept");
    let stored = stead_entities::stored::encode(canvas.state()).expect("stored");
    let again: Canvas = stead_entities::stored::decode(&stored).expect("read");
    assert_eq!(*again.settings, settings);
    assert_eq!(*again.kept, Shape::Circle { radius: 0.1 });
    let shown = serde_json::to_value(canvas.state()).expect("shown");
    assert_eq!(shown["settings"]["large"], 9_007_199_254_740_993_u64);
    assert_eq!(shown["kept"]["kind"], "circle");
}

#[test]
fn a_number_that_json_does_not_have_fails_the_turn() {
    let mut canvas = Driver::<Canvas>::new("c");
    let why = refused(canvas.apply(Canvas::of("c").divide(0.0)));
    assert!(why.contains("number that JSON does not have"), "{why}");
    let why = refused(canvas.apply(Canvas::of("c").store_quotient(0.0)));
    assert!(why.contains("no JSON form"), "{why}");
    let argument = Canvas::of("c").divide(f64::NAN).into_request();
    assert_eq!(argument.expect_err("refused").kind(), ErrorKind::Invalid);
    assert_eq!(canvas.revision(), 0);
    assert_eq!(canvas.apply(Canvas::of("c").divide(4.0)).expect("finite"), 0.25);
}

#[test]
fn a_reminder_that_could_not_be_applied_is_refused_when_it_is_set() {
    let mut canvas = Driver::<Canvas>::new("c");
    for (operation, why) in [
        ("vanish", "no operation vanish"),
        ("configure_", "no operation"),
        ("end_then_remind", "$"),
    ] {
        let told = refused(canvas.apply(Canvas::of("c").remind_of(operation.into())));
        assert!(told.contains("\"later\" was refused") && told.contains(why), "{told}");
    }
    canvas.apply(Canvas::of("c").remind_of("forget".into())).expect("it exists");
    let told = refused(canvas.apply(Canvas::of("c").end_then_remind()));
    assert!(told.contains("deleted in this turn"), "{told}");
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Plain {
    names: BTreeMap<String, Vec<Option<u64>>>,
}
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Measured {
    by_hour: BTreeMap<u8, f64>,
}

/// Described by hand.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
struct Handmade(u8);

impl Layout for Handmade {
    fn describe(layout: &mut LayoutText) {
        layout.leaf("u8");
    }
}

#[test]
fn proofs_are_asked_for_where_derives_promise_nothing() {
    let of = |layout: LayoutText| (layout.is_unproven(), layout.may_lack_json());
    assert_eq!(of(LayoutText::described::<Plain>()), (false, false));
    assert_eq!(of(LayoutText::described::<Measured>()), (false, true));
    assert_eq!(of(LayoutText::described::<Handmade>()), (true, true));
    assert_eq!(of(LayoutText::described::<Canvas>()), (true, true));
    let plain = Checks::of::<Plain>();
    assert_eq!(plain.json_again, cfg!(debug_assertions), "debug builds prove everything");
}
