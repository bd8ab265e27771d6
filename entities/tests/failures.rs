//! Failures, rejections and dead letters among drivers.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{
    CallError, Context, DeadLetter, Failure, Layout, Rejection, entity, testing::Drivers,
};

/// A parcel, whose delivery may go wrong.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Parcel {
    story: Vec<String>,
    #[serde(skip)]
    scale: u32,
}

#[entity(name = "parcel", on_dead_letter = on_lost, on_activate = calibrate)]
impl Parcel {
    pub(crate) fn send(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Self::of(to).deliver(self.scale));
    }

    pub(crate) fn deliver(&mut self, ctx: &mut Context, scale: u32) -> Result<(), Failure> {
        self.story.push(format!("delivered by {scale}"));
        ctx.signal(Self::of("office").note(format!("{} was asked", ctx.key())));
        match ctx.key() {
            "moved" => Err(Rejection::new("moved").with_code("gone").with_effects().into()),
            "busy" => Err(Failure::retry("nobody is there").after(Duration::from_secs(60))),
            "burned" => Err(Failure::fatal("burned down")),
            _ => Ok(()),
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        self.story.push(what);
    }

    pub(crate) fn on_lost(&mut self, letter: DeadLetter) {
        self.story.push(format!("{}: {:?}, {}", letter.operation, letter.cause, letter.reason));
    }

    fn calibrate(&mut self) {
        self.scale = 7;
    }
}

#[test]
fn drivers_tell_of_failures_as_a_node_does() {
    let mut post = Drivers::new().entity::<Parcel>();
    for to in ["home", "moved", "busy", "burned"] {
        post.apply(Parcel::of("office").send(to.into())).expect("applied");
    }
    let story = |key: &str| post.state::<Parcel>(key).story;
    assert_eq!(story("home"), ["delivered by 7"]);
    assert_eq!(story("moved"), ["deliver: Rejection, moved"]);
    assert_eq!(story("busy"), ["deliver: Failure, nobody is there"]);
    assert_eq!(story("burned"), ["deliver: Failure, burned down"]);
    assert_eq!(story("office"), ["home was asked", "moved was asked"]);
    let letters = post.take_dead_letters();
    assert_eq!(letters[0].error.rejection().and_then(Rejection::code), Some("gone"));
    let after = |error: &CallError| match error {
        CallError::Failed(error) => error.retry_after(),
        CallError::Rejected(_) => None,
    };
    assert_eq!(after(&letters[1].error), Some(Duration::from_secs(60).into()));
}

/// A parcel that nobody fetches.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Locker {
    parcels: u32,
}

#[entity(name = "locker", ttl = Duration::from_secs(60))]
impl Locker {
    pub(crate) fn put(&mut self) {
        self.parcels += 1;
    }

    pub(crate) fn keep_for(&mut self, ctx: &mut Context, seconds: u64) {
        ctx.expire_after(Duration::from_secs(seconds));
        ctx.signal(Self::of(ctx.key()).put().after(Duration::from_secs(seconds + 5)));
    }
}

#[test]
fn drivers_expire_entities_as_a_node_does() {
    let mut lockers = Drivers::new().entity::<Locker>();
    lockers.apply(Locker::of("a").put()).expect("applied");
    let second = Duration::from_secs(1);
    lockers.advance(second * 59).expect("nothing fails");
    assert_eq!(lockers.state::<Locker>("a").parcels, 1);
    lockers.apply(Locker::of("a").keep_for(10)).expect("applied");
    lockers.advance(second * 15).expect("nothing fails");
    assert_eq!(lockers.state::<Locker>("a").parcels, 2, "work was waiting for it");
    lockers.advance(second * 60).expect("nothing fails");
    assert_eq!(lockers.state::<Locker>("a").parcels, 0);
    assert!(lockers.take_dead_letters().is_empty());
}
