//! A batch as statements: the fence first, then each kind of change as one statement for all rows.

use std::{collections::BTreeMap, convert::Infallible};

use tokio_postgres::{
    Client, Error,
    types::{ToSql, Type},
};

use super::{Value, sql};
#[cfg(feature = "sabotage")]
use crate::sabotage::Sabotage;
use crate::store::{
    Batch, Write,
    batch::{self, Before},
    rows::Row,
    tables::{
        self, Table,
        meta::{Settings, notes_workflows},
        states::StateRecord,
    },
};

/// A statement with its values, ready to be sent.
pub(super) struct Statement {
    pub(super) text: &'static str,
    values: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

impl Statement {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, values: Vec::new() }
    }

    pub(super) fn value(mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> Self {
        self.values.push((Box::new(value), kind));
        self
    }

    pub(super) async fn send(&self, client: &Client) -> Result<(), Error> {
        let values = self.values.iter().map(|(value, kind)| (&**value as _, kind.clone()));
        let values: Vec<Value<'_>> = values.collect();
        client.query_typed(self.text, &values).await.map(drop)
    }
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A batch as statements, the fence first.
pub(super) fn statements(batch: &Batch, attempt: i64, kept: &Settings) -> Vec<Statement> {
    let fence = sql::MOVE_LANE;
    #[cfg(feature = "sabotage")]
    let fence = if Sabotage::AdvisoryFence.is_on() { sql::MOVE_LANE_LOOSELY } else { fence };
    let fence = Statement::new(fence)
        .value(signed(batch.fence.incarnation), Type::INT8)
        .value(i32::from(batch.fence.lane), Type::INT4)
        .value(signed(batch.fence.number), Type::INT8)
        .value(batch.time.as_micros(), Type::INT8)
        .value(batch.is_clean, Type::BOOL)
        .value(attempt, Type::INT8);
    let mut statements = vec![fence];
    // Before all other rows: who is refused here has waited for nobody else.
    statements.extend(batch.writes.iter().filter_map(replace));
    let Changes { consumed, delayed, states, ended, rows } = changes(batch);
    let records = batch.writes.iter().filter_map(|write| match write {
        Write::PutState(id, record) => Some((i32::from(kept.partition_of(id)), record)),
        _ => None,
    });
    statements.extend(put_states(records.zip(states).collect()));
    let consume = sql::CONSUME;
    #[cfg(feature = "sabotage")]
    let consume =
        if Sabotage::ConsumedRowNotNeeded.is_on() { sql::CONSUME_LOOSELY } else { consume };
    for (text, gone) in [(consume, consumed), (sql::CONSUME_DELAYED, delayed)] {
        if !gone.is_empty() {
            let count = gone.len() as i64;
            let gone = Statement::new(text).value(gone, Type::BYTEA_ARRAY);
            statements.push(gone.value(count, Type::INT8));
        }
    }
    statements.extend(free_partitions(batch));
    statements.extend(raise_schema(batch));
    statements.extend(ended.into_iter().map(|(table, from, to)| {
        let ended = Statement::new(&sql::plain(table).delete_range);
        ended.value(from, Type::BYTEA).value(to, Type::BYTEA)
    }));
    statements.extend(plain_rows(rows));
    statements
}

/// Changes of plain rows: for each table a statement that removes some, and one that puts others.
fn plain_rows(rows: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut tables: BTreeMap<Table, Rows> = BTreeMap::new();
    for ((table, key), value) in rows {
        let rows = tables.entry(table).or_default();
        match value {
            Some(value) => {
                rows.keys.push(key);
                rows.values.push(value);
            }
            None => rows.gone.push(key),
        }
    }
    for (table, Rows { gone, keys, values }) in tables {
        let plain = sql::plain(table);
        if !gone.is_empty() {
            statements.push(Statement::new(&plain.delete).value(gone, Type::BYTEA_ARRAY));
        }
        if keys.is_empty() {
            continue;
        }
        let times = table.description().written_at.map(|written_at| {
            let times =
                values.iter().map(|value| written_at(value).unwrap_or_default().as_micros());
            times.collect::<Vec<_>>()
        });
        let put = Statement::new(&plain.put)
            .value(keys, Type::BYTEA_ARRAY)
            .value(values, Type::BYTEA_ARRAY);
        statements.push(match times {
            Some(times) => put.value(times, Type::INT8_ARRAY),
            None => put,
        });
    }
    statements
}

/// The changes of a batch to one table of plain rows.
#[derive(Default)]
struct Rows {
    gone: Vec<Vec<u8>>,
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

/// A row that must be as it was read.
fn replace(write: &Write) -> Option<Statement> {
    let Write::Replace { table, key, before, value } = write else { return None };
    let replacing = Statement::new(&sql::plain(*table).replace);
    let replacing = replacing.value(key.clone(), Type::BYTEA).value(value.clone(), Type::BYTEA);
    Some(replacing.value(before.clone(), Type::BYTEA))
}

/// Keeps programs that do not know workflows from the tables, from the first one on.
fn raise_schema(batch: &Batch) -> Option<Statement> {
    let version = sql::SCHEMA_OF_WORKFLOWS;
    let raise = || Statement::new(sql::RAISE_SCHEMA).value(version, Type::INT4);
    notes_workflows(&batch.writes).then(raise)
}

/// The partitions that a batch gives up.
fn free_partitions(batch: &Batch) -> Option<Statement> {
    let freed = batch.writes.iter().filter_map(|write| match write {
        Write::FreePartition(partition) => Some(i32::from(*partition)),
        _ => None,
    });
    let freed: Vec<_> = freed.collect();
    let count = freed.len() as i64;
    (count > 0).then(|| {
        Statement::new(sql::FREE_PARTITIONS)
            .value(freed, Type::INT4_ARRAY)
            .value(signed(batch.fence.incarnation), Type::INT8)
            .value(count, Type::INT8)
    })
}

/// A state, with its partition and its row.
type State<'b> = ((i32, &'b StateRecord), Row);

fn put_states(states: Vec<State<'_>>) -> Option<Statement> {
    if states.is_empty() {
        return None;
    }
    let count = states.len() as i64;
    let generations = states.iter().map(|((_, it), _)| it.head.generation.to_be_bytes().to_vec());
    let generations: Vec<_> = generations.collect();
    let revisions: Vec<_> = states.iter().map(|((_, it), _)| signed(it.head.revision)).collect();
    let follows: Vec<_> = states.iter().map(|((_, it), _)| signed(it.head.follows)).collect();
    let partitions: Vec<_> = states.iter().map(|((partition, _), _)| *partition).collect();
    let (keys, records): (Vec<_>, Vec<_>) = states.into_iter().map(|(_, row)| row).unzip();
    let put = Statement::new(sql::PUT_STATES)
        .value(keys, Type::BYTEA_ARRAY)
        .value(generations, Type::BYTEA_ARRAY)
        .value(revisions, Type::INT8_ARRAY)
        .value(records, Type::BYTEA_ARRAY)
        .value(follows, Type::INT8_ARRAY)
        .value(partitions, Type::INT4_ARRAY)
        .value(count, Type::INT8);
    Some(put)
}

/// The changes of a batch.
#[derive(Default)]
struct Changes {
    consumed: Vec<Vec<u8>>,
    delayed: Vec<Vec<u8>>,
    /// The states that are put, in the order of the batch.
    states: Vec<Row>,
    /// The ranges that end before everything else: the first key of each, and the one behind its last.
    ended: Vec<(Table, Vec<u8>, Vec<u8>)>,
    /// Everything else, the last change of each row.
    rows: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
}

fn changes(batch: &Batch) -> Changes {
    let mut changes = Changes::default();
    let gathered = batch::each_change(batch, |change| {
        let (key, value) = (change.key.to_vec(), change.value.map(<[u8]>::to_vec));
        if let Some(to) = change.to {
            changes.ended.push((change.table, key, to.to_vec()));
            return Ok(());
        }
        match (change.table, value) {
            // It has a statement of its own.
            _ if matches!(change.before, Before::Record(_)) => {}
            (Table::Inbox, _) if change.before == Before::Row => changes.consumed.push(key),
            _ if change.before == Before::Row => changes.delayed.push(key),
            (Table::States, Some(value)) => changes.states.push((key, value)),
            // Lanes have a table of their own.
            (Table::Meta, _) if key == tables::meta::LANE => {}
            (table, value) => drop(changes.rows.insert((table, key), value)),
        }
        Ok::<_, Infallible>(())
    });
    match gathered {
        Ok(()) => changes,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use stead_entities::{EntityId, Timestamp};

    use super::*;
    use crate::store::{
        Fence,
        tables::{
            dead_letters::{DeadLetter, DeadLetterId},
            reminders::Slot,
            states::Ended,
        },
    };

    #[test]
    fn every_statement_of_a_batch_is_behind_its_fence() {
        let id = EntityId::new("counter", "a").expect("valid");
        let writes = vec![
            Write::DeleteState(id.clone(), Ended::default()),
            Write::CancelReminder {
                partition: 1,
                id,
                slot: Slot::Delayed(7),
                due: Timestamp::default(),
                has_origin: true,
            },
            Write::delete::<DeadLetter>(&DeadLetterId {
                partition: 1,
                is_rejection: false,
                number: 9,
            }),
        ];
        let fence = Fence { incarnation: 1, lane: 0, number: 1 };
        let kept = Settings { partitions: 16, seed: (7, 11) };
        for writes in [Vec::new(), writes] {
            let (owner, time) = ("a".into(), Timestamp::default());
            let batch = Batch { fence, owner, time, is_clean: false, is_buffered: false, writes };
            let texts: Vec<_> = statements(&batch, 0, &kept).iter().map(|it| it.text).collect();
            assert_eq!(texts[0], sql::MOVE_LANE);
            assert_eq!(texts.iter().filter(|text| **text == sql::MOVE_LANE).count(), 1);
            assert_eq!(texts.len(), 1 + 5 * usize::from(!batch.writes.is_empty()), "{texts:?}");
        }
    }
}
