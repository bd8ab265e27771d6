//! Every statement about data, and why it works on any database that speaks PostgreSQL's
//! protocol. `docs/postgres.md` lists them for people.
//!
//! Nothing here depends on the session: no advisory lock, no LISTEN, no prepared statement, no
//! setting that outlives its transaction. A statement that must change an exact number of rows says
//! so itself, by dividing by zero where it does not: an error inside the database keeps everything
//! that was sent behind it, the COMMIT included, from taking effect.

use std::{sync::LazyLock, time::Duration};

use crate::store::tables::{Table, states::HEAD_BYTES_MAX};

/// The version of the tables that this build reads and writes.
pub(super) const SCHEMA: i32 = 6;
/// The version of the same tables with workflows in them: programs that do not know those refuse it.
pub(super) const SCHEMA_OF_WORKFLOWS: i32 = 7;

/// The migrations: each makes the tables of its version from those of the one before.
pub(super) const MIGRATIONS: [&str; SCHEMA as usize] = [
    "
create table stead_store (
    one boolean primary key default true check (one),
    schema integer not null,
    identity bytea not null,
    partitions integer not null,
    seed_first bytea not null,
    seed_second bytea not null,
    incarnations bigint not null
);
create table stead_lanes (
    incarnation bigint not null,
    lane integer not null,
    node text not null,
    number bigint not null,
    attempt bigint not null,
    time_micros bigint not null,
    is_clean boolean not null,
    is_closed boolean not null,
    primary key (incarnation, lane)
);
create table stead_meta (key bytea primary key, record bytea not null);
create table stead_states (
    key bytea primary key,
    generation bytea not null,
    revision bigint not null,
    record bytea not null
);
create table stead_inbox (key bytea primary key, record bytea not null);
create table stead_reminders (key bytea primary key, record bytea not null);
create table stead_due (key bytea primary key, record bytea not null);
create table stead_idempotency (
    key bytea primary key,
    at_micros bigint not null default 0,
    record bytea not null
);
create table stead_dead_letters (key bytea primary key, record bytea not null);
",
    "
alter table stead_store add column membership bigint not null default 0;
alter table stead_states add column partition integer not null default -1;
alter table stead_states add column expects bigint not null default 0;
create table stead_nodes (
    name text primary key,
    incarnation bigint not null unique,
    address text not null,
    weight integer not null,
    types text[] not null,
    secret bytea not null,
    lease_micros bigint not null,
    expires_micros bigint not null,
    is_leaving boolean not null
);
create index stead_idempotency_at on stead_idempotency (at_micros);
create table stead_partitions (
    partition integer primary key,
    owner bigint,
    epoch bigint not null,
    was_unclean boolean not null
);
",
    "
create table stead_origins (key bytea primary key, record bytea not null);
",
    "
create table stead_indexes (key bytea primary key, record bytea not null);
",
    "
create table stead_changes (
    key bytea primary key,
    at_micros bigint not null default 0,
    record bytea not null
);
create index stead_changes_at on stead_changes (at_micros);
",
    "
create table stead_entries (key bytea primary key, record bytea not null);
",
];

/// Whether there are tables yet: 0 or 1.
pub(super) const FIND_TABLES: &str = "select count(*) from information_schema.tables \
    where table_name = 'stead_store' and table_schema = any(current_schemas(false))";
pub(super) const READ_STORE: &str =
    "select schema, partitions, seed_first, seed_second from stead_store where one";
pub(super) const MINT_STORE: &str = "insert into stead_store \
    (schema, identity, partitions, seed_first, seed_second, incarnations) \
    values ($1, $2, $3, $4, $5, 0)";
/// The version of the tables; changes of the tables follow one another.
pub(super) const LOCK_STORE: &str = "select schema from stead_store where one for update";
/// The version of the tables once they were brought up to date.
pub(super) const SET_SCHEMA: &str = "update stead_store set schema = $1 where one";
/// The version from the first workflow on.
pub(super) const RAISE_SCHEMA: &str =
    "update stead_store set schema = $1 where one and schema < $1";
/// A row for each partition.
pub(super) const FILL_PARTITIONS: &str = "insert into stead_partitions \
    (partition, owner, epoch, was_unclean) select n, null, 0, true \
    from generate_series(0, (select partitions - 1 from stead_store where one)) as series (n) \
    on conflict (partition) do nothing";
pub(super) const SETTINGS: &str =
    "select name, setting from pg_settings where name = any($1::text[])";

/// Locks the one row that every opening changes, so that openings follow one another.
pub(super) const NEXT_INCARNATION: &str = "update stead_store set incarnations = incarnations + 1 \
    where one returning incarnations";
/// Closes every lane. Waits for a batch in flight: it holds the row of its lane.
pub(super) const CLOSE_LANES: &str = "update stead_lanes set is_closed = true where not is_closed";
/// Members make way for a node that uses the store alone.
pub(super) const DROP_NODES: &str = "delete from stead_nodes";
pub(super) const FREE_ALL: &str = "update stead_partitions \
    set owner = null, epoch = epoch + 1, was_unclean = true where owner is not null";
pub(super) const LAST_LANE: &str = "select number, time_micros, is_clean from stead_lanes \
    order by incarnation desc, lane limit 1";
pub(super) const OPEN_LANE: &str = "insert into stead_lanes \
    (incarnation, lane, node, number, attempt, time_micros, is_clean, is_closed) \
    values ($1, 0, $2, $3, 0, $4, false, false)";
/// Lanes that nobody can ask about any more.
pub(super) const DROP_LANES: &str = "delete from stead_lanes where is_closed and incarnation < $1";

/// Begins a batch. A client that is paused in the middle of it holds its rows no longer than
/// `timeout`. One that is buffered is answered before the database flushes its log, which that does by itself.
pub(super) fn begin(timeout: Duration, is_buffered: bool) -> String {
    let millis = timeout.as_millis();
    let buffered = if is_buffered { "; set local synchronous_commit = off" } else { "" };
    format!(
        "begin isolation level read committed read write; \
         set local statement_timeout = {millis}; \
         set local idle_in_transaction_session_timeout = {millis}{buffered}"
    )
}

/// Begins a read of several statements that see the same rows.
pub(super) fn begin_read(timeout: Duration) -> String {
    let millis = timeout.as_millis();
    format!(
        "begin isolation level repeatable read read only; set local statement_timeout = {millis}"
    )
}

/// The first statement of every batch: the fence.
pub(super) const MOVE_LANE: &str = "with moved as (\
    update stead_lanes set number = $3, attempt = attempt + 1, time_micros = $4, is_clean = $5 \
    where incarnation = $1 and lane = $2 and number = $3 - 1 and attempt = $6 \
    and not is_closed returning 1) \
    select 1 / count(*) from moved";
/// Conflicts with a batch whose end is not known, so it waits for that; and where the batch has not
/// been committed, it never can be from here on, though it may still be on its way.
pub(super) const SETTLE_LANE: &str = "update stead_lanes set attempt = attempt + 1 \
    where incarnation = $1 and lane = $2 and attempt = $3";
/// How the batch ended, once that is settled.
pub(super) const READ_LANE: &str = "select number, attempt, is_closed from stead_lanes \
    where incarnation = $1 and lane = $2";
/// The fence without its teeth.
#[cfg(feature = "sabotage")]
pub(super) const MOVE_LANE_LOOSELY: &str = "update stead_lanes \
    set number = $3, attempt = attempt + 1, time_micros = $4, is_clean = $5 \
    where incarnation = $1 and lane = $2 and number = $3 - 1 and attempt = $6 and not is_closed";

/// Partitions that their owner gives up.
pub(super) const FREE_PARTITIONS: &str = "with gone as (update stead_partitions \
    set owner = null, epoch = epoch + 1, was_unclean = false \
    where partition = any($1::integer[]) and owner = $2 returning 1) \
    select 1 / (case when count(*) = $3 then 1 else 0 end) from gone";

/// States, each of which follows the stored one, or is the first of an entity or of its next
/// incarnation. What a row expects to find is 0 in every row that is stored, so one that was inserted
/// though it expects another is not counted. No join: how long it takes rests on the batch alone.
pub(super) const PUT_STATES: &str = "with put as (\
    insert into stead_states (key, generation, revision, record, expects, partition) \
    select * from unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bigint[], \
    $6::integer[]) on conflict (key) do update set generation = excluded.generation, \
    revision = excluded.revision, record = excluded.record, expects = 0, \
    partition = excluded.partition where \
    (excluded.expects = 0 and excluded.generation > stead_states.generation) or \
    (excluded.expects > 0 and excluded.generation = stead_states.generation \
    and excluded.expects = stead_states.revision) returning expects) \
    select 1 / (case when count(*) = $7 then 1 else 0 end) from put where expects = 0";
/// Applied signals, each of which must be there.
pub(super) const CONSUME: &str = "with gone as (\
    delete from stead_inbox where key = any($1::bytea[]) returning 1) \
    select 1 / (case when count(*) = $2 then 1 else 0 end) from gone";
/// Delayed signals that were applied, each of which must be there.
pub(super) const CONSUME_DELAYED: &str = "with gone as (\
    delete from stead_reminders where key = any($1::bytea[]) returning 1) \
    select 1 / (case when count(*) = $2 then 1 else 0 end) from gone";
/// Both without their teeth.
#[cfg(feature = "sabotage")]
pub(super) const CONSUME_LOOSELY: &str =
    "delete from stead_inbox where key = any($1::bytea[]) and $2 >= 0";

/// Keys that nobody may use any more, some at a time.
pub(super) const FORGET: &str = "delete from stead_idempotency where key in (\
    select key from stead_idempotency where at_micros < $1 limit 5000)";
/// The same among others, of whose partitions nothing is deleted: a key begins with its partition.
pub(super) const FORGET_OWN: &str = "delete from stead_idempotency where key in (\
    select key from stead_idempotency where at_micros < $1 \
    and get_byte(key, 0) * 256 + get_byte(key, 1) in \
    (select partition from stead_partitions where owner = $2) limit 5000)";
/// Changes that are not kept any longer, some at a time. Nodes delete them side by side, without waiting for one
/// another.
pub(super) const FORGET_CHANGES: &str = "delete from stead_changes where key in (\
    select key from stead_changes where at_micros < $1 limit 20000 for update skip locked)";

/// The statements of a table of plain rows.
pub(super) struct Plain {
    /// Keys and records, and the times of the rows where the table has them.
    pub(super) put: String,
    /// A row that must have this record, or not be there.
    pub(super) replace: String,
    /// Rows that several nodes change in the order of their keys, as they are put: none waits for another that waits
    /// for it.
    pub(super) delete: String,
    /// From one key on, and before another.
    pub(super) delete_range: String,
    pub(super) get: String,
    /// The records of many keys.
    pub(super) get_many: String,
    pub(super) scan: String,
    /// From the last one on.
    pub(super) scan_back: String,
    /// The same as `get_many` and `scan` with the first bytes of each record only, as many as a
    /// [`crate::store::tables::states::StateHead`] may take.
    pub(super) get_many_heads: String,
    pub(super) scan_heads: String,
}

impl Plain {
    fn of(table: Table) -> Self {
        let name = format!("stead_{}", table.description().name);
        let scan = |record: &str, order: &str| {
            format!(
                "select key, {record} from {name} where key >= $1 and key < $2 order by key {order} limit $3"
            )
        };
        let get_many =
            |record: &str| format!("select key, {record} from {name} where key = any($1::bytea[])");
        let head = format!("substring(record from 1 for {HEAD_BYTES_MAX})");
        Self {
            put: match table.description().written_at {
                Some(_) => format!(
                    "insert into {name} (key, record, at_micros) \
                    select * from unnest($1::bytea[], $2::bytea[], $3::bigint[]) on conflict (key) \
                    do update set record = excluded.record, at_micros = excluded.at_micros"
                ),
                None => format!(
                    "insert into {name} (key, record) \
                    select * from unnest($1::bytea[], $2::bytea[]) on conflict (key) \
                    do update set record = excluded.record"
                ),
            },
            // One range each: the primary key finds it, which is not sure of a join.
            delete_range: format!("delete from {name} where key >= $1 and key < $2"),
            delete: match table {
                Table::Meta => format!(
                    "delete from {name} where key in (select key from {name} \
                    where key = any($1::bytea[]) order by key for update)"
                ),
                // An owner alone changes the rows of a partition.
                _ => format!("delete from {name} where key = any($1::bytea[])"),
            },
            replace: format!(
                "with put as (insert into {name} (key, record) select $1, $2 \
                where $3::bytea is null or exists (select 1 from {name} where key = $1) \
                on conflict (key) do update set record = excluded.record \
                where {name}.record = $3 returning 1) select 1 / count(*) from put"
            ),
            get: format!("select record from {name} where key = $1"),
            get_many: get_many("record"),
            scan: scan("record", "asc"),
            scan_back: scan("record", "desc"),
            get_many_heads: get_many(&head),
            scan_heads: scan(&head, "asc"),
        }
    }
}

/// The statements of one table.
pub(super) fn plain(table: Table) -> &'static Plain {
    static ALL: LazyLock<[Plain; Table::COUNT]> = LazyLock::new(|| Table::ALL.map(Plain::of));
    &ALL[table as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_made_by_its_migration() {
        for table in Table::ALL {
            let (name, since) = (table.description().name, table.description().since);
            let made = format!("create table stead_{name} (");
            let migrations = (1..).zip(MIGRATIONS);
            let found: Vec<u32> = migrations
                .filter(|(_, migration)| migration.contains(&made))
                .map(|(version, _)| version)
                .collect();
            assert_eq!(found, [since], "{table:?}");
        }
    }
}
