//! Steps of workflows that are driven: run on the spot, made up by the test, or held until it ends them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    fmt,
};

use super::at_once;
use crate::{
    CallError, Dependencies, EntityId,
    effect::Signal,
    workflow::{StepId, StepResult, StepStart},
};

/// The end that a test gives to an attempt of a step.
pub enum StepPlay {
    /// Runs its code.
    Run,
    /// Leaves it under way until the test ends it.
    Hold,
    /// Ends it with this.
    End(StepResult),
    /// Ends it as one that took too long.
    TimeOut,
}

/// The workflows among driven entities: their attempts of steps, and what happens where they are hosted anew.
#[derive(Default)]
pub(super) struct Workflows {
    pub(super) steps: Steps,
    /// The operations that are applied where they are hosted anew.
    on_hosting: BTreeMap<EntityId, Cow<'static, str>>,
    /// The one whose node ends behind a turn.
    ends_behind: Option<(EntityId, u64)>,
}

impl Workflows {
    pub(super) fn on_hosting(&mut self, id: &EntityId, operation: Option<Cow<'static, str>>) {
        match operation {
            Some(operation) => drop(self.on_hosting.insert(id.clone(), operation)),
            None => drop(self.on_hosting.remove(id)),
        }
    }

    /// Has the node of a workflow end as soon as that has had so many turns.
    pub(super) fn end_behind(&mut self, id: &EntityId, turns: u64) {
        self.ends_behind = Some((id.clone(), turns));
    }

    /// Ends the node of the workflow of which that was asked, if it has had its turns; returns what another node
    /// applies then.
    pub(super) fn end_hosting(&mut self, turns: impl Fn(&EntityId) -> u64) -> Option<Signal> {
        let (target, _) = self.ends_behind.take_if(|(id, behind)| turns(id) >= *behind)?;
        self.steps.cancel(|id| *id.workflow() == target);
        let operation = self.on_hosting.remove(&target)?;
        Some(Signal { target, operation, input: Vec::new(), delay: None })
    }
}

type Player = Box<dyn FnMut(&StepStart) -> StepPlay + Send + Sync>;

/// The attempts of steps that were begun.
#[derive(Default)]
pub(super) struct Steps {
    /// Those that are to be played, in the order in which they were begun.
    begun: VecDeque<StepStart>,
    /// Those that the test ends.
    pub(super) held: Vec<StepStart>,
    player: Option<Player>,
}

impl Steps {
    pub(super) fn begin(&mut self, start: StepStart) {
        self.begun.push_back(start);
    }

    pub(super) fn play_by(&mut self, player: Player) {
        self.player = Some(player);
    }

    /// Ends the attempts that are told to.
    pub(super) fn cancel(&mut self, is_it: impl Fn(&StepId) -> bool) {
        let held = self.held.iter().chain(&self.begun);
        held.filter(|start| is_it(start.id())).for_each(|start| start.cancellation().cancel());
        self.begun.retain(|start| !is_it(start.id()));
        self.held.retain(|start| !is_it(start.id()));
    }

    /// Plays the next attempt; returns it with its end, unless it is held. `None` behind the last one.
    pub(super) fn play(&mut self, given: &Dependencies) -> Option<Option<(StepStart, Vec<u8>)>> {
        let start = self.begun.pop_front()?;
        let play = self.player.as_mut().map_or(StepPlay::Run, |player| player(&start));
        let ended = match play {
            StepPlay::Run => start.ended(Some(run(&start, given))),
            StepPlay::End(result) => start.ended(Some(result)),
            StepPlay::TimeOut => start.ended(None),
            StepPlay::Hold => {
                self.held.push(start);
                return Some(None);
            }
        };
        Some(Some((start, ended)))
    }
}

/// Runs an attempt where it stands. What it awaits that needs a runtime is an error that is not tried again.
fn run(start: &StepStart, given: &Dependencies) -> StepResult {
    let running = start.begin(given);
    match at_once(async { Ok::<_, CallError>(running.await) }) {
        Ok(result) => result,
        Err(_) => Err(crate::workflow::StepError::fatal(format!(
            "the step {} awaits what is not ready: say what it returns, `driver.step({:?})`",
            start.name(),
            start.name()
        ))),
    }
}

impl fmt::Debug for StepPlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "Run",
            Self::Hold => "Hold",
            Self::End(_) => "End",
            Self::TimeOut => "TimeOut",
        })
    }
}
