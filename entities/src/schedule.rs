//! Schedules: when a reminder is due, once, at an interval or by a cron expression in a time zone.
//!
//! Cron expressions are read by the crate croner: five fields (minute, hour, day of month, month, day of the
//! week), or six with seconds before them. Zones are those of the IANA database that this program was built
//! with. Where clocks are set forward, what falls into the gap by a fixed time of day is due at its end, and
//! what recurs within the hour goes on behind it; where they are set back, a fixed time of day is due at its
//! first pass only, and what recurs within the hour in both.

use std::time::Duration;

use croner::{
    Cron as Pattern,
    parser::{CronParser, Year},
};
use jiff::tz::TimeZone;

use crate::{Timeout, Timestamp};

/// The shortest interval of a recurring reminder.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// The longest cron expression, and the longest name of a zone, in bytes.
pub const CRON_BYTES_MAX: usize = 128;
/// How late an occurrence may be before it is missed, where missed ones are left out.
pub const MISSED_AFTER: Duration = Duration::from_secs(60);

/// When a reminder is due. Times are the store's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Once, this long after the turn that sets it.
    After(Timeout),
    /// Once, at this moment; at once if it has passed.
    At(Timestamp),
    /// Again and again, first after one interval; the rhythm stays, however late an occurrence is.
    Every(Timeout, Missed),
    /// Again and again, by a cron expression.
    Cron(Box<Cron>),
}

/// The occurrences of a recurring reminder that are missed, because nobody served when they were due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They are caught up once.
    #[default]
    Once,
    /// Each is caught up, one after the other.
    All,
    /// They are left out: an occurrence that is late by a minute, or so late that the next one is due, is
    /// no turn.
    None,
}

impl Schedule {
    /// The due time of the first occurrence when the reminder is set at `now`.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn first(&self, now: Timestamp) -> Result<Timestamp, String> {
        match self {
            Self::After(length) => Ok(now + length.as_duration()),
            Self::At(moment) => Ok(*moment),
            Self::Every(interval, _) if interval.as_duration() < INTERVAL_MIN => {
                Err(format!("a reminder's interval is at least {INTERVAL_MIN:?}"))
            }
            Self::Every(interval, _) => Ok(now + interval.as_duration()),
            Self::Cron(cron) => cron.check().and_then(|()| cron.after(now)),
        }
    }

    /// The due time of the occurrence after the one that was due at `due`, when that one is settled at
    /// `now`; `None` where there is none.
    pub fn next(&self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::After(_) | Self::At(_) => None,
            Self::Every(interval, missed) => {
                let interval = interval.as_duration().max(INTERVAL_MIN);
                let late = match missed {
                    Missed::All => Duration::ZERO,
                    Missed::Once | Missed::None => now.since(due),
                };
                let steps = late.as_micros() / interval.as_micros() + 1;
                Some(due + interval.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX)))
            }
            Self::Cron(cron) => match cron.missed {
                Missed::All => cron.after(due).ok(),
                Missed::Once | Missed::None => cron.after(due.max(now)).ok(),
            },
        }
    }

    /// Whether the occurrence that was due at `due` is too late at `now` to be a turn.
    pub fn is_missed(&self, due: Timestamp, now: Timestamp) -> bool {
        let leaves_out = match self {
            Self::Every(_, missed) => *missed == Missed::None,
            Self::Cron(cron) => cron.missed == Missed::None,
            Self::After(_) | Self::At(_) => false,
        };
        let is_late = || {
            now.since(due) >= MISSED_AFTER || self.next(due, due).is_some_and(|next| next <= now)
        };
        leaves_out && is_late()
    }

    /// The occurrences behind the one that is due at `due`, the next first, as far as there are so many.
    pub fn upcoming(&self, due: Timestamp, count: usize) -> Vec<Timestamp> {
        let next = std::iter::successors(Some(due), |last| self.next(*last, *last));
        next.skip(1).take(count).collect()
    }
}

/// `After(duration)`: a one-shot reminder, counted from the turn that sets it.
#[derive(Debug, Clone, Copy)]
pub struct After<L: Into<Timeout>>(
    /// A [`Timeout`] or a [`Duration`].
    pub L,
);
/// `At(timestamp)`: a one-shot reminder at a moment.
#[derive(Debug, Clone, Copy)]
pub struct At(
    /// The moment.
    pub Timestamp,
);
/// `Every(interval)`: a recurring reminder; the interval is at least [`INTERVAL_MIN`].
#[derive(Debug, Clone, Copy)]
pub struct Every<L: Into<Timeout>>(
    /// A [`Timeout`] or a [`Duration`].
    pub L,
);

impl<L: Into<Timeout>> Every<L> {
    /// Says what becomes of occurrences that are missed.
    pub fn missed(self, missed: Missed) -> Schedule {
        Schedule::Every(self.0.into(), missed)
    }
}

/// A recurring reminder by a cron expression, in a time zone: the [module](self) says what both mean.
///
/// ```
/// use stead_entities::{Cron, Missed};
///
/// let weekdays = Cron::new("0 9 * * MON-FRI", "Europe/Berlin").missed(Missed::None);
/// assert_eq!(weekdays.after("2026-03-27T08:00:00Z".parse().unwrap()).unwrap().to_string(),
///     "2026-03-30T07:00:00Z"); // On Monday, when clocks have been set forward.
/// ```
///
/// An expression or a zone that does not exist, or one that is never due, fails the turn that sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    expression: String,
    zone: String,
    missed: Missed,
}

impl Cron {
    /// The times of an expression in the zone of this IANA name.
    pub fn new(expression: impl Into<String>, zone: impl Into<String>) -> Self {
        Self { expression: expression.into(), zone: zone.into(), missed: Missed::default() }
    }

    /// Says what becomes of occurrences that are missed.
    #[must_use]
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// The expression, the name of the zone, and what becomes of occurrences that are missed.
    pub fn parts(&self) -> (&str, &str, Missed) {
        (&self.expression, &self.zone, self.missed)
    }

    /// The first time after a moment.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn after(&self, moment: Timestamp) -> Result<Timestamp, String> {
        let (pattern, zone) = (parse(&self.expression)?, zone(&self.zone)?);
        let unrepresentable = |error: jiff::Error| error.to_string();
        let moment =
            jiff::Timestamp::from_microsecond(moment.as_micros()).map_err(unrepresentable)?;
        let next = pattern.find_next_occurrence(&moment.to_zoned(zone), false);
        let never = |_| format!("the cron expression {:?} is never due", self.expression);
        Ok(Timestamp::from_micros(next.map_err(never)?.timestamp().as_microsecond()))
    }

    /// A moment as clocks in the zone show it, in the form of RFC 9557.
    pub fn local(&self, moment: Timestamp) -> Option<String> {
        let moment = jiff::Timestamp::from_microsecond(moment.as_micros()).ok()?;
        Some(moment.to_zoned(zone(&self.zone).ok()?).to_string())
    }

    fn check(&self) -> Result<(), String> {
        if self.expression.len() > CRON_BYTES_MAX || self.zone.len() > CRON_BYTES_MAX {
            return Err(format!(
                "a cron expression, or a zone, has at most {CRON_BYTES_MAX} bytes"
            ));
        }
        parse(&self.expression)?;
        zone(&self.zone).map(drop)
    }
}

/// The names of the fields, the last five where there are no seconds.
const FIELDS: [&str; 6] = ["second", "minute", "hour", "day of month", "month", "day of week"];

fn parse(expression: &str) -> Result<Pattern, String> {
    let parser = CronParser::builder().year(Year::Disallowed).build();
    let error = match parser.parse(expression) {
        Ok(pattern) => return Ok(pattern),
        Err(error) => error,
    };
    // Which field it is: the one that is wrong among others that are not.
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let names = FIELDS.iter().skip(6_usize.saturating_sub(fields.len()));
    let wrong = (0..fields.len()).zip(names).find(|(place, _)| {
        let alone = (0..fields.len()).map(|at| if at == *place { fields[at] } else { "*" });
        parser.parse(&alone.collect::<Vec<_>>().join(" ")).is_err()
    });
    let place = match wrong {
        Some((place, name)) if matches!(fields.len(), 5 | 6) => {
            format!("field {}, the {name}, {:?}", place + 1, fields[place])
        }
        _ => {
            "minute, hour, day of month, month, day of week, with seconds before them or not".into()
        }
    };
    Err(format!("{expression:?} is no cron expression: {error} ({place})"))
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| format!("there is no time zone {name:?}: Europe/Berlin is one"))
}

impl<L: Into<Timeout>> From<After<L>> for Schedule {
    fn from(after: After<L>) -> Self {
        Self::After(after.0.into())
    }
}
impl From<At> for Schedule {
    fn from(at: At) -> Self {
        Self::At(at.0)
    }
}
impl<L: Into<Timeout>> From<Every<L>> for Schedule {
    fn from(every: Every<L>) -> Self {
        every.missed(Missed::default())
    }
}
impl From<Cron> for Schedule {
    fn from(cron: Cron) -> Self {
        Self::Cron(Box::new(cron))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn moment(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    /// The first times of an expression behind a moment, as local clocks show them.
    fn times(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let cron = Cron::new(expression, zone);
        let mut last = moment(after);
        let mut times = Vec::new();
        for _ in 0..count {
            last = cron.after(last).expect("a time");
            let local = cron.local(last).expect("in range");
            times.push(local[..22].replace('T', " "));
        }
        times
    }

    #[test]
    fn a_missed_recurrence_is_caught_up_as_its_schedule_says() {
        let ten = Duration::from_secs(10);
        let once = Schedule::from(Every(ten));
        assert_eq!(once.first(at(100)), Ok(at(110)));
        assert_eq!(once.next(at(110), at(110)), Some(at(120)));
        assert_eq!(once.next(at(110), at(119)), Some(at(120)));
        assert_eq!(once.next(at(110), at(155)), Some(at(160)));
        assert_eq!(once.next(at(110), at(160)), Some(at(170)));
        let all = Every(ten).missed(Missed::All);
        assert_eq!(all.next(at(110), at(155)), Some(at(120)));
        let none = Every(ten).missed(Missed::None);
        assert_eq!(none.next(at(110), at(155)), Some(at(160)));
        let is_missed =
            |late: i64| [&once, &all, &none].map(|it| it.is_missed(at(110), at(110 + late)));
        assert_eq!(is_missed(9), [false; 3]);
        assert_eq!(is_missed(10), [false, false, true], "the next one is due");
        let daily = Schedule::from(Cron::new("0 9 * * *", "UTC").missed(Missed::None));
        let due = moment("2026-01-05T09:00:00Z");
        assert!(!daily.is_missed(due, due + Duration::from_secs(59)));
        assert!(daily.is_missed(due, due + Duration::from_secs(60)));
        assert_eq!(all.upcoming(at(110), 2), [at(120), at(130)]);
    }

    #[test]
    fn a_one_shot_has_no_next() {
        assert_eq!(Schedule::At(at(1)).next(at(1), at(5)), None);
        assert_eq!(Schedule::After(Timeout::default()).next(at(1), at(5)), None);
    }

    #[test]
    fn a_time_that_does_not_exist_is_due_at_the_end_of_the_gap() {
        // Berlin, on 2026-03-29: 02:00 is 03:00.
        let daily = times("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
        let expected =
            ["2026-03-28 02:30:00+01", "2026-03-29 03:00:00+02", "2026-03-30 02:30:00+02"];
        assert_eq!(daily, expected);
        let hourly = times("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
        let expected =
            ["2026-03-29 01:30:00+01", "2026-03-29 03:30:00+02", "2026-03-29 04:30:00+02"];
        assert_eq!(hourly, expected);
    }

    #[test]
    fn a_time_that_comes_twice_is_due_once_unless_it_recurs_within_the_hour() {
        // Berlin, on 2026-10-25: 03:00 is 02:00.
        let daily = times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(daily, ["2026-10-25 02:30:00+02", "2026-10-26 02:30:00+01"]);
        let hourly = times("30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 3);
        let expected =
            ["2026-10-25 02:30:00+02", "2026-10-25 02:30:00+01", "2026-10-25 03:30:00+01"];
        assert_eq!(hourly, expected);
        // Where they are caught up one by one, too.
        let all = Schedule::from(Cron::new("30 2 * * *", "Europe/Berlin").missed(Missed::All));
        let first = moment("2026-10-25T00:30:00Z");
        assert_eq!(
            all.next(first, first + Duration::from_secs(3_600)),
            Some(moment("2026-10-26T01:30:00Z"))
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_place() {
        let refused = |expression: &str, zone: &str| {
            let schedule = Schedule::from(Cron::new(expression, zone));
            schedule.first(at(0)).expect_err("no schedule")
        };
        assert!(refused("61 * * * *", "UTC").contains("field 1, the minute, \"61\""));
        assert!(refused("0 0 1 13 *", "UTC").contains("field 4, the month, \"13\""));
        assert!(refused("0 0 9 * * XYZ", "UTC").contains("field 6, the day of week"));
        for expression in ["", "* * *", "0 0 1 1 * 2030 5 5", &"*,".repeat(100)] {
            refused(expression, "UTC");
        }
        assert!(refused("0 9 * * *", "Europe/Nowhere").contains("\"Europe/Nowhere\""));
        assert!(refused("0 0 30 2 *", "UTC").contains("never due"));
    }
}
