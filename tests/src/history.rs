//! What must hold of a history.

use std::collections::{BTreeMap, BTreeSet};

use crate::log::{Log, TICKS};

/// What clients know.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was asked for, and by which operation.
    pub sent: BTreeMap<(String, u64), Kind>,
    /// What was answered.
    pub acknowledged: BTreeSet<(String, u64)>,
    /// The delayed signals, and what others stumble over, with their receivers.
    pub delayed: BTreeMap<u64, String>,
    /// Who was asked, for each id.
    pub asked: BTreeMap<u64, Vec<String>>,
    /// What was read of an entity, and how much of it was acknowledged before.
    pub reads: Vec<(String, Vec<u64>, BTreeSet<u64>)>,
    /// Answers that nobody should get.
    pub wrong: Vec<String>,
}

/// What an id was sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Append,
    Tell,
    Remind,
    Ask,
    Stumble,
}

/// Compares what is stored in the end with what clients know. Returns what is wrong.
pub fn compare(history: &History, logs: &BTreeMap<String, Log>) -> Vec<String> {
    let mut wrong = history.wrong.clone();
    for (key, log) in logs {
        let mut seen = BTreeSet::new();
        for entry in &log.entries {
            if !seen.insert(*entry) {
                wrong.push(format!("{key} has {entry} twice"));
            }
            if !history.sent.contains_key(&(key.clone(), *entry)) {
                wrong.push(format!("{key} has {entry}, which nobody sent"));
            }
        }
        wrong.extend(heard(key, log, logs));
        wrong.extend(answered(history, key, log));
        wrong.extend(judged(history, key, log, logs));
        wrong.extend(stumbled(history, key, log, logs));
        let reminded =
            |entry: &&u64| history.sent.get(&(key.clone(), **entry)) == Some(&Kind::Remind);
        let due: BTreeSet<u64> = log.entries.iter().filter(reminded).copied().collect();
        let rung: BTreeSet<u64> = log.rung.iter().copied().collect();
        if rung.len() != log.rung.len() {
            wrong.push(format!("{key} was reminded twice: {:?}", log.rung));
        }
        if rung != due {
            wrong.push(format!("{key} was reminded of {rung:?}, not of {due:?}"));
        }
        for entry in &due {
            let Some(receiver) = history.delayed.get(entry) else { continue };
            let arrived = logs
                .get(receiver)
                .map_or(0, |log| log.late.iter().filter(|late| *late == entry).count());
            if arrived != 1 {
                wrong.push(format!("{entry} arrived late at {receiver} {arrived} times"));
            }
        }
    }
    for (key, entry) in &history.acknowledged {
        if !logs.get(key).is_some_and(|log| log.entries.contains(entry)) {
            wrong.push(format!("{key} has lost {entry}, which was acknowledged"));
        }
    }
    for (key, read, known) in &history.reads {
        let entries = logs.get(key).map_or(&[][..], |log| &log.entries);
        if !entries.starts_with(read) {
            wrong.push(format!("{key} showed {read:?}, which is no beginning of {entries:?}"));
        }
        if let Some(missing) = known.iter().find(|entry| !read.contains(entry)) {
            wrong.push(format!("{key} was read without {missing}, acknowledged before"));
        }
    }
    wrong
}

/// What another stumbled over came to what it must, once; its ember has burned down, and its reminder was
/// due as often as it should be.
fn stumbled(history: &History, key: &str, log: &Log, logs: &BTreeMap<String, Log>) -> Vec<String> {
    let of = |entry: &&u64| history.sent.get(&(key.to_owned(), **entry)) == Some(&Kind::Stumble);
    let count = |list: &[u64], entry: u64| list.iter().filter(|of| **of == entry).count();
    let mut wrong = Vec::new();
    for entry in log.entries.iter().filter(of).copied() {
        let other = history.delayed.get(&entry).and_then(|other| logs.get(other));
        let Some(other) = other else { continue };
        let came =
            [count(&other.took, entry), count(&other.lost, entry), count(&log.refused, entry)];
        let expected = match entry % 4 {
            1 => [0, 1, 0],
            2 => [0, 1, 1],
            _ => [1, 0, 0],
        };
        if came != expected {
            wrong.push(format!("{entry} of {key} was taken, lost and refused {came:?} times"));
        }
        let (burned, ticked) = (count(&log.burned, entry), count(&log.ticked, entry));
        if (burned, ticked) != (1, TICKS) {
            wrong.push(format!("{entry} of {key} burned down {burned}, and ticked {ticked} times"));
        }
    }
    wrong
}

/// Each ask has one list of answers, as those who were asked give them; one with a timeout may lack some.
fn answered(history: &History, key: &str, log: &Log) -> Vec<String> {
    let of = |entry: &&u64| history.sent.get(&(key.to_owned(), **entry)) == Some(&Kind::Ask);
    let mut wrong = Vec::new();
    for entry in log.entries.iter().filter(of) {
        let asked = history.asked.get(entry).map_or(0, Vec::len);
        let lists = log.answers.iter().filter(|(of, _)| of == entry);
        let lists: Vec<_> = lists.map(|(_, answers)| answers).collect();
        let right = match entry % 3 {
            0 => "refused".to_owned(),
            _ => entry.to_string(),
        };
        let is_right = |answer: &String| {
            *answer == right || entry.is_multiple_of(2) && answer == "no answer came in time"
        };
        if lists.len() != 1 || lists[0].len() != asked || !lists[0].iter().all(is_right) {
            wrong.push(format!("{key} was answered {lists:?} for {entry}, asked of {asked}"));
        }
    }
    if log.answers.iter().any(|(entry, _)| !of(&entry)) {
        wrong.push(format!("{key} was answered without asking: {:?}", log.answers));
    }
    wrong
}

/// Each question was judged as often as it was asked.
fn judged(history: &History, key: &str, log: &Log, logs: &BTreeMap<String, Log>) -> Vec<String> {
    let mut due = Vec::new();
    for (asker, of) in logs {
        let asks = |entry: &&u64| {
            history.sent.get(&(asker.clone(), **entry)) == Some(&Kind::Ask)
                && !entry.is_multiple_of(3)
        };
        for entry in of.entries.iter().filter(asks) {
            let others = history.asked.get(entry).into_iter().flatten();
            due.extend(others.filter(|other| *other == key).map(|_| *entry));
        }
    }
    let mut judged = log.judged.clone();
    judged.sort_unstable();
    due.sort_unstable();
    match judged == due {
        true => Vec::new(),
        false => vec![format!("{key} judged {judged:?}, and was asked {due:?}")],
    }
}

/// Each receiver has heard each sender's numbers, all of them, in order.
fn heard(key: &str, log: &Log, logs: &BTreeMap<String, Log>) -> Vec<String> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (sender, number) in &log.heard {
        let last = last.entry(sender).or_default();
        if *number != *last + 1 {
            wrong.push(format!("{key} heard {number} of {sender} after {last}"));
        }
        *last = *number;
    }
    for (sender, of) in logs {
        let told = of.told.get(key).copied().unwrap_or(0);
        let heard = last.get(sender.as_str()).copied().unwrap_or(0);
        if told != heard {
            wrong.push(format!("{key} heard {heard} of {told} signals of {sender}"));
        }
    }
    wrong
}
