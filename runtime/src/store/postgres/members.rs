//! The statements about members and ownership. All of them judge time by the database's clock.
//!
//! Whatever changes the membership first changes the one row of the store, so that joins, leaves and
//! evictions follow one another.

macro_rules! now {
    () => {
        "cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)"
    };
}

pub(super) const NOW: &str = concat!("select ", now!());
/// Begins a change of the membership.
pub(super) const BEGIN: &str = "begin isolation level read committed read write; \
    set local statement_timeout = 10000; set local idle_in_transaction_session_timeout = 10000";
/// Begins a reading of it.
pub(super) const BEGIN_VIEW: &str =
    "begin isolation level repeatable read read only; set local statement_timeout = 10000";

pub(super) const NEXT_MEMBERSHIP: &str =
    "update stead_store set membership = membership + 1 where one returning membership";
/// Selects the member that holds a name, and for how much longer.
pub(super) const HOLDER: &str = concat!(
    "select incarnation, expires_micros - ",
    now!(),
    " from stead_nodes where name = $1 for update"
);
/// A member that is alive and has another secret.
pub(super) const STRANGER: &str = concat!(
    "select name from stead_nodes where secret <> $1 and expires_micros > ",
    now!(),
    " limit 1"
);
/// Fences a node that uses the store alone.
pub(super) const CLOSE_STRANGERS: &str = "update stead_lanes set is_closed = true \
    where not is_closed and incarnation not in (select incarnation from stead_nodes)";
/// Frees what nobody who is there owns.
pub(super) const FREE_STRAYS: &str = "update stead_partitions \
    set owner = null, epoch = epoch + 1, was_unclean = true \
    where owner not in (select incarnation from stead_nodes)";
pub(super) const JOIN: &str = concat!(
    "insert into stead_nodes (name, incarnation, address, weight, types, lease_micros, \
    secret, expires_micros, is_leaving) values ($1, $2, $3, $4, $5, $6, $7, ",
    now!(),
    " + $6, false)"
);
/// Renews a lease that has not run out, and says what has changed.
pub(super) const RENEW: &str = concat!(
    "with renewed as (update stead_nodes set expires_micros = ",
    now!(),
    " + lease_micros where incarnation = $1 and expires_micros > ",
    now!(),
    " returning 1) select (select count(*) from renewed), \
    (select membership from stead_store where one), \
    (select cast(coalesce(sum(epoch), 0) as bigint) from stead_partitions), \
    exists (select 1 from stead_nodes where incarnation <> $1 and expires_micros <= ",
    now!(),
    "), ",
    now!()
);
/// A renewal that takes a lease back.
#[cfg(feature = "sabotage")]
pub(super) const TAKE_BACK: &str = concat!(
    "insert into stead_nodes (name, incarnation, address, weight, types, lease_micros, \
    secret, expires_micros, is_leaving) values ($1, $2, $3, $4, $5, $6, $7, ",
    now!(),
    " + $6, false) on conflict (name) do update set incarnation = excluded.incarnation, \
    expires_micros = excluded.expires_micros"
);
pub(super) const MEMBERSHIP: &str = "select membership from stead_store where one";
pub(super) const MEMBERS: &str = concat!(
    "select name, incarnation, address, weight, types, is_leaving, expires_micros - ",
    now!(),
    " from stead_nodes"
);
/// When the lease of a member runs out, by the database's clock.
#[cfg(feature = "sabotage")]
pub(super) const EXPIRES: &str = "select expires_micros from stead_nodes where incarnation = $1";
pub(super) const PARTITIONS: &str =
    "select owner, epoch, was_unclean, partition from stead_partitions order by partition";
/// Removes a member whose lease has run out.
pub(super) const EVICT: &str =
    concat!("delete from stead_nodes where incarnation = $1 and expires_micros <= ", now!());
/// Removes a member that stops.
pub(super) const LEAVE: &str = "delete from stead_nodes where incarnation = $1";
/// Waits for a batch in flight: it holds the row of its lane.
pub(super) const CLOSE_LANES: &str =
    "update stead_lanes set is_closed = true where incarnation = $1 and not is_closed";
pub(super) const FREE: &str = "update stead_partitions \
    set owner = null, epoch = epoch + 1, was_unclean = true where owner = $1";
/// Keeps a member from being removed while it takes partitions.
pub(super) const HOLD: &str = concat!(
    "select 1 from stead_nodes where incarnation = $1 and expires_micros > ",
    now!(),
    " for update"
);
pub(super) const ACQUIRE: &str = "update stead_partitions set owner = $1, epoch = epoch + 1 \
    where partition = any($2::integer[]) and owner is null";
pub(super) const ANNOUNCE_LEAVE: &str =
    "update stead_nodes set is_leaving = true where incarnation = $1";
