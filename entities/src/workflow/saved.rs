//! Histories outside of a store: saved beside a test, and replayed with later code.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    Program, WorkflowType,
    activation::Activation,
    core::RunIdentity,
    history::{Delivery, Turn},
};
use crate::EntityId;

/// The history of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHistory {
    pub(super) id: String,
    pub(super) version: u32,
    pub(super) run: u32,
    /// How often it was rewound.
    #[serde(default)]
    pub(super) rewinds: u32,
    /// In hexadecimal digits.
    pub(super) seed: String,
    pub(super) turns: Vec<Turn>,
}

impl SavedHistory {
    /// Writes it to a file, as JSON.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> std::io::Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        std::fs::write(path, json)
    }

    /// Reads one that was saved.
    ///
    /// # Errors
    /// Where the file cannot be read, or is none.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, String> {
        let path = path.as_ref();
        let wrong = |why: String| format!("the history {}: {why}", path.display());
        let json = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))
    }

    /// Whether it goes on with what `next` has: they are of the same run.
    pub(super) fn is_before(&self, next: &Self) -> bool {
        (self.version, self.run, self.rewinds, &self.seed)
            == (next.version, next.run, next.rewinds, &next.seed)
    }

    /// How many deliveries it has.
    pub fn deliveries(&self) -> usize {
        self.turns.iter().map(|turn| turn.deliveries.len()).sum()
    }

    /// Replays it with the code of `W` in its version, and compares what that does with what is recorded, with the
    /// arguments of its steps and calls.
    ///
    /// # Errors
    /// The first place at which the code does something else.
    pub fn replay<W: WorkflowType>(&self) -> Result<(), String> {
        let Some(Delivery::Start(input)) =
            self.turns.first().and_then(|turn| turn.deliveries.first())
        else {
            return Ok(());
        };
        let programs = std::iter::once(Program::of::<W>()).chain(W::earlier());
        let program = programs.into_iter().find(|program| program.version() == self.version);
        let program =
            program.ok_or_else(|| format!("there is no code of version {}", self.version))?;
        let id = EntityId::parse(&self.id).map_err(|error| error.to_string())?;
        let seed = u128::from_str_radix(&self.seed, 16).map_err(|error| error.to_string())?;
        let (version, run, rewound_at) = (self.version, self.run, Default::default());
        let identity = RunIdentity { id, version, run, seed, rewound_at };
        let refused = |problem: super::activation::Problem| problem.text().to_owned();
        let mut activation = Activation::new(&program, identity, input).map_err(refused)?;
        self.turns.iter().try_for_each(|turn| activation.replay_exactly(turn)).map_err(refused)
    }
}
