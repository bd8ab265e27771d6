//! Workflows that are ended and suspended from outside, at every point of what they do.

use stead_entities::{
    Entity as _, Failure,
    stock::Counter,
    testing::WorkflowDriver,
    workflow,
    workflow::{Instance, Status, Workflow},
};

use super::secs;

pub struct Trips;

/// At each stop it waits for a word, and then for a guide; it counts those that it has seen.
#[workflow(name = "trip", events(word: u32))]
impl Trips {
    pub async fn run(ctx: Workflow<Self>, stops: u32) -> Result<u32, Failure> {
        let mut sum = 0;
        for stop in 0..stops {
            sum += ctx.word().within(secs(10)).await?.unwrap_or(100);
            let guide = ctx.child(Guides::of(stop.to_string()).start(stop));
            let look = ctx.step("look", move |_| async move { Ok(stop) });
            let (guide, look) = ctx.all((guide, look)).await;
            sum += look? + guide.unwrap_or(1_000);
            ctx.signal(Counter::of("stops").add(1));
        }
        Ok(sum)
    }
}

pub struct Guides;

#[workflow(name = "guide", events(done: ()))]
impl Guides {
    pub async fn run(ctx: Workflow<Self>, stop: u32) -> Result<u32, Failure> {
        ctx.done().await?;
        ctx.sleep(secs(3)).await?;
        Ok(10 * stop)
    }
}

type Driven = WorkflowDriver<Trips>;

fn trip(stops: u32) -> Driven {
    let mut trip = WorkflowDriver::new("t", Trips).workflow(Guides).entity::<Counter>();
    trip.start(stops).expect("started");
    trip
}

/// The script of a trip with three stops. What comes for one that has ended is refused.
const SCRIPT: [fn(&mut Driven); 9] = [
    |trip| drop(trip.event("word", 1)),
    |trip| drop(trip.drivers().apply(Guides::of("0").done(()))),
    |trip| trip.advance(secs(4)).expect("time passes"),
    |trip| trip.advance(secs(11)).expect("time passes"),
    |trip| drop(trip.event("word", 2)),
    |trip| drop(trip.drivers().apply(Guides::of("1").done(()))),
    |trip| trip.advance(secs(3)).expect("time passes"),
    |trip| drop(trip.drivers().apply(Guides::of("2").done(()))),
    |trip| trip.advance(secs(60)).expect("time passes"),
];

/// Everything that was handed over, in its order, and what the code began and gave up, without the times.
fn deliveries(trip: &Driven) -> String {
    let history = serde_json::to_value(trip.history()).expect("storable");
    let turns = history["turns"].as_array().expect("turns").clone();
    turns.into_iter().map(|turn| turn["deliveries"].to_string()).collect()
}

/// How often the code has gone on, to be seen outside.
fn seen(trip: &mut Driven) -> (i64, String) {
    (trip.drivers().state::<Counter>("stops").value(), deliveries(trip))
}

#[test]
fn a_wait_that_was_given_up_takes_no_event() {
    let mut trip = trip(3);
    SCRIPT.iter().for_each(|act| act(&mut trip));
    assert_eq!(trip.result(), Ok(1 + 100 + 1 + 10 + 2 + 2 + 20));
    assert_eq!(seen(&mut trip).0, 3);
}

#[test]
fn whatever_arrives_nothing_of_a_terminated_workflow_begins() {
    for end in 0..SCRIPT.len() {
        let mut trip = trip(3);
        SCRIPT[..end].iter().for_each(|act| act(&mut trip));
        trip.terminate("enough").expect("it goes on");
        let before = seen(&mut trip);
        SCRIPT[end..].iter().for_each(|act| act(&mut trip));
        assert_eq!(seen(&mut trip), before, "terminated before {end}");
        assert_eq!(trip.status(), Some(Status::Terminated));
        for guide in ["0", "1", "2"] {
            let guide = trip.drivers().driver::<Instance<Guides>>(guide);
            let status = guide.and_then(|guide| guide.state().status());
            assert!(status.is_none_or(Status::is_end), "{status:?} before {end}");
        }
    }
}

#[test]
fn a_workflow_that_was_suspended_goes_on_as_if_it_were_later() {
    let mut whole = trip(3);
    SCRIPT.iter().for_each(|act| act(&mut whole));
    let mut ended = 0;
    for first in 0..SCRIPT.len() {
        for last in first..SCRIPT.len() {
            let mut trip = trip(3);
            SCRIPT[..first].iter().for_each(|act| act(&mut trip));
            trip.suspend("wait").expect("it goes on");
            let before = seen(&mut trip);
            SCRIPT[first..=last].iter().for_each(|act| act(&mut trip));
            assert_eq!(seen(&mut trip), before, "suspended from {first} to {last}");
            trip.resume().expect("it goes on");
            SCRIPT[last + 1..].iter().for_each(|act| act(&mut trip));
            // Children that began later may not have had their word, which came before.
            if trip.status() == Some(Status::Completed) {
                ended += 1;
                assert_eq!(
                    deliveries(&trip),
                    deliveries(&whole),
                    "suspended from {first} to {last}"
                );
            }
        }
    }
    assert!(ended > 10, "{ended} of 45 have ended");
}

#[test]
fn a_run_that_has_ended_takes_no_memory() {
    let held = |trip: &mut Driven| {
        let instance = trip.drivers().driver::<Instance<Trips>>("t").expect("it was started");
        instance.state().held_bytes()
    };
    for ends_by_itself in [true, false] {
        let trip = WorkflowDriver::new("t", Trips).warm(Trips).workflow(Guides);
        let mut trip = trip.entity::<Counter>();
        trip.start(1).expect("started");
        assert!(held(&mut trip) > 0, "it stays for its next turn");
        match ends_by_itself {
            true => {
                trip.event("word", 1).expect("taken");
                trip.drivers().apply(Guides::of("0").done(())).expect("taken");
                trip.advance(secs(4)).expect("time passes");
            }
            false => trip.terminate("enough").expect("it goes on"),
        }
        assert!(trip.status().is_some_and(Status::is_end));
        assert_eq!(held(&mut trip), 0);
    }
}
