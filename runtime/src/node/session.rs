//! What belongs to one incarnation of a node, and the partitions that it hosts.

use std::{
    io,
    sync::{Arc, PoisonError, atomic::AtomicU64},
};

use stead_entities::Error;
use tokio::sync::watch;

use super::Inner;
use crate::{
    commit::{self, Committer, Fatal, Incarnation},
    entropy::Entropy,
    partition::{Beginning, Handle, Hosting, Identity, Predecessor, message::Input},
    placement::{cluster::Cluster, lease::Lease},
    transport::links::Links,
};

/// One incarnation of a node: its way to the committer, and its lease.
pub(crate) struct Session {
    pub(crate) incarnation: Arc<Incarnation>,
    pub(crate) committer: commit::Sender,
    fatal: watch::Receiver<Option<Fatal>>,
}

impl Session {
    /// Waits until nothing more can be committed under this incarnation.
    pub(crate) async fn cannot_go_on(&self) {
        let mut fatal = self.fatal.clone();
        if fatal.wait_for(Option::is_some).await.is_err() {
            // The committer has ended in order.
            std::future::pending::<()>().await;
        }
    }
}

impl Inner {
    /// Begins an incarnation. Among others, what ends it does not end the node.
    pub(crate) fn begin_session(
        &self,
        incarnation: Incarnation,
        cluster: Option<Arc<Cluster>>,
    ) -> io::Result<Arc<Session>> {
        let incarnation = Arc::new(incarnation);
        let (committer, queue) = commit::queue();
        let (ended, fatal) = watch::channel(None);
        let fatals = if cluster.is_some() { ended } else { self.fatal.clone() };
        let mut service = Committer::new(
            self.store.clone(),
            self.clock.clone(),
            self.name.clone(),
            incarnation.clone(),
            self.partitions.clone(),
            fatals,
        );
        if let Some(cluster) = cluster {
            let runtime = self.threads.runtime.clone();
            let links = Links::new(cluster, incarnation.clone(), self.partitions.clone(), runtime);
            service = service.with(links);
        }
        service.start(&self.threads, queue)?;
        let session = Arc::new(Session { incarnation, committer, fatal });
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        Ok(session)
    }

    /// The only incarnation of a node that shares nothing, with all partitions.
    pub(crate) fn begin_only_session(&self, batches: u64) -> io::Result<()> {
        let opened = self.store.opened();
        let incarnation = Incarnation {
            number: opened.incarnation,
            last_batch: opened.last_batch + batches,
            lease: Arc::new(Lease::for_ever()),
            link: Arc::new(AtomicU64::new(0)),
        };
        let session = self.begin_session(incarnation, None)?;
        for partition in 0..opened.settings.partitions {
            self.host(&session, partition, opened.was_unclean);
        }
        Ok(())
    }

    /// Begins to host a partition.
    pub(crate) fn host(&self, session: &Session, partition: u16, was_unclean: bool) {
        let opened = self.store.opened();
        let identity = Identity {
            number: partition,
            incarnation: session.incarnation.number,
            settings: opened.settings.clone(),
            types: self.types.clone(),
            config: self.config.clone(),
            watch: self.watches.add(),
            numbers_ahead: opened.numbers_ahead,
            unserved: self.audit.met.clone(),
        };
        let predecessor = Predecessor {
            was_unclean,
            ran: opened.running.as_slice().into(),
            marks: self.store.running_marks(),
        };
        let beginning = Beginning {
            identity,
            predecessor,
            link: session.incarnation.link(),
            entropy: self.entropy(),
            dropped: self.dropped.clone(),
        };
        let (committer, lease) = (session.committer.clone(), session.incarnation.lease.clone());
        self.handle(partition).host(Hosting { beginning: Box::new(beginning), committer, lease });
    }

    fn entropy(&self) -> Entropy {
        let mut entropy = self.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        Entropy::seeded(entropy.next())
    }

    /// Ends an incarnation: whoever waits for it is told `error`, or that the outcome is not known.
    pub(crate) fn end_session(&self, error: &Error) {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.partitions.iter().for_each(|handle| handle.dismiss(error.clone()));
    }

    /// The present incarnation.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn handle(&self, partition: u16) -> &Handle {
        &self.partitions[usize::from(partition)]
    }

    /// Has every partition read what it may have missed.
    pub(crate) fn rescan(&self) {
        let open = self.partitions.iter().filter(|handle| handle.is_open());
        open.for_each(|handle| handle.push(Input::Rescan));
    }

    /// Goes on after a lease that had run out was renewed.
    pub(crate) fn resume(&self) {
        self.partitions.iter().for_each(Handle::resume);
    }
}
