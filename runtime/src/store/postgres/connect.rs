//! Connections, and what is asked of a database before anything is kept in it.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};
use tokio_postgres::{
    Client, Config, Error, IsolationLevel, NoTls, Transaction, config::Host, types::Type,
};

use super::{PostgresSettings, sql};
use crate::{
    clock,
    store::{ReadError, ReadResult},
};

/// How long a connection may be without an answer from the other machine.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The most connections that read at one time.
const READERS_MAX: usize = 4;

/// Why a store in PostgreSQL cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one of a PostgreSQL database.
    #[error("{0}: write postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Address(String),
    /// The database cannot be reached, or does not let this user in.
    #[error("the database cannot be reached, or refuses this user: {0}")]
    Unreachable(String),
    /// The tables were made by a newer program.
    #[error("the tables have version {0}, this program knows versions up to {1}: use a newer one")]
    Newer(i32, i32),
    /// The database may lose what it has confirmed.
    #[error(
        "the database may lose what it has confirmed ({0} is off): switch it on, or accept the loss \
         with `unsafe_durability` or --unsafe-durability"
    )]
    Unsafe(String),
    /// The answer of the database makes no sense.
    #[error("the database cannot be used: {0}")]
    Unusable(String),
}

impl From<tokio_postgres::Error> for ConnectError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Unusable(said(&error))
    }
}

/// The text of a database's error, its own words first.
pub(super) fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(known) => format!("{} ({})", known.message(), known.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

pub(super) fn parse(address: &str) -> Result<Config, ConnectError> {
    let mut config: Config = address
        .parse()
        .map_err(|error: tokio_postgres::Error| ConnectError::Address(error.to_string()))?;
    if config.get_hosts().is_empty() {
        return Err(ConnectError::Address("no host".into()));
    }
    config.connect_timeout(CONNECT_DEADLINE);
    // A peer that is gone without a word is found out.
    config.tcp_user_timeout(SILENCE_MAX).keepalives_idle(SILENCE_MAX / 2);
    config.application_name("stead");
    Ok(config)
}

/// Hosts and name of a database, without what is secret.
pub(super) fn place(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    format!("database {} at {hosts}", config.get_dbname().unwrap_or("of the user's name"))
}

/// A connection. It is closed when it is dropped, also where the database owes it an answer.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    carrier: AbortHandle,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

/// A new connection.
#[allow(clippy::disallowed_methods, reason = "the one task of a connection")]
pub(super) async fn connect(config: &Config) -> Result<Connection, ConnectError> {
    let connecting = clock::within(2 * CONNECT_DEADLINE, config.connect(NoTls));
    let connected =
        connecting.await.ok_or_else(|| ConnectError::Unreachable("it does not answer".into()))?;
    let (client, connection) =
        connected.map_err(|error| ConnectError::Unreachable(said(&error)))?;
    let carrier = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(error = said(&error), "a connection to the database ended");
        }
    });
    Ok(Connection { client, carrier: carrier.abort_handle() })
}

/// Refuses a database that confirms what it may lose. What a database does not know is reported.
pub(super) async fn check_durability(
    client: &Client,
    settings: &PostgresSettings,
) -> Result<(), ConnectError> {
    let names = ["fsync", "full_page_writes", "synchronous_commit"];
    let known = client.query_typed(sql::SETTINGS, &[(&&names[..], Type::TEXT_ARRAY)]).await?;
    for name in names {
        let row = known.iter().find(|row| row.get::<_, &str>(0) == name);
        match row.map(|row| row.get::<_, &str>(1)) {
            Some("off") if settings.unsafe_durability => {
                tracing::warn!(name, "the database may lose what it has confirmed");
            }
            Some("off") => return Err(ConnectError::Unsafe(name.into())),
            Some(_) => {}
            None => tracing::warn!(name, "unchecked: the database does not know this setting"),
        }
    }
    Ok(())
}

/// A transaction whose isolation is not the database's default.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, tokio_postgres::Error> {
    client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await
}

/// Makes the tables, or brings them up to this program's version.
pub(super) async fn migrate(
    client: &mut Client,
    mint: impl AsyncFnOnce(&Transaction<'_>) -> Result<(), tokio_postgres::Error>,
) -> Result<(), ConnectError> {
    let found: i64 = client.query_typed_one(sql::FIND_TABLES, &[]).await?.get(0);
    let making = begin(client).await?;
    let mut known = 0;
    if found > 0 {
        let row = making.query_typed_one(sql::LOCK_STORE, &[]).await?;
        known = row.get(0);
        if known > sql::SCHEMA_OF_WORKFLOWS {
            return Err(ConnectError::Newer(known, sql::SCHEMA_OF_WORKFLOWS));
        }
    }
    for migration in sql::MIGRATIONS.iter().skip(usize::try_from(known).unwrap_or(0)) {
        making.batch_execute(migration).await?;
    }
    if known == 0 {
        mint(&making).await?;
    } else if known < sql::SCHEMA {
        making.execute_typed(sql::SET_SCHEMA, &[(&sql::SCHEMA, Type::INT4)]).await?;
    }
    if known < sql::SCHEMA {
        making.execute_typed(sql::FILL_PARTITIONS, &[]).await?;
    }
    Ok(making.commit().await?)
}

/// A few connections that only read.
#[derive(Debug)]
pub(super) struct Readers {
    config: Config,
    statement_timeout: Duration,
    room: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// A connection for one read, in one transaction, which shows what was committed when it began.
pub(super) struct Reader {
    connection: Connection,
    /// How long the database may owe an answer.
    deadline: Duration,
    is_silent: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Readers {
    pub(super) fn new(config: Config, settings: &PostgresSettings) -> Self {
        let statement_timeout = settings.statement_timeout;
        let room = Arc::new(Semaphore::new(READERS_MAX));
        Self { config, statement_timeout, room, idle: Mutex::default() }
    }

    /// Begins a read.
    pub(super) async fn begin(&self) -> ReadResult<Reader> {
        let permit = self.room.clone().acquire_owned().await.map_err(unreadable)?;
        let connection = loop {
            let idle = self.idle().pop();
            match idle {
                Some(connection) if connection.is_closed() => {}
                Some(connection) => break connection,
                None => break connect(&self.config).await.map_err(unreadable)?,
            }
        };
        // The database gives a statement up before that; a connection may be silent for ever.
        let deadline = 2 * self.statement_timeout;
        let reader = Reader { connection, deadline, is_silent: false.into(), _permit: permit };
        let begin = sql::begin_read(self.statement_timeout);
        reader.ask(async |client| client.batch_execute(&begin).await).await?;
        Ok(reader)
    }

    /// Ends a read. Only a connection without an open transaction is used again.
    pub(super) async fn end(&self, reader: Reader) {
        let ended = reader.ask(async |client| client.batch_execute("commit").await).await;
        if ended.is_ok() {
            self.idle().push(reader.connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Asks the database, which is not waited for once it has owed an answer for too long.
    pub(super) async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> ReadResult<T> {
        let silent = || unreadable("the database does not answer");
        if self.is_silent.load(Ordering::Relaxed) {
            return Err(silent());
        }
        let Some(answer) = clock::within(self.deadline, question(&self.connection)).await else {
            self.is_silent.store(true, Ordering::Relaxed);
            return Err(silent());
        };
        answer.map_err(|error| unreadable(said(&error)))
    }
}

fn unreadable(why: impl ToString) -> ReadError {
    ReadError::Unavailable(why.to_string())
}
