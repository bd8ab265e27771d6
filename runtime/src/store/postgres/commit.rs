//! One batch as one transaction, and the truth about how it ended.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio_postgres::{
    Client, Config, Error,
    error::{Severity, SqlState},
    types::Type,
};

use super::{
    PostgresSettings, Value,
    connect::{self, Connection},
    sql,
    statements::{Statement, signed, statements},
};
use crate::{
    clock::{self, deadline_after, monotonic},
    sabotage::Sabotage,
    store::{Batch, CommitOutcome, Fence, MovingHorizons, Opened, tables::meta::Settings},
};

/// The wait before the database is asked again how a batch ended.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// The connection on which one incarnation commits.
pub(super) struct Writer {
    config: Config,
    /// `None` where the last one broke.
    client: Option<Connection>,
    settings: PostgresSettings,
    forget_before: Arc<MovingHorizons>,
    /// Whether others write to the store too.
    is_shared: bool,
    /// The time of the horizon at which something was forgotten last.
    forgotten: i64,
    /// The settings that were minted with the store.
    kept: Settings,
    /// How often the lane was moved, or a batch kept from moving it.
    attempt: i64,
    is_poisoned: bool,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// How one transaction came out.
enum Sent {
    Committed,
    /// The database says why it did not commit: with which error, and of which statement.
    Refused(&'static str, Error),
    /// The answer did not arrive.
    Unsettled(String),
    /// It did not begin, so that what was sent behind took effect by itself, but not all of it.
    Torn(String),
}

impl Writer {
    pub(super) fn new(
        config: Config,
        settings: PostgresSettings,
        opened: &Opened,
        forget_before: Arc<MovingHorizons>,
    ) -> Self {
        Self {
            config,
            client: None,
            settings,
            forget_before,
            is_shared: opened.incarnation == 0,
            forgotten: i64::MIN,
            kept: opened.settings.clone(),
            attempt: 0,
            is_poisoned: false,
        }
    }

    pub(super) async fn commit(&mut self, batch: &Batch) -> CommitOutcome {
        if self.is_poisoned {
            return CommitOutcome::Unknown("the end of an earlier batch is not known".into());
        }
        let client = match self.connected().await {
            Ok(client) => client,
            Err(why) => return CommitOutcome::Unavailable(why),
        };
        let mut statements = statements(batch, self.attempt, &self.kept);
        let before = self.forget_before.get();
        let horizon = before.keys.as_micros();
        if horizon > self.forgotten {
            self.forgotten = horizon.saturating_add(FORGET_EVERY);
            let changes = before.changes.as_micros();
            statements.push(Statement::new(sql::FORGET_CHANGES).value(changes, Type::INT8));
            statements.push(match self.is_shared {
                true => Statement::new(sql::FORGET_OWN)
                    .value(horizon, Type::INT8)
                    .value(signed(batch.fence.incarnation), Type::INT8),
                false => Statement::new(sql::FORGET).value(horizon, Type::INT8),
            });
        }
        // The database gives a statement up before that; a connection may be silent for ever.
        let timeout = 2 * self.settings.statement_timeout;
        let sent = send(&client, &statements, self.settings.statement_timeout, batch.is_buffered);
        let sent = clock::within(timeout, sent).await;
        match sent.unwrap_or_else(|| Sent::Unsettled("the database does not answer".into())) {
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
            Sent::Torn(why) => {
                self.is_poisoned = true;
                CommitOutcome::Unknown(format!("the database did not begin a transaction: {why}"))
            }
        }
    }

    /// The connection, made anew where the last one broke.
    async fn connected(&mut self) -> Result<Connection, String> {
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
        let attempt = self.attempt;
        let asked = async {
            let lane: [Value<'_>; 3] = [
                (&signed(fence.incarnation), Type::INT8),
                (&i32::from(fence.lane), Type::INT4),
                (&attempt, Type::INT8),
            ];
            if !Sabotage::AmbiguousCommitByRead.is_on() {
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
const FORGET_EVERY: i64 = 1_000_000;

/// Sends everything from BEGIN to COMMIT without waiting in between.
async fn send(
    client: &Client,
    statements: &[Statement],
    timeout: Duration,
    is_buffered: bool,
) -> Sent {
    let begin = sql::begin(timeout, is_buffered);
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
    match &errors[..] {
        [("begin", error), _, ..] => Sent::Torn(connect::said(error)),
        _ => match errors.into_iter().find(|(text, _)| *text != "begin") {
            Some((text, error)) => Sent::Refused(text, error),
            None => Sent::Committed,
        },
    }
}

/// Whether an error leaves it open how the transaction ended.
fn is_unsettled(error: &Error) -> bool {
    let Some(known) = error.as_db_error() else { return true };
    let ends_connection =
        matches!(known.parsed_severity(), Some(Severity::Fatal | Severity::Panic) | None);
    ends_connection || *known.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
}

/// The outcome of a commit that was definitely refused.
fn refused(text: &str, error: &Error) -> CommitOutcome {
    let is_miscounted = error.code() == Some(&SqlState::DIVISION_BY_ZERO);
    match text {
        sql::MOVE_LANE if is_miscounted => CommitOutcome::Fenced,
        sql::CONSUME | sql::CONSUME_DELAYED if is_miscounted => {
            CommitOutcome::Unavailable("a consumed row is not there".into())
        }
        sql::FREE_PARTITIONS if is_miscounted => {
            CommitOutcome::Unavailable("a partition is not the writer's".into())
        }
        sql::PUT_STATES if is_miscounted => {
            CommitOutcome::Unavailable("a state does not follow the one that is stored".into())
        }
        _ if is_miscounted => CommitOutcome::Unavailable("a row is not what it was read as".into()),
        _ if error.code() == Some(&SqlState::DISK_FULL) => {
            CommitOutcome::Full(connect::said(error))
        }
        _ => CommitOutcome::Unavailable(connect::said(error)),
    }
}
