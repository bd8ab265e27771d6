//! Members and ownership in the database.
//!
//! Each request is one transaction on a connection that nothing else uses at the time; a connection on
//! which anything went wrong, or whose request was dropped, is not used again. Leases are renewed on a
//! connection of their own, because an eviction may wait for the batch in flight of the dead.

use std::time::Duration;

use stead_entities::{BoxFuture, Timestamp};
use tokio::sync::Mutex;
use tokio_postgres::{Client, Row, types::Type};

use super::{
    LANES_KEPT, PostgresStore, Value,
    connect::{self, Connection},
    members, sql,
    statements::signed,
};
use crate::{
    clock,
    sabotage::Sabotage,
    store::{
        ReadError, ReadResult,
        shared::{
            ClusterState, Joined, Member, MemberError, MemberResult, Ownership, Registration,
            Renewed, SharedStore,
        },
    },
};

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// The connections that are kept for members.
#[derive(Debug, Default)]
pub(super) struct ControlConnections {
    renewals: Mutex<Option<Connection>>,
    changes: Mutex<Option<Connection>>,
    /// The last registration.
    #[cfg(feature = "sabotage")]
    last: std::sync::Mutex<Option<Registration>>,
}

/// The outcome of a change of the membership.
enum MembershipChange<T> {
    Commit(T),
    Undo(MemberResult<T>),
}

impl From<tokio_postgres::Error> for MemberError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Unavailable(connect::said(&error))
    }
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

fn left(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

impl PostgresStore {
    /// Does something on one of the kept connections, which is dropped with it where it goes wrong.
    async fn on<T>(
        &self,
        kept: &Mutex<Option<Connection>>,
        work: impl AsyncFnOnce(&Client) -> Result<T, MemberError>,
    ) -> MemberResult<T> {
        let working = async {
            let mut kept = kept.lock().await;
            let client = match kept.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => connect::connect(&self.config)
                    .await
                    .map_err(|error| MemberError::Unavailable(error.to_string()))?,
            };
            let done = work(&client).await;
            if !matches!(done, Err(MemberError::Unavailable(_))) {
                *kept = Some(client);
            }
            done
        };
        let done = clock::within(DEADLINE, working).await;
        done.unwrap_or_else(|| Err(MemberError::Unavailable("it does not answer".into())))
    }

    /// Changes the membership in one transaction.
    async fn change<T>(
        &self,
        change: impl AsyncFnOnce(&Client) -> Result<MembershipChange<T>, tokio_postgres::Error>,
    ) -> MemberResult<T> {
        self.on(&self.control.changes, async |client| {
            client.batch_execute(members::BEGIN).await?;
            match change(client).await? {
                MembershipChange::Commit(done) => {
                    client.batch_execute("commit").await?;
                    Ok(done)
                }
                MembershipChange::Undo(why) => {
                    client.batch_execute("rollback").await?;
                    why
                }
            }
        })
        .await
    }
}

/// Frees what a removed member owns, once its batch in flight has ended.
async fn free(client: &Client, incarnation: i64) -> Result<(), tokio_postgres::Error> {
    let gone: [Value<'_>; 1] = [(&incarnation, Type::INT8)];
    client.execute_typed(members::CLOSE_LANES, &gone).await?;
    client.execute_typed(members::FREE, &gone).await.map(drop)
}

fn member(row: &Row) -> Member {
    Member {
        name: row.get::<_, &str>(0).into(),
        incarnation: row.get::<_, i64>(1).unsigned_abs(),
        address: row.get::<_, &str>(2).into(),
        weight: row.get::<_, i32>(3).unsigned_abs(),
        types: row.get(4),
        is_leaving: row.get(5),
        lease_left: left(row.get(6)),
    }
}

fn ownership(row: &Row) -> Ownership {
    Ownership {
        owner: row.get::<_, Option<i64>>(0).map(i64::unsigned_abs),
        epoch: row.get::<_, i64>(1).unsigned_abs(),
        was_unclean: row.get(2),
    }
}

impl SharedStore for PostgresStore {
    fn join(&self, node: Registration) -> BoxFuture<'_, MemberResult<Joined>> {
        Box::pin(self.change(async move |client| {
            client.query_typed_one(members::NEXT_MEMBERSHIP, &[]).await?;
            let (name, address) = (&*node.name, &*node.address);
            let secret: [Value<'_>; 1] = [(&node.secret, Type::BYTEA)];
            if let Some(stranger) = client.query_typed_opt(members::STRANGER, &secret).await? {
                let name = stranger.get::<_, &str>(0).into();
                return Ok(MembershipChange::Undo(Err(MemberError::Stranger(name))));
            }
            let holder: [Value<'_>; 1] = [(&name, Type::TEXT)];
            let holder = client.query_typed_opt(members::HOLDER, &holder).await?;
            if let Some(holder) = holder {
                let (incarnation, left_micros): (i64, i64) = (holder.get(0), holder.get(1));
                if left_micros > 0 {
                    let incarnation = incarnation.unsigned_abs();
                    let left = left(left_micros);
                    return Ok(MembershipChange::Undo(Err(MemberError::Held {
                        incarnation,
                        left,
                    })));
                }
                client.execute_typed(members::LEAVE, &[(&incarnation, Type::INT8)]).await?;
                free(client, incarnation).await?;
            }
            client.execute_typed(members::CLOSE_STRANGERS, &[]).await?;
            client.execute_typed(members::FREE_STRAYS, &[]).await?;
            let incarnation: i64 = client.query_typed_one(sql::NEXT_INCARNATION, &[]).await?.get(0);
            let (weight, lease) = (node.weight as i32, micros(node.lease));
            let joining: [Value<'_>; 7] = [
                (&name, Type::TEXT),
                (&incarnation, Type::INT8),
                (&address, Type::TEXT),
                (&weight, Type::INT4),
                (&node.types, Type::TEXT_ARRAY),
                (&lease, Type::INT8),
                (&node.secret, Type::BYTEA),
            ];
            client.execute_typed(members::JOIN, &joining).await?;
            let time: i64 = client.query_typed_one(members::NOW, &[]).await?.get(0);
            let lane: [Value<'_>; 4] = [
                (&incarnation, Type::INT8),
                (&name, Type::TEXT),
                (&0_i64, Type::INT8),
                (&time, Type::INT8),
            ];
            client.execute_typed(sql::OPEN_LANE, &lane).await?;
            let old: [Value<'_>; 1] = [(&(incarnation - LANES_KEPT), Type::INT8)];
            client.execute_typed(sql::DROP_LANES, &old).await?;
            #[cfg(feature = "sabotage")]
            if Sabotage::RenewalThatInserts.is_on() {
                *self.control.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                    Some(node);
            }
            let time = Timestamp::from_micros(time);
            Ok(MembershipChange::Commit(Joined { incarnation: incarnation.unsigned_abs(), time }))
        }))
    }

    fn renew(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<Renewed>> {
        Box::pin(self.on(&self.control.renewals, async move |client| {
            #[cfg(feature = "sabotage")]
            if Sabotage::RenewalThatInserts.is_on() {
                self.take_back(client, incarnation).await?;
            }
            let member: [Value<'_>; 1] = [(&signed(incarnation), Type::INT8)];
            let row = client.query_typed_one(members::RENEW, &member).await?;
            if row.get::<_, i64>(0) != 1 {
                return Err(MemberError::Lost);
            }
            Ok(Renewed {
                membership: row.get::<_, i64>(1).unsigned_abs(),
                ownership: row.get::<_, i64>(2).unsigned_abs(),
                has_expired: row.get(3),
                time: Timestamp::from_micros(row.get(4)),
            })
        }))
    }

    fn view(&self) -> BoxFuture<'_, ReadResult<ClusterState>> {
        let viewing = self.on(&self.control.changes, async |client| {
            client.batch_execute(members::BEGIN_VIEW).await?;
            let membership: i64 = client.query_typed_one(members::MEMBERSHIP, &[]).await?.get(0);
            let members = client.query_typed(members::MEMBERS, &[]).await?;
            let partitions = client.query_typed(members::PARTITIONS, &[]).await?;
            let mut members: Vec<_> = members.iter().map(member).collect();
            #[cfg(feature = "sabotage")]
            if Sabotage::LeaseByWallClock.is_on() {
                for member in &mut members {
                    let of: [Value<'_>; 1] = [(&signed(member.incarnation), Type::INT8)];
                    let expires: i64 = client.query_typed_one(members::EXPIRES, &of).await?.get(0);
                    member.lease_left = left(expires - clock::wall_micros());
                }
            }
            client.batch_execute("commit").await?;
            // In the order of bytes, whatever the database's collation is.
            members.sort_by(|one, other| one.name.cmp(&other.name));
            let numbers = partitions.iter().map(|row| row.get::<_, i32>(3));
            if !numbers.eq(0..i32::from(self.opened.settings.partitions)) {
                return Err(MemberError::Unavailable("stead_partitions lacks rows".into()));
            }
            let partitions = partitions.iter().map(ownership).collect();
            Ok(ClusterState { membership: membership.unsigned_abs(), members, partitions })
        });
        Box::pin(
            async move { viewing.await.map_err(|error| ReadError::Unavailable(error.to_string())) },
        )
    }

    fn evict(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<bool>> {
        Box::pin(self.change(async move |client| {
            let incarnation = signed(incarnation);
            client.query_typed_one(members::NEXT_MEMBERSHIP, &[]).await?;
            let dead: [Value<'_>; 1] = [(&incarnation, Type::INT8)];
            let evict =
                if Sabotage::LeaseByWallClock.is_on() { members::LEAVE } else { members::EVICT };
            let gone = client.execute_typed(evict, &dead).await?;
            if gone == 0 {
                return Ok(MembershipChange::Undo(Ok(false)));
            }
            free(client, incarnation).await?;
            Ok(MembershipChange::Commit(true))
        }))
    }

    fn acquire(&self, incarnation: u64, partitions: Vec<u16>) -> BoxFuture<'_, MemberResult<()>> {
        Box::pin(self.change(async move |client| {
            let member: [Value<'_>; 1] = [(&signed(incarnation), Type::INT8)];
            if client.query_typed_opt(members::HOLD, &member).await?.is_none() {
                return Ok(MembershipChange::Undo(Err(MemberError::Lost)));
            }
            let partitions: Vec<_> = partitions.into_iter().map(i32::from).collect();
            let taken: [Value<'_>; 2] =
                [(&signed(incarnation), Type::INT8), (&partitions, Type::INT4_ARRAY)];
            client.execute_typed(members::ACQUIRE, &taken).await?;
            Ok(MembershipChange::Commit(()))
        }))
    }

    fn announce_leave(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<()>> {
        Box::pin(self.change(async move |client| {
            client.query_typed_one(members::NEXT_MEMBERSHIP, &[]).await?;
            let member: [Value<'_>; 1] = [(&signed(incarnation), Type::INT8)];
            let found = client.execute_typed(members::ANNOUNCE_LEAVE, &member).await?;
            Ok(if found == 1 {
                MembershipChange::Commit(())
            } else {
                MembershipChange::Undo(Err(MemberError::Lost))
            })
        }))
    }

    fn leave(&self, incarnation: u64) -> BoxFuture<'_, MemberResult<()>> {
        Box::pin(self.change(async move |client| {
            let incarnation = signed(incarnation);
            client.query_typed_one(members::NEXT_MEMBERSHIP, &[]).await?;
            let member: [Value<'_>; 1] = [(&incarnation, Type::INT8)];
            if client.execute_typed(members::LEAVE, &member).await? == 0 {
                return Ok(MembershipChange::Undo(Err(MemberError::Lost)));
            }
            free(client, incarnation).await?;
            Ok(MembershipChange::Commit(()))
        }))
    }
}

#[cfg(feature = "sabotage")]
impl PostgresStore {
    /// A renewal that inserts.
    async fn take_back(&self, client: &Client, incarnation: u64) -> Result<(), MemberError> {
        let last =
            self.control.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let Some(node) = last else { return Ok(()) };
        let (name, address) = (&*node.name, &*node.address);
        let values: [Value<'_>; 7] = [
            (&name, Type::TEXT),
            (&signed(incarnation), Type::INT8),
            (&address, Type::TEXT),
            (&(node.weight as i32), Type::INT4),
            (&node.types, Type::TEXT_ARRAY),
            (&micros(node.lease), Type::INT8),
            (&node.secret, Type::BYTEA),
        ];
        client.execute_typed(members::TAKE_BACK, &values).await?;
        Ok(())
    }
}
