//! The links to other nodes, by which a node tells them of rows that its commits wrote for them.
//!
//! The rows are durable before this hears of them, so nothing here has to be kept: what is lost is
//! found in the store. What must never happen is that a loss goes unnoticed. Deliveries to one
//! partition are counted; wherever one is dropped, a link of a higher number begins, and partitions
//! with a broken link are told so until one of them has heard it. When this node takes partitions
//! over, all its links begin anew: their owner before may not have sent what it committed last.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle as Runtime, sync::mpsc};

use super::cluster::Cluster;
use crate::{
    clock,
    commit::{Incarnation, Outbound},
    map::{SharedMap, SharedSet},
    partition::{
        Handle,
        message::{Delivery, Input},
    },
    store::{record, shared::Member},
    transport::wire::{PeerRequest, PeerResponse, Row, Wake, Wakes},
};

/// The most deliveries that wait for one node.
const QUEUE_MAX: usize = 8_192;
/// The most deliveries in one message.
const WAKES_MAX: usize = 512;
/// The most bytes of rows in one message, but for the last row.
const WAKE_BYTES_MAX: usize = 4 << 20;
/// How long a node may take to take them.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often broken links are mended.
const MEND_PAUSE: Duration = Duration::from_millis(100);

type Outgoing = (u16, Option<Box<Delivery>>);

/// The links of one incarnation to all others. They end when it is dropped.
pub(crate) struct Links {
    cluster: Arc<Cluster>,
    incarnation: Arc<Incarnation>,
    partitions: Arc<[Handle]>,
    runtime: Runtime,
    peers: SharedMap<u64, mpsc::Sender<Outgoing>>,
    /// Partitions that may have missed something.
    broken: SharedSet<u16>,
    /// The number of the last link.
    number: AtomicU64,
    this: Weak<Self>,
}

impl Links {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        incarnation: Arc<Incarnation>,
        partitions: Arc<[Handle]>,
        runtime: Runtime,
    ) -> Arc<Self> {
        let links = Arc::new_cyclic(|this: &Weak<Self>| Self {
            cluster,
            incarnation,
            partitions,
            runtime: runtime.clone(),
            peers: SharedMap::default(),
            broken: SharedSet::default(),
            number: AtomicU64::new(0),
            this: this.clone(),
        });
        drop(runtime.spawn(mend(Arc::downgrade(&links))));
        links
    }

    fn post(&self, partition: u16, delivery: Option<Box<Delivery>>) {
        let owner = self.cluster.owner(partition);
        let other = owner.filter(|owner| owner.incarnation != self.incarnation.number);
        let sent = other.map(|owner| {
            let queue = self.peers.entry(owner.incarnation).or_insert_with(|| self.connect(owner));
            queue.try_send((partition, delivery)).is_ok()
        });
        if sent != Some(true) {
            self.broken.insert(partition);
        }
    }

    fn connect(&self, peer: Member) -> mpsc::Sender<Outgoing> {
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let link = Link { links: self.this.clone(), peer, places: BTreeMap::new(), own: 0 };
        drop(self.runtime.spawn(link.run(queued)));
        queue
    }
}

impl Outbound for Links {
    fn send(&self, partition: u16, delivery: Box<Delivery>) {
        self.post(partition, Some(delivery));
    }
}

/// Tells partitions that they may have missed something, until they have heard it.
async fn mend(links: Weak<Links>) {
    loop {
        clock::sleep(MEND_PAUSE).await;
        let Some(links) = links.upgrade() else { return };
        let members = links.cluster.seen();
        links.peers.retain(|incarnation, _| members.view.member(*incarnation).is_some());
        let mut broken: Vec<u16> = links.broken.iter().map(|partition| *partition).collect();
        broken.sort_unstable();
        for partition in broken {
            let handle = &links.partitions[usize::from(partition)];
            if handle.is_open() {
                links.broken.remove(&partition);
                handle.push(Input::Rescan);
            } else {
                links.post(partition, None);
            }
        }
    }
}

/// The way to one other incarnation.
struct Link {
    links: Weak<Links>,
    peer: Member,
    /// The link to each partition, and the place of its last delivery.
    places: BTreeMap<u16, (u64, u64)>,
    /// The node's own link when they were counted.
    own: u64,
}

impl Link {
    async fn run(mut self, mut queued: mpsc::Receiver<Outgoing>) {
        let mut received = Vec::new();
        let mut taken = VecDeque::new();
        while queued.recv_many(&mut received, WAKES_MAX).await > 0 {
            taken.extend(received.drain(..));
            while !taken.is_empty() {
                self.tell(&mut taken).await;
            }
        }
    }

    /// Tells the peer of as many deliveries as one message holds.
    async fn tell(&mut self, taken: &mut VecDeque<Outgoing>) {
        let Some(links) = self.links.upgrade() else { return taken.clear() };
        let mut bytes = 0;
        let mut wakes = Vec::new();
        while bytes < WAKE_BYTES_MAX
            && let Some(next) = taken.pop_front()
        {
            let wake = self.wake(&links, next);
            bytes += wake.row.as_ref().map_or(0, Row::bytes);
            wakes.push(wake);
        }
        let mut lost: BTreeSet<u16> = wakes.iter().map(|wake| wake.partition).collect();
        let wakes =
            Wakes { source: links.incarnation.number, target: self.peer.incarnation, wakes };
        let message = record::encode(&PeerRequest::wake(wakes));
        let asking = links.cluster.transport.request(self.peer.address.clone(), message, TIMEOUT);
        drop(links);
        let answer =
            asking.await.ok().and_then(|bytes| record::decode::<PeerResponse>(&bytes).ok());
        if let Some(PeerResponse::Woken(refused)) = answer {
            lost = refused.into_iter().collect();
        }
        if let Some(links) = self.links.upgrade() {
            for partition in lost {
                links.broken.insert(partition);
            }
        }
    }

    /// Gives a delivery its place; behind a loss it is the first of a new link.
    fn wake(&mut self, links: &Links, (partition, delivery): Outgoing) -> Wake {
        let was_broken = links.broken.remove(&partition).is_some();
        let own = links.incarnation.link().number;
        if std::mem::replace(&mut self.own, own) != own {
            self.places.clear();
        }
        let (link, place) = match self.places.get(&partition) {
            Some((link, place)) if !was_broken => (*link, place + 1),
            _ => (links.number.fetch_add(1, Ordering::SeqCst) + 1, 1),
        };
        self.places.insert(partition, (link, place));
        let row = delivery.as_deref().map(|delivery| Row::new(partition, delivery));
        Wake { partition, link, place, row }
    }
}
