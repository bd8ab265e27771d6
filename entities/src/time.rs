//! The two notions of time that cross HTTP: a moment and a length.

use std::{fmt, ops::Add, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind};

/// A moment, in microseconds since 1970-01-01T00:00:00Z. JSON shows it as RFC 3339 in UTC.
///
/// ```
/// # use stead_entities::Timestamp;
/// let moment: Timestamp = "2026-01-02T03:04:05Z".parse()?;
/// assert_eq!(moment.to_string(), "2026-01-02T03:04:05Z");
/// # Ok::<(), stead_entities::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A length of time, in microseconds, at most about 292,000 years. JSON shows it as an ISO 8601
/// duration such as `PT1H30M`; days and weeks are 24 hours and 7 days, months and years are
/// refused because their length depends on the date.
///
/// ```
/// # use stead_entities::Timeout;
/// let timeout: Timeout = "P1DT30S".parse()?;
/// assert_eq!(timeout.as_duration().as_secs(), 86_430);
/// assert_eq!(timeout.to_string(), "PT24H30S");
/// # Ok::<(), stead_entities::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeout(u64);

impl Timestamp {
    /// The latest time that RFC 3339 can show with certainty: the end of the year 9999, less a day
    /// for time zones.
    pub const MAX: Self = Self(253_402_207_200_000_000);

    /// The moment that is `micros` microseconds after the start of 1970 in UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start of 1970 in UTC.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Timeout {
    /// A length in microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The same length for the standard library.
    pub const fn as_duration(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, length: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(length.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl FromStr for Timestamp {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let moment: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| {
            let message = format!("{text:?} is not an RFC 3339 time such as 2026-01-02T03:04:05Z");
            Error::new(ErrorKind::Invalid, message).with_source(error)
        })?;
        Ok(Self(moment.as_microsecond()))
    }
}

impl FromStr for Timeout {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: String| {
            let message = format!("{text:?} is not an ISO 8601 duration such as PT1H30M: {why}");
            Error::new(ErrorKind::Invalid, message)
        };
        if !text.starts_with('P') {
            return Err(refuse("it begins with P".into()));
        }
        let span: jiff::Span =
            text.parse().map_err(|error: jiff::Error| refuse(error.to_string()))?;
        if span.get_years() != 0 || span.get_months() != 0 {
            return Err(refuse("the length of years and months depends on the date".into()));
        }
        let length = span
            .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
            .map_err(|error| refuse(error.to_string()))?;
        let micros = u64::try_from(length.as_micros())
            .map_err(|_| refuse("it is negative or too long".into()))?;
        Ok(Self(micros))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(moment) => moment.fmt(f),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        f.write_str("PT")?;
        if hours > 0 {
            write!(f, "{hours}H")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}M")?;
        }
        match micros {
            0 if seconds > 0 || (hours == 0 && minutes == 0) => write!(f, "{seconds}S"),
            0 => Ok(()),
            _ => {
                let fraction = format!("{micros:06}");
                write!(f, "{seconds}.{}S", fraction.trim_end_matches('0'))
            }
        }
    }
}

/// The bound in microseconds, the year 2112, above which times and lengths are looked at more closely.
const COMMON_MAX: i128 = 1 << 52;

macro_rules! text_in_json_number_in_store {
    ($type:ident, $number:ty, $name:literal, $format:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    let text = self.to_string();
                    if self.0 as i128 > COMMON_MAX && text.parse::<Self>().is_err() {
                        let what = concat!(stringify!($type), " beyond what its text can show");
                        return Err(serde::ser::Error::custom(format!("{text} is a {what}")));
                    }
                    serializer.serialize_str(&text)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    <$number>::deserialize(deserializer).map(Self)
                }
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format })
            }
        }
    };
}
text_in_json_number_in_store!(Timestamp, i64, "Timestamp", "date-time");
text_in_json_number_in_store!(Timeout, u64, "Timeout", "duration");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_reads_what_it_writes() {
        for text in ["PT0S", "PT1S", "PT1H", "PT1H30M", "PT0.5S", "PT25H0.000001S", "PT2M3.25S"] {
            assert_eq!(text.parse::<Timeout>().expect(text).to_string(), text);
        }
        for text in ["", "1H", "P1Y", "P1M", "-PT1S", "PT", "1 hour", "P1D1H"] {
            assert!(text.parse::<Timeout>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_timestamp_reads_rfc_3339_with_any_offset() {
        let moment: Timestamp = "2011-10-11T13:45:40.276+02:00".parse().expect("valid");
        assert_eq!(moment.to_string(), "2011-10-11T11:45:40.276Z");
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
