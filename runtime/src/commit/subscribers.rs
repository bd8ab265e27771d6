//! Waits for news of entities, or of all entities of a type, and wake-ups when a commit has changed them.
//!
//! A subscriber is told that there is news, never what it is: it reads the store, which shows what was committed.
//! So nothing waits for a slow one, and nothing is shown that was not committed. What must never happen: an entity
//! is changed by a commit of this node, and a subscriber that had read it before is not woken. A subscriber
//! registers before it reads; the committer looks who is there when the commit is visible.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use stead_entities::{EntityId, Error, ErrorKind};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::{
    map::{Set, SharedMap},
    store::Write,
};

/// The most streams of changes of one node.
const SUBSCRIPTIONS_MAX: usize = 20_000;
/// The most of them that follow types, each of which may hold a page of states.
const FOLLOWERS_MAX: usize = 1_000;
/// How many pages of changes are read at one time.
const PAGES_MAX: usize = 2;

/// The source of news that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Watched {
    Entity(EntityId),
    /// All entities of a type.
    Type(Box<str>),
}

impl Watched {
    fn type_of(id: &EntityId) -> Self {
        Self::Type(id.entity_type().into())
    }
}

/// The subscribers of a node, by what they wait for.
#[derive(Debug)]
pub(crate) struct Subscribers {
    watched: SharedMap<Watched, watch::Sender<()>>,
    count: AtomicUsize,
    followers: AtomicUsize,
    pages: Semaphore,
    is_closed: AtomicBool,
}

impl Default for Subscribers {
    fn default() -> Self {
        Self {
            watched: SharedMap::default(),
            count: AtomicUsize::new(0),
            followers: AtomicUsize::new(0),
            pages: Semaphore::new(PAGES_MAX),
            is_closed: AtomicBool::new(false),
        }
    }
}

/// The entities that a batch changes; none where nobody was there when it was asked.
pub(super) struct Changed(Option<Vec<EntityId>>);

/// A wait for news. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    of: Watched,
    /// Always there, until it ends.
    news: Option<watch::Receiver<()>>,
    subscribers: Arc<Subscribers>,
}

impl Subscribers {
    /// Waits for news from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] where too many wait.
    pub(crate) fn subscribe(self: &Arc<Self>, of: Watched) -> Result<Subscription, Error> {
        let counts = self.counts(&of);
        let limits = [SUBSCRIPTIONS_MAX, FOLLOWERS_MAX];
        for (place, (count, limit)) in counts.iter().zip(limits).enumerate() {
            if count.fetch_add(1, Ordering::SeqCst) >= limit {
                give_back(&counts[..=place]);
                let message = format!("{limit} streams of changes are open at this node");
                return Err(Error::new(ErrorKind::Overloaded, message));
            }
        }
        let entry = self.watched.entry(of.clone()).or_insert_with(|| watch::Sender::new(()));
        let news = Some(entry.subscribe());
        drop(entry);
        if self.is_closed.load(Ordering::SeqCst) {
            self.watched.remove(&of);
        }
        Ok(Subscription { of, news, subscribers: self.clone() })
    }

    /// The counts in which a subscription is.
    fn counts(&self, of: &Watched) -> Vec<&AtomicUsize> {
        match of {
            Watched::Entity(_) => vec![&self.count],
            Watched::Type(_) => vec![&self.count, &self.followers],
        }
    }

    /// The turn to read a page of changes, until it is dropped.
    pub(crate) async fn page(&self) -> Option<SemaphorePermit<'_>> {
        self.pages.acquire().await.ok()
    }

    /// Wakes who waits for news of something.
    pub(crate) fn tell(&self, of: &Watched) {
        if let Some(entry) = self.watched.get(of) {
            entry.send_replace(());
        }
    }

    /// The entities, and the types, that somebody waits for.
    pub(crate) fn all(&self) -> (Vec<EntityId>, Vec<Box<str>>) {
        let (mut ids, mut types) = (Vec::new(), Vec::new());
        for entry in &self.watched {
            match entry.key() {
                Watched::Entity(id) => ids.push(id.clone()),
                Watched::Type(name) => types.push(name.clone()),
            }
        }
        (ids, types)
    }

    /// Ends every wait, and those to come.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.watched.clear();
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// The entities that writes change.
    pub(super) fn changed_by(&self, writes: &[Write]) -> Changed {
        if self.is_empty() {
            return Changed(None);
        }
        let ids = writes.iter().filter_map(|write| match write {
            Write::PutState(id, _) | Write::DeleteState(id, _) => Some(id.clone()),
            _ => None,
        });
        Changed(Some(ids.collect()))
    }

    /// Wakes who waits for what was changed, now that it is committed.
    pub(super) fn tell_of(&self, changed: Changed) {
        match changed.0 {
            Some(ids) => {
                let types: Set<_> = ids.iter().map(Watched::type_of).collect();
                types.iter().for_each(|of| self.tell(of));
                ids.into_iter().for_each(|id| self.tell(&Watched::Entity(id)));
            }
            None if self.is_empty() => {}
            // They came while the commit was under way, and may have read what was before it.
            None => self.watched.iter().for_each(|entry| entry.send_replace(())),
        }
    }
}

impl Subscription {
    /// Waits for news since the last wait, or since the beginning. Says whether there will be more: not once the
    /// node stops. Cancel safe.
    pub(crate) async fn news(&mut self) -> bool {
        match &mut self.news {
            Some(news) => news.changed().await.is_ok(),
            None => false,
        }
    }
}

fn give_back(counts: &[&AtomicUsize]) {
    for count in counts {
        count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        give_back(&self.subscribers.counts(&self.of));
        // Of two that end at one time, the last one sees that nobody is left.
        drop(self.news.take());
        self.subscribers.watched.remove_if(&self.of, |_, entry| entry.receiver_count() == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::states::Ended;

    fn id(key: &str) -> EntityId {
        EntityId::new("log", key).expect("valid")
    }

    fn entity(key: &str) -> Watched {
        Watched::Entity(id(key))
    }

    fn deleted(key: &str) -> Vec<Write> {
        vec![Write::DeleteState(id(key), Ended::default())]
    }

    fn has_news(subscription: &mut Subscription) -> bool {
        let news = subscription.news.as_mut().expect("it goes on");
        let has_news = news.has_changed().expect("open");
        news.mark_unchanged();
        has_news
    }

    #[tokio::test]
    async fn who_waits_for_an_entity_is_woken_by_its_commits_alone() {
        let subscribers = Arc::new(Subscribers::default());
        assert!(subscribers.changed_by(&deleted("a")).0.is_none(), "nobody is there");
        let (mut one, mut two) = (
            subscribers.subscribe(entity("a")).expect("few"),
            subscribers.subscribe(Watched::Type("log".into())).expect("few"),
        );
        let mut other = subscribers.subscribe(entity("b")).expect("few");
        let changed = subscribers.changed_by(&deleted("a"));
        assert!(!has_news(&mut one), "not before it is committed");
        subscribers.tell_of(changed);
        assert!(has_news(&mut one) && has_news(&mut two) && !has_news(&mut other));
        drop((one, two));
        assert_eq!(subscribers.all(), (vec![id("b")], vec![]));
        subscribers.close();
        assert!(
            !other.news().await && !subscribers.subscribe(entity("c")).expect("few").news().await,
            "it has ended"
        );
        drop(other);
        assert!(subscribers.is_empty() && subscribers.watched.is_empty());
    }

    #[test]
    fn who_comes_while_a_commit_is_under_way_is_woken_by_it() {
        let subscribers = Arc::new(Subscribers::default());
        let changed = subscribers.changed_by(&deleted("a"));
        let mut late = subscribers.subscribe(entity("a")).expect("few");
        subscribers.tell_of(changed);
        assert!(has_news(&mut late));
        let changed = subscribers.changed_by(&deleted("b"));
        let mut later = subscribers.subscribe(entity("b")).expect("few");
        subscribers.tell_of(changed);
        assert!(has_news(&mut later) && !has_news(&mut late));
    }
}
