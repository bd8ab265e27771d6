//! Random workflow programs (I-W1): whatever a program is made of, and in whatever order things happen, a replay of its
//! history from any place begins and cancels the same. Each seed runs a program twice: once with nothing in memory
//! between turns and its node ending now and then, and once with everything in memory. Both make the same history.
//!
//! `STEAD_SEED` replays one seed, `STEAD_SEEDS` sets how many there are.

use std::time::Duration;

use stead_entities::{
    EntityId, Rejection,
    stock::Counter,
    testing::{StepPlay, WorkflowDriver},
    workflow::{InstanceReference, Status, StepError, WorkflowType as _},
};

use super::programs::{Interpreter, LOCKED, Making, Program};

/// SplitMix64, for programs and schedules.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    fn program(&mut self) -> Program {
        let longest = Duration::from_secs(20);
        let making = Making { depth: 4, longest, has_effects: true, in_section: false };
        Program::random(&mut |limit| self.below(limit), making)
    }
}

/// Runs a schedule; says how it ended, with the last history.
fn run(seed: u64, is_warm: bool) -> (Option<Status>, String) {
    let mut chance = Chance(seed);
    let program = chance.program();
    let mut driver = WorkflowDriver::new("w", Interpreter::idle()).entity::<Counter>();
    if is_warm {
        driver = driver.warm(Interpreter::idle());
    }
    driver.drivers().play_steps(|_| StepPlay::Hold);
    let runs = chance.below(3) as u8 / 2 + 1;
    driver.start((program, runs)).expect("started");
    for _ in 0..60 {
        if driver.status().is_some_and(Status::is_end) {
            break;
        }
        act(&mut driver, &mut chance, is_warm);
    }
    let history = serde_json::to_string(&driver.history()).expect("JSON");
    let status = driver.status();
    if !status.is_some_and(Status::is_end) {
        driver.terminate("enough").expect("terminated");
    }
    for key in LOCKED {
        driver.drivers().apply(Counter::of(key).add(0)).expect("nobody has a lock any more");
    }
    (status, history)
}

fn act(driver: &mut WorkflowDriver<Interpreter>, chance: &mut Chance, is_warm: bool) {
    let (action, choice) = (chance.below(20), chance.next());
    match action {
        0..=7 => {
            // By place: after a crash they begin in another order.
            let held = driver.drivers().held_steps();
            let mut order: Vec<usize> = (0..held.len()).collect();
            order.sort_by_key(|at| (held[*at].id().workflow(), held[*at].id().place()));
            let Some(at) = order.get(choice as usize % order.len().max(1)) else { return };
            let result = match choice >> 32 & 7 {
                0 => Err(StepError::new("busy")),
                1 => Err(StepError::fatal("broken")),
                2 => Err(Rejection::new("no").into()),
                _ => Ok(choice >> 40),
            };
            driver.end_step(*at, result).expect("ended");
        }
        8..=11 => {
            let name = format!("event-{}", choice % 3);
            match child(driver, choice >> 8) {
                // It may have ended on being cancelled.
                Some(key) => {
                    let child = InstanceReference::new(Interpreter::NAME, &key);
                    drop(driver.drivers().apply(child.event(&name, &(choice >> 32))));
                }
                None => driver.event(&name, choice >> 32).expect("kept"),
            }
        }
        12..=15 => driver.advance(Duration::from_millis(choice % 9_000)).expect("time passes"),
        16 => driver.suspend("for a while").expect("suspended"),
        17 | 18 => driver.resume().expect("resumed"),
        _ if choice % 4 == 0 => driver.cancel().expect("cancelled"),
        _ if !is_warm && choice % 4 == 1 => {
            if let Some(key) = child(driver, choice >> 8) {
                let child = EntityId::new(Interpreter::NAME, &key).expect("valid");
                driver.drivers().host_anew(&child).expect("hosted anew");
            }
        }
        // Of a suspended one no steps begin again before it is resumed.
        _ if !is_warm && driver.status() != Some(Status::Suspended) => {
            driver.crash().expect("hosted anew");
        }
        _ => {}
    }
}

/// The key of a workflow that it waits for, half of the time.
fn child(driver: &WorkflowDriver<Interpreter>, choice: u64) -> Option<String> {
    let waits = driver.waits_for();
    let keys = waits.iter().filter_map(|wait| wait.strip_prefix("child start interpreter/"));
    let keys: Vec<&str> = keys.collect();
    Some((*keys.get(choice as usize % (2 * keys.len()).max(1))?).to_owned())
}

#[test]
fn a_history_of_any_program_is_replayed_as_it_was() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("STEAD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STEAD_SEEDS").unwrap_or(2_000),
    };
    let mut ended = 0;
    for seed in seeds {
        let run = |is_warm| {
            let run = || run(seed, is_warm);
            std::panic::catch_unwind(run)
                .unwrap_or_else(|_| panic!("STEAD_SEED={seed}, warm {is_warm}"))
        };
        let (cold, warm) = (run(false), run(true));
        assert_eq!(cold, warm, "STEAD_SEED={seed}");
        ended += u32::from(cold.0.is_some_and(Status::is_end));
    }
    assert!(number("STEAD_SEED").is_some() || ended > 100, "most programs end: {ended}");
}
