//! What goes wrong, one thing after the other.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use stead_tests::proxy::{Loses, Passes, Proxy};

use super::{
    nodes::{LEASE, NodeProcess},
    run::Run,
};

/// How often each thing went wrong.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    pub kills: u64,
    pub leaves: u64,
    pub pauses: u64,
    /// Pauses during which others took over.
    pub takeovers: u64,
    pub ambiguous: u64,
    pub splits: u64,
    pub crashes: u64,
    pub thefts: u64,
}

impl Run {
    /// Breaks one thing, and mends it.
    pub async fn break_one(&mut self) -> Result<()> {
        let number = self.random.below(3) as usize;
        let kind = self.random.below(16);
        match kind {
            0 | 1 => self.kill(number).await,
            2 | 3 => self.leave(number).await,
            4..7 => self.pause(number).await,
            7..12 => self.lose_commits(number).await,
            12 => self.split(number, |node| &node.to_database).await,
            13 => self.split(number, |node| &node.from_peers).await,
            14 => self.steal(number).await,
            _ => self.crash_database().await,
        }
    }

    async fn kill(&mut self, number: usize) -> Result<()> {
        self.counts.kills += 1;
        let node = &mut self.nodes[number];
        node.signal(Signal::KILL)?;
        node.ended().await?;
        let pause = Duration::from_millis(self.random.below(3_000));
        tokio::time::sleep(pause).await;
        self.nodes[number].start(self.secret.path()).await
    }

    async fn leave(&mut self, number: usize) -> Result<()> {
        self.counts.leaves += 1;
        let node = &mut self.nodes[number];
        node.signal(Signal::TERM)?;
        node.ended().await?;
        node.start(self.secret.path()).await
    }

    /// Pauses a node for two to four leases, mostly; now and then for up to twenty.
    async fn pause(&mut self, number: usize) -> Result<()> {
        self.counts.pauses += 1;
        let before = self.incarnation(number).await?;
        self.nodes[number].signal(Signal::STOP)?;
        let leases = match self.random.below(12) {
            0 => 6 + self.random.below(15),
            _ => 1 + self.random.below(3),
        };
        tokio::time::sleep(LEASE * (10 + leases as u32 * 10) / 10).await;
        let during = self.incarnation(number).await?;
        self.nodes[number].signal(Signal::CONT)?;
        self.counts.takeovers += u64::from(before > 0 && during != before);
        Ok(())
    }

    async fn lose_commits(&mut self, number: usize) -> Result<()> {
        for _ in 0..4 {
            let what = match self.random.below(3) {
                0 => Loses::TheCommit,
                1 => Loses::TheClient,
                _ => Loses::TheAnswer,
            };
            let proxy = &self.nodes[number].to_database;
            proxy.lose(what);
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if proxy.has_lost() {
                    self.counts.ambiguous += 1;
                    break;
                }
            }
            proxy.lose(Loses::Nothing);
        }
        Ok(())
    }

    /// Cuts one of a node's ways, in one direction or both.
    async fn split(&mut self, number: usize, way: fn(&NodeProcess) -> &Proxy) -> Result<()> {
        self.counts.splits += 1;
        let passes = [Passes::Nothing, Passes::Answers, Passes::Questions];
        let what = passes[self.random.below(3) as usize];
        way(&self.nodes[number]).pass(what);
        tokio::time::sleep(LEASE * (1 + self.random.below(4) as u32)).await;
        way(&self.nodes[number]).pass(Passes::All);
        Ok(())
    }

    /// Somebody else is given the lease of a node that is well.
    async fn steal(&mut self, number: usize) -> Result<()> {
        self.counts.thefts += 1;
        let name = &self.nodes[number].name;
        let sql = format!("update stead_nodes set expires_micros = 0 where name = '{name}'");
        self.database.execute(&sql).await
    }

    async fn crash_database(&mut self) -> Result<()> {
        self.counts.crashes += 1;
        let signals = [Signal::QUIT, Signal::INT];
        self.database.restart(signals[self.random.below(2) as usize]).await
    }

    /// The incarnation under which a node is a member; 0 where it is none.
    async fn incarnation(&self, number: usize) -> Result<i64> {
        let name = &self.nodes[number].name;
        let sql = format!("select max(incarnation) from stead_nodes where name = '{name}'");
        self.database.number(&sql).await
    }
}
