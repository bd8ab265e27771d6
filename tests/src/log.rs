//! What the clients of a cluster work with: lists, in which an id that is lost, doubled or
//! out of order is seen at once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{After, Answer, Context, Failure, Layout, Rejection, entity};

/// Everything that an entity applied, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Log {
    /// What clients appended.
    pub entries: Vec<u64>,
    /// How many signals it sent, by receiver.
    pub told: BTreeMap<String, u64>,
    /// What it heard: the sender, and the number of the signal.
    pub heard: Vec<(String, u64)>,
    /// The reminders that fired.
    pub rung: Vec<u64>,
    /// The delayed signals that arrived.
    pub late: Vec<u64>,
    /// The questions that it answered, and those that it refused.
    pub judged: Vec<u64>,
    /// The answers that it got, by the id for which it asked.
    pub answers: Vec<(u64, Vec<String>)>,
}

#[entity(name = "log")]
impl Log {
    /// Appends an id.
    pub fn append(&mut self, entry: u64) -> usize {
        self.entries.push(entry);
        self.entries.len()
    }

    /// Appends an id and tells others of it.
    pub fn tell(&mut self, ctx: &mut Context, entry: u64, others: Vec<String>) {
        self.entries.push(entry);
        for other in others {
            let number = self.told.entry(other.clone()).or_default();
            *number += 1;
            ctx.signal(Self::of(&other).hear(ctx.key().to_owned(), *number));
        }
    }

    /// Appends an id, and is reminded of it.
    pub fn remind(&mut self, ctx: &mut Context, entry: u64, other: String) {
        self.entries.push(entry);
        let soon = std::time::Duration::from_millis(entry % 700);
        ctx.remind(format!("{entry}"), After(soon), Self::of(ctx.key()).ring(entry));
        ctx.signal(Self::of(&other).arrive(entry).after(soon));
    }

    /// Appends an id, and asks others what they make of it; for an even one it waits for a while only.
    pub fn ask(&mut self, ctx: &mut Context, entry: u64, others: Vec<String>) {
        self.entries.push(entry);
        let then = Self::of(ctx.key()).on_judged(entry);
        let then = match entry % 2 {
            0 => then.within(std::time::Duration::from_millis(1 + entry % 900)),
            _ => then,
        };
        ctx.ask_all(others.iter().map(|other| Self::of(other).judge(entry)), then);
    }

    /// Judges an id: refuses every third.
    pub(crate) fn judge(&mut self, entry: u64) -> Result<u64, Rejection> {
        if entry.is_multiple_of(3) {
            return Err(Rejection::new("every third is refused"));
        }
        self.judged.push(entry);
        Ok(entry)
    }

    pub(crate) fn on_judged(&mut self, answers: Vec<Answer<u64>>, entry: u64) {
        let shown = answers.into_iter().map(|answer| match answer {
            Ok(judged) => judged.to_string(),
            Err(Failure::Rejected(_)) => "refused".into(),
            Err(failure) => failure.to_string(),
        });
        self.answers.push((entry, shown.collect()));
    }

    /// Hears of an id.
    pub(crate) fn hear(&mut self, sender: String, number: u64) {
        self.heard.push((sender, number));
    }

    pub(crate) fn ring(&mut self, entry: u64) {
        self.rung.push(entry);
    }

    pub(crate) fn arrive(&mut self, entry: u64) {
        self.late.push(entry);
    }

    /// Everything.
    pub fn all(&self) -> Log {
        self.clone()
    }
}
