//! The views of the cluster that HTTP and embedders get; a node that shares nothing is a cluster of its
//! own. What a view says of a member is stored by `store::postgres::members`.

use serde::Serialize;
use stead_entities::EntityId;

use super::plan::Seen;
use crate::store::Opened;

/// The place of an entity: its partition and the owner of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Placement {
    /// The entity's type.
    #[serde(rename = "type")]
    pub entity_type: String,
    /// The entity's key.
    pub key: String,
    /// Its partition.
    pub partition: u16,
    /// The node that owns it at present; none while it moves.
    pub owner: Option<String>,
    /// Grows each time the partition is taken or given up.
    pub epoch: u64,
    /// Grows each time a node joins, leaves or is evicted.
    pub membership_version: u64,
    /// The node that should own it.
    pub preferred: Option<String>,
}

/// The members of a cluster, and the owners of its partitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClusterView {
    /// The node that tells.
    pub node: String,
    /// Grows each time a node joins, leaves or is evicted.
    pub membership_version: u64,
    /// Grows each time a partition is taken or given up.
    pub ownership_version: u64,
    /// The members, by name.
    pub members: Vec<MemberView>,
    /// The partitions, by number.
    pub partitions: Vec<PartitionView>,
    /// Partitions that are not owned by whom they are due to.
    pub moves: Vec<MoveView>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Its incarnation: it grows with each join of any node.
    pub incarnation: u64,
    /// The address at which its peers reach it.
    pub address: String,
    /// Its share, beside the others'.
    pub weight: u32,
    /// Whether it hands over what it owns, in order to stop.
    pub is_leaving: bool,
    /// How many partitions it owns.
    pub partitions: usize,
    /// The entity types that it serves.
    pub types: Vec<String>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PartitionView {
    /// Its number.
    pub partition: u16,
    /// The node that owns it at present; none while it moves.
    pub owner: Option<String>,
    /// Grows each time it is taken or given up.
    pub epoch: u64,
}

/// A partition on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MoveView {
    /// Its number.
    pub partition: u16,
    /// The node that owns it at present.
    pub from: Option<String>,
    /// The node that should own it.
    pub to: Option<String>,
}

fn owner(seen: &Seen, partition: u16) -> Option<String> {
    seen.owner(partition).map(|member| member.name.to_string())
}

fn preferred(seen: &Seen, partition: u16) -> Option<String> {
    seen.preferred(partition).map(|member| member.name.to_string())
}

impl Placement {
    /// Which node owns an entity, and which one should, as far as it was seen.
    pub(crate) fn seen(id: &EntityId, partition: u16, seen: &Seen) -> Self {
        let found = seen.view.partitions.get(usize::from(partition));
        Self {
            entity_type: id.entity_type().to_owned(),
            key: id.key().to_owned(),
            partition,
            owner: owner(seen, partition),
            epoch: found.map_or(0, |found| found.epoch),
            membership_version: seen.view.membership,
            preferred: preferred(seen, partition),
        }
    }

    /// The same at a node that shares nothing.
    pub(crate) fn alone(id: &EntityId, partition: u16, node: &str, opened: &Opened) -> Self {
        Self {
            entity_type: id.entity_type().to_owned(),
            key: id.key().to_owned(),
            partition,
            owner: Some(node.to_owned()),
            epoch: opened.incarnation,
            membership_version: opened.incarnation,
            preferred: Some(node.to_owned()),
        }
    }
}

impl ClusterView {
    /// The members and the owners of partitions, as `node` has seen them.
    pub(crate) fn seen(node: &str, seen: &Seen) -> Self {
        let owns = |incarnation| {
            seen.view.partitions.iter().filter(|it| it.owner == Some(incarnation)).count()
        };
        let members = seen.view.members.iter().map(|member| MemberView {
            name: member.name.to_string(),
            incarnation: member.incarnation,
            address: member.address.to_string(),
            weight: member.weight,
            is_leaving: member.is_leaving,
            partitions: owns(member.incarnation),
            types: member.types.clone(),
        });
        let partitions = (0_u16..).zip(&seen.view.partitions);
        let moves = partitions.clone().filter_map(|(partition, _)| {
            let (from, to) = (owner(seen, partition), preferred(seen, partition));
            (from != to).then_some(MoveView { partition, from, to })
        });
        Self {
            node: node.to_owned(),
            membership_version: seen.view.membership,
            ownership_version: seen.view.ownership(),
            members: members.collect(),
            moves: moves.collect(),
            partitions: partitions
                .map(|(partition, it)| PartitionView {
                    partition,
                    owner: owner(seen, partition),
                    epoch: it.epoch,
                })
                .collect(),
        }
    }

    /// The same of a node that shares nothing, and serves these types.
    pub(crate) fn alone(node: &str, types: Vec<String>, opened: &Opened) -> Self {
        let partitions = 0..opened.settings.partitions;
        let (owner, epoch) = (Some(node.to_owned()), opened.incarnation);
        let member = MemberView {
            name: node.to_owned(),
            incarnation: epoch,
            address: String::new(),
            weight: 1,
            is_leaving: false,
            partitions: partitions.len(),
            types,
        };
        Self {
            node: node.to_owned(),
            membership_version: epoch,
            ownership_version: epoch,
            members: vec![member],
            partitions: partitions
                .map(|partition| PartitionView { partition, owner: owner.clone(), epoch })
                .collect(),
            moves: Vec::new(),
        }
    }
}
