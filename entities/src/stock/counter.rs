//! A counter.

use crate::{Deserialize, JsonSchema, Layout, Rejection, Serialize, entity};

/// A number that starts at zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Counter {
    value: i64,
}

/// Counts. Amounts and values are 64-bit signed integers.
#[entity(name = "counter", index(value: i64))]
impl Counter {
    /// Adds `amount` and returns the new value.
    pub fn add(&mut self, amount: i64) -> Result<i64, Rejection> {
        self.replace(self.value.checked_add(amount))
    }

    /// Subtracts `amount` and returns the new value.
    pub fn subtract(&mut self, amount: i64) -> Result<i64, Rejection> {
        self.replace(self.value.checked_sub(amount))
    }

    /// Sets the value and returns it.
    pub fn set(&mut self, value: i64) -> i64 {
        self.value = value;
        value
    }

    /// Sets the value to zero and returns it.
    pub fn reset(&mut self) -> i64 {
        self.set(0)
    }

    /// The current value.
    pub fn value(&self) -> i64 {
        self.value
    }

    fn replace(&mut self, value: Option<i64>) -> Result<i64, Rejection> {
        self.value = value.ok_or_else(|| Rejection::new("overflow"))?;
        Ok(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Driver;

    #[test]
    fn overflow_is_a_rejection_that_changes_nothing() {
        let counter = Counter::of("c");
        let mut driver = Driver::<Counter>::new("c");
        assert_eq!(driver.apply(counter.set(i64::MAX)).expect("set"), i64::MAX);
        let error = driver.apply(counter.add(1)).expect_err("overflow");
        assert_eq!(error.rejection().map(Rejection::reason), Some("overflow"));
        assert_eq!(driver.query(counter.value()).expect("query"), i64::MAX);
        assert_eq!(driver.revision(), 1);
        assert_eq!(driver.apply(counter.reset()).expect("reset"), 0);
        assert_eq!(driver.apply(counter.subtract(2)).expect("subtract"), -2);
    }
}
