//! The plan of a node: which partitions to take and to give up, as plain code on one view of the cluster.

use std::sync::Arc;

use super::ring::{self, Ring};
use crate::store::shared::{ClusterState, Member};

/// A view with what follows from it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) view: ClusterState,
    ring: Option<Arc<Ring>>,
}

/// The steps that an incarnation should take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Free partitions that are due to it.
    pub(crate) acquire: Vec<u16>,
    /// Its partitions that are due to others.
    pub(crate) give: Vec<u16>,
    /// Whether others still own what is due to it.
    pub(crate) is_waiting: bool,
}

impl Seen {
    /// Plans for a view. The ring is a function of the version of the membership alone, so
    /// the one of an earlier view of the same version is kept.
    pub(crate) fn new(view: ClusterState, seed: (u64, u64), before: &Self) -> Self {
        if view.membership == before.view.membership && before.ring.is_some() {
            return Self { view, ring: before.ring.clone() };
        }
        let staying = view.members.iter().filter(|member| !member.is_leaving);
        let members: Vec<_> = staying
            .map(|member| ring::Member { name: member.name.clone(), weight: member.weight })
            .collect();
        let partitions = u16::try_from(view.partitions.len()).unwrap_or(u16::MAX);
        let ring = Some(Arc::new(Ring::new(seed, partitions, &members)));
        Self { view, ring }
    }

    /// The owner of a partition.
    pub(crate) fn owner(&self, partition: u16) -> Option<&Member> {
        let owner = self.view.partitions.get(usize::from(partition))?.owner?;
        self.view.member(owner)
    }

    /// The member that should own a partition.
    pub(crate) fn preferred(&self, partition: u16) -> Option<&Member> {
        let preferred = &self.ring.as_ref()?.owner(partition)?.name;
        let place = self.view.members.binary_search_by(|member| member.name.cmp(preferred));
        self.view.members.get(place.ok()?)
    }

    /// Whether every partition has an owner, as far as there is anybody to own it.
    pub(crate) fn is_settled(&self) -> bool {
        let mut partitions = self.view.partitions.iter();
        partitions.all(|owned| owned.owner.is_some())
            || self.view.members.iter().all(|member| member.is_leaving)
    }

    /// The steps that `incarnation` should take.
    pub(crate) fn plan(&self, incarnation: u64) -> Plan {
        let mut plan = Plan::default();
        for (partition, owned) in (0_u16..).zip(&self.view.partitions) {
            let preferred = self.preferred(partition).map(|member| member.incarnation);
            match owned.owner {
                None if preferred == Some(incarnation) => plan.acquire.push(partition),
                Some(owner) if owner == incarnation && preferred != Some(incarnation) => {
                    plan.give.push(partition);
                }
                Some(owner) if owner != incarnation && preferred == Some(incarnation) => {
                    plan.is_waiting = true;
                }
                _ => {}
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::shared::Ownership;

    fn member(name: &str, incarnation: u64, is_leaving: bool) -> Member {
        Member {
            name: name.into(),
            incarnation,
            address: name.into(),
            weight: 1,
            types: Vec::new(),
            is_leaving,
            lease_left: Duration::from_secs(1),
        }
    }

    fn seen(members: Vec<Member>, owners: [Option<u64>; 4]) -> Seen {
        let partitions = owners.map(|owner| Ownership { owner, epoch: 1, was_unclean: false });
        let view = ClusterState { membership: 1, members, partitions: partitions.into() };
        Seen::new(view, (7, 11), &Seen::default())
    }

    #[test]
    fn free_partitions_are_taken_and_foreign_ones_waited_for() {
        let alone = seen(vec![member("a", 1, false)], [None, None, Some(1), Some(9)]);
        let plan = alone.plan(1);
        assert_eq!((plan.acquire, plan.give), (vec![0, 1], vec![]));
        assert!(plan.is_waiting, "the fourth belongs to an incarnation that is not evicted yet");
    }

    #[test]
    fn a_node_that_leaves_gives_everything_up() {
        let members = vec![member("a", 1, true), member("b", 2, false)];
        let leaving = seen(members, [Some(1), Some(1), Some(2), None]);
        assert_eq!(leaving.plan(1).give, [0, 1]);
        assert_eq!(leaving.plan(2).acquire, [3]);
        assert!(leaving.plan(2).is_waiting);
        assert!(!leaving.is_settled(), "the fourth has no owner yet");
        let last = seen(vec![member("a", 1, true)], [Some(1); 4]);
        assert_eq!(last.plan(1).give, [0, 1, 2, 3], "also where nobody takes it");
        assert_eq!(last.preferred(0), None);
        assert!(seen(vec![member("a", 1, true)], [None; 4]).is_settled(), "nobody takes them");
    }
}
