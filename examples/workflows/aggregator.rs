//! An aggregator: readings of a sensor are gathered until a minute is over, or a hundred are there, and stored as one.
//!
//! `cargo run --release --bin aggregator` prints
//!
//! ```text
//! 250 readings in 3 averages: 50.5, 150.5, 225.5
//! ```

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use stead::{
    Failure, Node, RocksStore, workflow,
    workflow::{Of2, StepError, Workflow},
};

type Averages = Arc<Mutex<Vec<f64>>>;

/// Gathers the readings of a sensor.
struct Readings(Averages);

#[workflow(name = "readings", events(reading: f64))]
impl Readings {
    pub async fn run(ctx: Workflow<Self>, seconds: u64) -> Result<(), Failure> {
        let mut readings = vec![ctx.reading().await?];
        let end = ctx.now() + Duration::from_secs(seconds);
        while readings.len() < 100 {
            match ctx.race((ctx.reading(), ctx.sleep_until(end))).await {
                Of2::First(reading) => readings.push(reading?),
                Of2::Second(_) => break,
            }
        }
        ctx.store(readings.iter().sum::<f64>() / readings.len() as f64).await?;
        ctx.continue_as(seconds).await
    }

    async fn store(&self, average: f64) -> Result<(), StepError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(average);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let averages = Averages::default();
    let store = RocksStore::open(data.path())?;
    let node = Node::builder().store(store).workflow(Readings(averages.clone())).start().await?;
    let sensor = node.workflow::<Readings>("sensor-1");
    sensor.start(2).await?;
    for reading in 1..=250 {
        sensor.reading(f64::from(reading)).await?;
    }
    let stored = || averages.lock().unwrap_or_else(PoisonError::into_inner).clone();
    while stored().len() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shown: Vec<_> = stored().iter().map(ToString::to_string).collect();
    println!("250 readings in {} averages: {}", shown.len(), shown.join(", "));
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn a_minute_is_one_average_wherever_the_process_ends() {
        let averages = Averages::default();
        WorkflowDriver::crash_everywhere(
            || {
                averages.lock().unwrap().clear();
                WorkflowDriver::new("1", Readings(averages.clone()))
                    .warm(Readings(averages.clone()))
            },
            |sensor| {
                sensor.start(60).unwrap();
                for reading in [1.0, 2.0, 6.0] {
                    sensor.event("reading", reading).unwrap();
                }
                sensor.advance(Duration::from_secs(61)).unwrap();
                sensor.event("reading", 10.0).unwrap();
                sensor.advance(Duration::from_secs(61)).unwrap();
                let mut stored = averages.lock().unwrap().clone();
                stored.dedup();
                assert_eq!(stored, [3.0, 10.0]);
            },
        );
    }
}
