//! Clients that run workflows of random programs, and what must hold of them in the end.

use std::{sync::Arc, time::Duration};

use stead::{Node, stock::Counter, workflow::InstanceReference};
use stead_tests::{random::Random, workflows::TYPE};

use super::run::Run;

impl Run {
    /// Does something with workflows, through any node, again and again.
    pub async fn run_workflows(self: Arc<Self>, client: u64) {
        let mut random = Random(self.seed ^ (client + 1).wrapping_mul(0x0F10_1F10));
        for request in 0..self.settings.requests {
            tokio::time::sleep(Duration::from_millis(random.below(self.settings.pause))).await;
            let any = |random: &mut Random, key: &str| {
                let number = random.below(self.settings.nodes as u64) as usize;
                Some(InstanceReference::new(TYPE, key).bind(self.place(number)?.node.clone()))
            };
            self.workflows.act(&mut random, &format!("w{client}-{request}"), any).await;
        }
    }

    /// Waits, at most ten minutes of the run's time, until all workflows have ended, and says what is wrong.
    pub async fn workflows_ended(&self) -> Vec<String> {
        let any = |key: &str| InstanceReference::new(TYPE, key).bind(self.first());
        let open = self.workflows.end(any, Duration::from_secs(600)).await;
        if !open.is_empty() {
            return open;
        }
        let count = async |key| self.first().entity::<Counter>(key).value().await;
        let mut wrong = self.workflows.compare(any, count, Duration::from_secs(90)).await;
        let (count, attempts) = (self.workflows.len(), self.workflows.attempts());
        self.note(format!("{count} workflows with {attempts} attempts of steps"));
        if self.settings.workflows > 0 && (count < 20 || attempts < 20) {
            wrong.push(format!("only {count} workflows and {attempts} attempts"));
        }
        wrong
    }

    fn first(&self) -> Node {
        self.place(0).expect("it runs").node.clone()
    }
}
