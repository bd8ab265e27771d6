//! Workflows of random programs on real nodes, and what must hold of them in the end.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use stead::{Client, stock::Counter};
use stead_tests::{
    random::Random,
    workflows::{TYPE, Workflows},
};

use super::{
    audit,
    run::{Run, Shared},
};

const CLIENTS: u64 = 6;
/// How long all of them may take to end when everything is whole.
const END: Duration = Duration::from_secs(120);

impl Run {
    /// Has clients run workflows while everything goes wrong, and compares.
    pub async fn finish_workflows(mut self, outside: &Path) -> Result<()> {
        self.shared.wait_alive().await?;
        self.database.execute(audit::TRIGGERS).await?;
        let workflows = Arc::new(Workflows::new(outside.into(), Duration::from_millis(600)));
        let clients = (0..CLIENTS).map(|client| {
            let (shared, workflows) = (self.shared.clone(), workflows.clone());
            tokio::spawn(async move { shared.run_workflows(&workflows, client).await })
        });
        let clients: Vec<_> = clients.collect();
        self.go_wrong().await?;
        let whole = Instant::now();
        self.shared.is_over.store(true, Ordering::SeqCst);
        for client in clients {
            client.await??;
        }
        let urls: Vec<_> = self.shared.clients()?;
        let any = |key: &str| urls[key.len() % urls.len()].instance(TYPE, key);
        loop {
            self.revive().await?;
            let open = workflows.finish(any).await;
            if open.is_empty() {
                break;
            }
            ensure!(whole.elapsed() < END, "seed {}: {open:#?}", self.shared.seed);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let count = async |key| urls[0].entity::<Counter>(key).value().await;
        let wrong = workflows.compare(any, count, Duration::from_secs(2)).await;
        let (count, attempts) = (workflows.len(), workflows.attempts());
        let hits = self.database.number(audit::HITS).await?;
        println!("seed {}: {count} workflows, {attempts} attempts of steps", self.shared.seed);
        if !wrong.is_empty() || hits > 0 || attempts < 20 {
            bail!("seed {}: {hits} writes of strangers; {wrong:#?}", self.shared.seed);
        }
        Ok(())
    }
}

impl Shared {
    fn clients(&self) -> Result<Vec<Client>> {
        self.urls.iter().map(|url| Ok(Client::new(url)?)).collect()
    }

    /// Does something with workflows, through any node, until all is over.
    async fn run_workflows(&self, workflows: &Workflows, client: u64) -> Result<()> {
        let mut random = Random(self.seed ^ (client + 1).wrapping_mul(0x0F10_1F10));
        let clients = self.clients()?;
        let mut number = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
            number += 1;
            let any = |random: &mut Random, key: &str| {
                Some(clients[random.below(clients.len() as u64) as usize].instance(TYPE, key))
            };
            workflows.act(&mut random, &format!("w{client}-{number}"), any).await;
        }
        Ok(())
    }
}
