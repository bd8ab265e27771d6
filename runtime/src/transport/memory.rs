//! Nodes of one process, and a network between them that is slow, loses, doubles and splits, as a seed
//! decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stead_entities::BoxFuture;

use super::{PeerHandler, SendError, Transport};
use crate::{clock, entropy::Entropy};

/// The faults of a [`Network`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// The longest that a message takes.
    pub delay: Duration,
    /// The part of messages, and of answers, that are lost; 0 to 1.
    pub loss: f64,
    /// The part of messages that arrive twice, at different times; 0 to 1.
    pub doubling: f64,
}

/// A network in memory. Clones are the same network.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    entropy: Entropy,
    faults: Faults,
    nodes: BTreeMap<Arc<str>, Arc<dyn PeerHandler>>,
    /// Pairs of which the first does not reach the second.
    cut: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            entropy: Entropy::seeded(0),
            faults: Faults::default(),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
        }
    }
}

impl Network {
    /// A network that does what `faults` says, as `seed` decides.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let network = Self::default();
        let mut state = network.lock();
        state.entropy = Entropy::seeded(seed);
        state.faults = faults;
        drop(state);
        network
    }

    /// Another way of failing from here on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Lets nothing pass from `from` to `to`; answers to earlier messages included.
    pub fn cut(&self, from: &str, to: &str) {
        self.lock().cut.insert((from.into(), to.into()));
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.lock().cut.clear();
    }

    /// The network as the node at `address` sees it.
    pub fn at(&self, address: &str) -> impl Transport + use<> {
        Place { network: self.clone(), address: address.into() }
    }

    /// Forgets the node at `address`, as if its process had ended.
    pub fn forget(&self, address: &str) {
        self.lock().nodes.remove(address);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message from one place to another; says whether it arrives.
    async fn carry(&self, from: &Arc<str>, to: &Arc<str>) -> bool {
        let (delay, is_lost) = {
            let mut state = self.lock();
            let part = state.entropy.next() % 1_000;
            let delay = state.faults.delay.mul_f64(part as f64 / 1_000.0);
            let loss = state.faults.loss;
            let is_lost = state.by_chance(loss);
            (delay, is_lost)
        };
        clock::sleep(delay).await;
        !is_lost && !self.lock().cut.contains(&(from.clone(), to.clone()))
    }
}

impl State {
    fn by_chance(&mut self, part: f64) -> bool {
        (self.entropy.next() % 1_000_000) as f64 / 1_000_000.0 < part
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("faults", &self.lock().faults).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Place {
    network: Network,
    address: Arc<str>,
}

impl Transport for Place {
    fn listen(&self, node: Arc<dyn PeerHandler>) {
        self.network.lock().nodes.insert(self.address.clone(), node);
    }

    #[allow(clippy::disallowed_methods, reason = "a message goes on without who sent it")]
    fn request(
        &self,
        address: Arc<str>,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, SendError>> {
        let (network, from) = (self.network.clone(), self.address.clone());
        let asking = async move {
            let is_doubled = {
                let mut state = network.lock();
                let doubling = state.faults.doubling;
                state.by_chance(doubling)
            };
            if is_doubled {
                let (network, from, to) = (network.clone(), from.clone(), address.clone());
                let message = message.clone();
                tokio::spawn(async move {
                    if network.carry(&from, &to).await {
                        let node = network.lock().nodes.get(&to).cloned();
                        if let Some(node) = node {
                            node.handle(message).await;
                        }
                    }
                });
            }
            // Where a message is lost nobody can say so.
            if !network.carry(&from, &address).await {
                return std::future::pending().await;
            }
            let node = network.lock().nodes.get(&address).cloned();
            let node = node.ok_or_else(|| SendError::NotSent("nobody listens".into()))?;
            let answer = node.handle(message).await;
            if !network.carry(&address, &from).await {
                return std::future::pending().await;
            }
            Ok(answer)
        };
        let asking = tokio::spawn(asking);
        Box::pin(async move {
            match clock::within(timeout, asking).await {
                Some(Ok(answer)) => answer,
                Some(Err(error)) => Err(SendError::Lost(error.to_string())),
                None => Err(SendError::Lost("it took too long".into())),
            }
        })
    }
}
