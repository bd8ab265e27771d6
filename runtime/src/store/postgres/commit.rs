//! One batch as one transaction, and the truth about how it ended.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio_postgres::{
    Client, Config, Error,
    error::{Severity, SqlState},
    types::{ToSql, Type},
};

use super::{PostgresSettings, Value, connect, sql};
use crate::{
    clock::{self, deadline_after, monotonic},
    sabotage,
    store::{
        Batch, CommitOutcome, Fence, Write,
        keys::{self, Table},
        record::StateRecord,
        rows::{self, Row},
    },
};

/// The wait before the database is asked again how a batch ended.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// The connection that commits.
pub(super) struct Writer {
    config: Config,
    /// `None` where the last one broke.
    client: Option<Client>,
    settings: PostgresSettings,
    forget_before: Arc<AtomicI64>,
    /// What was forgotten last.
    forgotten: i64,
    /// How often the lane was moved, or a batch kept from moving it.
    attempt: i64,
    is_poisoned: bool,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("is_poisoned", &self.is_poisoned).finish()
    }
}

/// A statement with its values, ready to be sent.
struct Statement {
    text: &'static str,
    values: Vec<(Box<dyn ToSql + Sync + Send>, Type)>,
}

/// How one transaction came out.
enum Sent {
    Committed,
    /// The database says why it did not commit: with which error, and of which statement.
    Refused(&'static str, Error),
    /// The answer did not arrive.
    Unsettled(String),
}

impl Writer {
    pub(super) fn new(
        config: Config,
        client: Client,
        settings: PostgresSettings,
        forget_before: Arc<AtomicI64>,
    ) -> Self {
        let client = Some(client);
        let forgotten = i64::MIN;
        Self { config, client, settings, forget_before, forgotten, attempt: 0, is_poisoned: false }
    }

    pub(super) async fn commit(&mut self, batch: &Batch) -> CommitOutcome {
        if self.is_poisoned {
            return CommitOutcome::Unknown("the end of an earlier batch is not known".into());
        }
        let client = match self.connected().await {
            Ok(client) => client,
            Err(why) => return CommitOutcome::Unavailable(why),
        };
        let mut statements = statements(batch, self.attempt);
        let horizon = self.forget_before.load(Ordering::Relaxed);
        if horizon > self.forgotten {
            self.forgotten = horizon.saturating_add(FORGET_EVERY);
            statements.push(Statement::new(sql::FORGET).value(horizon, Type::INT8));
        }
        let sent = send(&client, &statements, self.settings.statement_timeout).await;
        match sent {
            Sent::Committed => {
                self.client = Some(client);
                self.attempt += 1;
                CommitOutcome::Committed
            }
            Sent::Refused(text, error) => {
                // The transaction was rolled back by its own COMMIT.
                self.client = Some(client);
                refused(text, &error)
            }
            Sent::Unsettled(why) => {
                drop(client);
                self.settle(batch.fence, &why).await
            }
        }
    }

    /// The connection, made anew where the last one broke.
    async fn connected(&mut self) -> Result<Client, String> {
        match self.client.take() {
            Some(client) if !client.is_closed() => Ok(client),
            _ => connect::connect(&self.config).await.map_err(|error| error.to_string()),
        }
    }

    /// Learns how a batch ended whose answer did not arrive.
    async fn settle(&mut self, fence: Fence, why: &str) -> CommitOutcome {
        tracing::warn!(why, number = fence.number, "the end of a batch is not known yet");
        let deadline = deadline_after(self.settings.settle_deadline);
        loop {
            match self.ask(fence).await {
                Ok(outcome) => return outcome,
                Err(error) if monotonic() >= deadline => {
                    self.is_poisoned = true;
                    return CommitOutcome::Unknown(format!("{why}; then: {error}"));
                }
                Err(_) => clock::sleep(SETTLE_PAUSE).await,
            }
        }
    }

    /// Waits for the end of the batch by a write that conflicts with it, and keeps it from being
    /// committed later; only then can a read tell.
    async fn ask(&mut self, fence: Fence) -> Result<CommitOutcome, String> {
        let client = self.connected().await?;
        let asked = async {
            let lane: [Value<'_>; 3] = [
                (&signed(fence.incarnation), Type::INT8),
                (&i32::from(fence.lane), Type::INT4),
                (&self.attempt, Type::INT8),
            ];
            if !sabotage::is("X29") {
                client.execute_typed(sql::SETTLE_LANE, &lane).await?;
            }
            client.query_typed_opt(sql::READ_LANE, &lane[..2]).await
        };
        let asked = clock::within(2 * self.settings.statement_timeout, asked).await;
        let found = asked.ok_or("the database does not answer")?;
        let row = found.map_err(|error| connect::said(&error))?.ok_or("the lane is gone")?;
        self.client = Some(client);
        self.attempt = row.get(1);
        Ok(match (row.get::<_, i64>(0) >= signed(fence.number), row.get(2)) {
            (true, _) => CommitOutcome::Committed,
            (false, true) => CommitOutcome::Fenced,
            (false, false) => CommitOutcome::Unavailable("the batch was not committed".into()),
        })
    }
}

/// How far, in microseconds, the horizon of keys moves between two clean-ups.
const FORGET_EVERY: i64 = 10_000_000;

impl Statement {
    fn new(text: &'static str) -> Self {
        Self { text, values: Vec::new() }
    }

    fn value(mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> Self {
        self.values.push((Box::new(value), kind));
        self
    }

    async fn send(&self, client: &Client) -> Result<(), Error> {
        let values = self.values.iter().map(|(value, kind)| (&**value as _, kind.clone()));
        let values: Vec<Value<'_>> = values.collect();
        client.query_typed(self.text, &values).await.map(drop)
    }
}

/// Sends everything from BEGIN to COMMIT without waiting in between.
async fn send(client: &Client, statements: &[Statement], timeout: Duration) -> Sent {
    let begin = sql::begin(timeout);
    let begin = async { client.batch_execute(&begin).await };
    let all = async {
        // Polled in order, each hands its statement to the connection before the next one does.
        let bodies = async { join_all(statements.iter().map(|it| it.send(client))).await };
        let commit = async { client.batch_execute("commit").await };
        tokio::join!(biased; begin, bodies, commit)
    };
    let (begun, bodies, committed) = all.await;
    let bodies = statements.iter().map(|statement| statement.text).zip(bodies);
    let all = [("begin", begun)].into_iter().chain(bodies).chain([("commit", committed)]);
    let errors: Vec<_> = all.filter_map(|(text, sent)| Some((text, sent.err()?))).collect();
    if let Some((_, error)) = errors.iter().find(|(_, error)| is_unsettled(error)) {
        return Sent::Unsettled(connect::said(error));
    }
    // What fails behind the first error fails because of it.
    let first = errors.into_iter().next();
    first.map_or(Sent::Committed, |(text, error)| Sent::Refused(text, error))
}

/// Whether an error leaves it open how the transaction ended.
fn is_unsettled(error: &Error) -> bool {
    let Some(known) = error.as_db_error() else { return true };
    let ends_connection =
        matches!(known.parsed_severity(), Some(Severity::Fatal | Severity::Panic) | None);
    ends_connection || *known.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
}

/// What a definite refusal means.
fn refused(text: &str, error: &Error) -> CommitOutcome {
    let is_miscounted = error.code() == Some(&SqlState::DIVISION_BY_ZERO);
    match text {
        sql::MOVE_LANE if is_miscounted => CommitOutcome::Fenced,
        sql::CONSUME if is_miscounted => {
            CommitOutcome::Unavailable("a consumed row is not there".into())
        }
        sql::NEW_STATES | sql::NEXT_STATES if is_miscounted => {
            CommitOutcome::Unavailable("a state does not follow the one that is stored".into())
        }
        _ if error.code() == Some(&SqlState::DISK_FULL) => {
            CommitOutcome::Full(connect::said(error))
        }
        _ => CommitOutcome::Unavailable(connect::said(error)),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A batch as statements, the fence first.
fn statements(batch: &Batch, attempt: i64) -> Vec<Statement> {
    let fence = if sabotage::is("X5") { sql::MOVE_LANE_LOOSELY } else { sql::MOVE_LANE };
    let fence = Statement::new(fence)
        .value(signed(batch.fence.incarnation), Type::INT8)
        .value(i32::from(batch.fence.lane), Type::INT4)
        .value(signed(batch.fence.number), Type::INT8)
        .value(batch.time.as_micros(), Type::INT8)
        .value(batch.is_clean, Type::BOOL)
        .value(attempt, Type::INT8);
    let mut statements = vec![fence];
    let Changes { consumed, states, rows } = changes(batch);
    let records = batch.writes.iter().filter_map(|write| match write {
        Write::PutState(_, record) => Some(record),
        _ => None,
    });
    let states = records.zip(states);
    let (new, next): (Vec<_>, Vec<_>) = states.partition(|(record, _)| record.follows == 0);
    statements.extend(put_states(sql::NEW_STATES, new));
    statements.extend(put_states(sql::NEXT_STATES, next));
    if !consumed.is_empty() {
        let count = consumed.len() as i64;
        let consume = Statement::new(sql::CONSUME).value(consumed, Type::BYTEA_ARRAY);
        statements.push(consume.value(count, Type::INT8));
    }
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
        let plain = &sql::TABLES[table as usize];
        if !gone.is_empty() {
            statements.push(Statement::new(plain.delete).value(gone, Type::BYTEA_ARRAY));
        }
        if keys.is_empty() {
            continue;
        }
        let times = (table == Table::Idempotency).then(|| born(batch, &keys));
        let put = Statement::new(times.as_ref().map_or(plain.put, |_| sql::PUT_IDEMPOTENCY));
        let put = put.value(keys, Type::BYTEA_ARRAY).value(values, Type::BYTEA_ARRAY);
        statements.push(match times {
            Some(times) => put.value(times, Type::INT8_ARRAY),
            None => put,
        });
    }
    statements
}

/// What a batch does to one table of plain rows.
#[derive(Default)]
struct Rows {
    gone: Vec<Vec<u8>>,
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

/// A state, with its row.
type State<'b> = (&'b StateRecord, Row);

fn put_states(text: &'static str, states: Vec<State<'_>>) -> Option<Statement> {
    if states.is_empty() {
        return None;
    }
    let count = states.len() as i64;
    let generations = states.iter().map(|(it, _)| it.generation.to_be_bytes().to_vec());
    let generations: Vec<_> = generations.collect();
    let revisions: Vec<_> = states.iter().map(|(it, _)| signed(it.revision)).collect();
    let follows: Vec<_> = states.iter().map(|(it, _)| signed(it.follows)).collect();
    let (keys, records): (Vec<_>, Vec<_>) = states.into_iter().map(|(_, row)| row).unzip();
    let put = Statement::new(text)
        .value(keys, Type::BYTEA_ARRAY)
        .value(generations, Type::BYTEA_ARRAY)
        .value(revisions, Type::INT8_ARRAY)
        .value(records, Type::BYTEA_ARRAY)
        .value(count, Type::INT8);
    Some(if text == sql::NEW_STATES { put } else { put.value(follows, Type::INT8_ARRAY) })
}

/// When the keys of a batch were used, in the order of `keys`.
fn born(batch: &Batch, keys: &[Vec<u8>]) -> Vec<i64> {
    let times: BTreeMap<_, _> = batch
        .writes
        .iter()
        .filter_map(|write| match write {
            Write::Remember(key, what) => Some((keys::idempotency(key), what.at.as_micros())),
            _ => None,
        })
        .collect();
    keys.iter().map(|key| times.get(key).copied().unwrap_or(0)).collect()
}

/// The changes of a batch.
#[derive(Default)]
struct Changes {
    consumed: Vec<Vec<u8>>,
    /// The states that are put, in the order of the batch.
    states: Vec<Row>,
    /// Everything else, the last change of each row.
    rows: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
}

fn changes(batch: &Batch) -> Changes {
    let mut changes = Changes::default();
    let gathered = rows::each_change(batch, |change| {
        let (key, value) = (change.key.to_vec(), change.value.map(<[u8]>::to_vec));
        match (change.table, value) {
            _ if change.must_exist => changes.consumed.push(key),
            (Table::States, Some(value)) => changes.states.push((key, value)),
            // Lanes have a table of their own.
            (Table::Meta, _) if key == keys::LANE => {}
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
    use crate::store::record::{DeadLetterId, Slot};

    #[test]
    fn every_statement_of_a_batch_is_behind_its_fence() {
        let id = EntityId::new("counter", "a").expect("valid");
        let writes = vec![
            Write::DeleteState(id.clone()),
            Write::CancelReminder(1, id, Slot::Delayed(7), Timestamp::default()),
            Write::Exhume(DeadLetterId { partition: 1, is_rejection: false, number: 9 }),
        ];
        let fence = Fence { incarnation: 1, lane: 0, number: 1 };
        for writes in [Vec::new(), writes] {
            let (owner, time) = ("a".into(), Timestamp::default());
            let batch = Batch { fence, owner, time, is_clean: false, writes };
            let texts: Vec<_> = statements(&batch, 0).iter().map(|it| it.text).collect();
            assert_eq!(texts[0], sql::MOVE_LANE);
            assert_eq!(texts.iter().filter(|text| **text == sql::MOVE_LANE).count(), 1);
            assert_eq!(texts.len(), 1 + 4 * usize::from(!batch.writes.is_empty()), "{texts:?}");
        }
    }
}
