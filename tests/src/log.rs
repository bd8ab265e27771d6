//! What the clients of a cluster work with: lists, in which an id that is lost, doubled or
//! out of order is seen at once.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{
    After, Answer, Context, Cron, DeadLetter, Failure, Layout, Map, Missed, Rejection, Timestamp,
    entity,
};

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
    /// The ids that it took at last, those of which it was told that they were refused, and those whose
    /// dead letters it has heard of.
    pub took: Vec<u64>,
    /// See [`Log::took`].
    pub refused: Vec<u64>,
    /// See [`Log::took`].
    pub lost: Vec<u64>,
    /// The ids of the embers that have burned down.
    pub burned: Vec<u64>,
    /// The ids of the cron reminders, as often as they were due.
    pub ticked: Vec<u64>,
    /// The same as [`Log::entries`], each a row of its own.
    pub order: stead::Log<u64>,
    /// The ids, with their places.
    pub places: Map<u64, u64>,
}

/// How often a cron reminder is due before it is cancelled.
pub const TICKS: usize = 3;

#[entity(name = "log", on_dead_letter = on_lost, changes = Duration::from_secs(3_600))]
impl Log {
    fn take_in(&mut self, entry: u64) {
        self.order.push(Timestamp::default(), entry);
        self.places.insert(entry, self.entries.len() as u64);
        self.entries.push(entry);
    }

    /// Appends an id.
    pub fn append(&mut self, entry: u64) -> usize {
        self.take_in(entry);
        self.entries.len()
    }

    /// Appends an id and tells others of it.
    pub fn tell(&mut self, ctx: &mut Context, entry: u64, others: Vec<String>) {
        self.take_in(entry);
        for other in others {
            let number = self.told.entry(other.clone()).or_default();
            *number += 1;
            ctx.signal(Self::of(&other).hear(ctx.key().to_owned(), *number));
        }
    }

    /// Appends an id, and is reminded of it.
    pub fn remind(&mut self, ctx: &mut Context, entry: u64, other: String) {
        self.take_in(entry);
        let soon = Duration::from_millis(entry % 700);
        ctx.remind(format!("{entry}"), After(soon), Self::of(ctx.key()).ring(entry));
        ctx.signal(Self::of(&other).arrive(entry).after(soon));
    }

    /// Appends an id, and asks others what they make of it; for an even one it waits for a while only.
    pub fn ask(&mut self, ctx: &mut Context, entry: u64, others: Vec<String>) {
        self.take_in(entry);
        let then = Self::of(ctx.key()).on_judged(entry);
        let then = match entry % 2 {
            0 => then.within(Duration::from_millis(1 + entry % 900)),
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

    /// Appends an id, has another stumble over it, lights an ember, and ticks for a while.
    pub fn stumble(&mut self, ctx: &mut Context, entry: u64, other: String) {
        self.take_in(entry);
        let from = ctx.now() + Duration::from_millis(entry % 300);
        ctx.signal(Self::of(&other).take(entry, ctx.key().to_owned(), from));
        ctx.signal(Ember::of(entry.to_string()).glow(ctx.key().to_owned()));
        let every_second = Cron::new("* * * * * *", "UTC").missed(Missed::All);
        ctx.remind(format!("tick {entry}"), every_second, Self::of(ctx.key()).tick(entry));
    }

    /// Takes an id, later, never, or not.
    #[operation(retries = 200)]
    pub(crate) fn take(
        &mut self,
        ctx: &mut Context,
        entry: u64,
        sender: String,
        from: Timestamp,
    ) -> Result<(), Failure> {
        self.took.push(entry);
        match entry % 4 {
            0 if ctx.now() < from => {
                Err(Failure::retry("too early").after(Duration::from_millis(50)))
            }
            1 => Err(Failure::fatal("every fourth")),
            2 => {
                ctx.signal(Self::of(sender).hear_of_no(entry));
                Err(Rejection::new("every fourth").with_effects().into())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn hear_of_no(&mut self, entry: u64) {
        self.refused.push(entry);
    }

    pub(crate) fn on_lost(&mut self, letter: DeadLetter) {
        let input: serde_json::Value = serde_json::from_str(&letter.input).unwrap_or_default();
        self.lost.extend(input["entry"].as_u64());
    }

    pub(crate) fn tick(&mut self, ctx: &mut Context, entry: u64) {
        self.ticked.push(entry);
        if self.ticked.iter().filter(|ticked| **ticked == entry).count() == TICKS {
            ctx.cancel_reminder(format!("tick {entry}"));
        }
    }

    pub(crate) fn burn_down(&mut self, entry: u64) {
        self.burned.push(entry);
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
    ///
    /// # Panics
    /// Where its collections are not what its list is.
    pub fn all(&self) -> Log {
        let order: Vec<_> = self.order.range(0..u64::MAX).map(|(_, entry)| entry.value).collect();
        assert_eq!(order, self.entries, "each entry is a row of the log");
        let mut places: Vec<_> = self.places.iter().map(|(id, place)| (*place, *id)).collect();
        places.sort_unstable();
        let expected = (0..).zip(self.entries.iter().copied());
        assert!(places.into_iter().eq(expected), "each entry is a row of the map");
        self.clone()
    }

    /// The id that it took in last.
    #[index]
    fn newest(&self) -> Option<u64> {
        self.entries.last().copied()
    }

    /// How many ids it took in.
    #[index]
    fn size(&self) -> u64 {
        self.entries.len() as u64
    }
}

/// One of a kind, which is gone when it has burned down.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Ember {
    owner: String,
    sparks: Map<u64, String>,
}

#[entity(name = "ember", index(owner: String), changes = Duration::from_secs(3_600))]
impl Ember {
    /// Glows for a tenth of a second, but for as long as it has something to do.
    pub(crate) fn glow(&mut self, ctx: &mut Context, owner: String) {
        for spark in 0..3 {
            self.sparks.insert(spark, owner.clone());
        }
        self.owner = owner;
        ctx.expire_after(Duration::from_millis(100));
        ctx.signal(Self::of(ctx.key()).burn_down().after(Duration::from_millis(400)));
    }

    pub(crate) fn burn_down(&mut self, ctx: &mut Context) {
        let entry = ctx.key().parse().unwrap_or_default();
        self.sparks.remove(&1);
        ctx.signal(Log::of(&self.owner).burn_down(entry));
    }
}
