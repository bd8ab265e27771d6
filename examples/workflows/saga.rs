//! A saga: what three services have done is taken back in reverse order where one of them fails for good.
//!
//! `cargo run --release --bin saga` prints
//!
//! ```text
//! 60 trips, of which every one that failed was taken back: 0 bookings too many, 0 too few
//! ```

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;
use stead::{
    Failure, Node, RocksStore, workflow,
    workflow::{Step, StepError, Workflow},
};

const SERVICES: [&str; 3] = ["flight", "hotel", "car"];

/// The services outside: what is booked, by key of the trip and service. They fail now and then.
#[derive(Debug, Default)]
struct Services {
    booked: Mutex<BTreeSet<(String, String)>>,
    asked: AtomicU32,
}

impl Services {
    fn fails(&self) -> Result<(), StepError> {
        match self.asked.fetch_add(1, Ordering::Relaxed) % 7 {
            3 => Err(StepError::new("busy")),
            5 => Err(StepError::fatal("booked out")),
            _ => Ok(()),
        }
    }

    fn set(&self, trip: &str, service: String, is_booked: bool) {
        let mut booked = self.booked.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (trip.to_owned(), service);
        match is_booked {
            true => booked.insert(entry),
            false => booked.remove(&entry),
        };
    }
}

/// Books trips.
struct Trips(Arc<Services>);

#[workflow(name = "trip")]
impl Trips {
    pub async fn run(ctx: Workflow<Self>, services: Vec<String>) -> Result<(), Failure> {
        let mut done = Vec::new();
        for service in services {
            // Before it is known how it came out: a booking that failed may have happened.
            done.push(service.clone());
            if let Err(failure) = ctx.book(service).await {
                while let Some(service) = done.pop() {
                    ctx.cancel_booking(service).attempts(100).await?;
                }
                return Err(failure);
            }
        }
        Ok(())
    }

    async fn book(&self, step: &Step, service: String) -> Result<(), StepError> {
        self.0.set(step.workflow().key(), service, true);
        self.0.fails()
    }

    async fn cancel_booking(&self, step: &Step, service: String) -> Result<(), StepError> {
        self.0.set(step.workflow().key(), service, false);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let data = tempfile::tempdir()?;
    let services = Arc::new(Services::default());
    let store = RocksStore::open(data.path())?;
    let node = Node::builder().store(store).workflow(Trips(services.clone())).start().await?;
    let (mut expected, mut failed) = (BTreeSet::new(), 0);
    for trip in (0..60).map(|number| format!("trip-{number}")) {
        let workflow = node.workflow::<Trips>(&trip);
        workflow.start(SERVICES.map(str::to_owned).to_vec()).await?;
        match workflow.result().await {
            Ok(()) => expected.extend(SERVICES.map(|service| (trip.clone(), service.to_owned()))),
            Err(_) => failed += 1,
        }
    }
    let booked = services.booked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (more, fewer) =
        (booked.difference(&expected).count(), expected.difference(&booked).count());
    let outcome = if failed > 0 { "every one that failed was taken back" } else { "none failed" };
    println!("60 trips, of which {outcome}: {more} bookings too many, {fewer} too few");
    node.drain().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use stead::testing::WorkflowDriver;

    use super::*;

    #[test]
    fn what_was_booked_is_taken_back_wherever_the_process_ends() {
        WorkflowDriver::crash_everywhere(
            || WorkflowDriver::new("1", Trips(Arc::default())),
            |trip| {
                trip.step("book").returns(()).fails_for_good("booked out");
                trip.start(SERVICES.map(str::to_owned).to_vec()).unwrap();
                trip.run_to_end().unwrap();
                assert!(trip.result().is_err());
                let history = serde_json::to_string(&trip.history()).unwrap();
                assert_eq!(history.matches("\"cancel_booking\"").count(), 2, "{history}");
            },
        );
    }
}
