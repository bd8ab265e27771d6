//! A store in PostgreSQL, or in what speaks its protocol: many nodes can share it.
//!
//! One transaction for each batch, its statements sent one behind the other without waiting. The
//! first one is the fence: it moves the lane of this incarnation from the batch before to this one,
//! and fails inside the database where it cannot. Where the answer to a COMMIT does not arrive, a
//! write on the same row waits for the transaction to end, or keeps it from ever moving the lane if
//! it is still on its way; then the number of the lane tells. A plain read could miss a commit that
//! is still becoming visible, and a transaction that a slow server finds in its socket later.
//!
//! What must never happen: a row is written, or removed, by a statement that is not behind the fence
//! of its transaction; an outcome is guessed. The home of the PostgreSQL client; all SQL is in
//! `sql` and `members`.

mod commit;
mod connect;
mod members;
mod shared;
mod sql;
mod statements;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use stead_entities::{BoxFuture, Timeout, Timestamp};
use tokio::runtime::Handle;
use tokio_postgres::{
    Client, Config,
    types::{ToSql, Type},
};

use self::{
    commit::Writer,
    connect::{Connection, Reader, Readers},
    shared::ControlConnections,
};
use super::{
    Batch, CommitOutcome, Haste, Horizons, MovingHorizons, Opened, Read, ReadResult, Store,
    on_thread, record,
    rows::{EachRow, EachValue, Limit, Rows},
    tables::meta::Settings,
    tables::{self, Table},
};
use crate::{entropy::Entropy, map::Map};

/// The most incarnations, the latest ones, of which a process keeps the way to commit.
const WRITERS_MAX: usize = 4;

type SharedWriter = Arc<tokio::sync::Mutex<Writer>>;

pub use connect::ConnectError;

/// Lanes of this many earlier incarnations are kept, so that who was fenced can learn how its last
/// batch ended.
const LANES_KEPT: i64 = 1_000;

/// How many rows a scan asks for at most at one time.
const PART: i64 = 256;

/// A value of a statement, with its type: a statement that is not prepared cannot ask for it.
type Value<'v> = (&'v (dyn ToSql + Sync), Type);

/// How a store in PostgreSQL is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PostgresSettings {
    /// The name of the node. `node`.
    pub node: Arc<str>,
    /// How many partitions a new store has. 1,024; 1 to 4,096.
    pub partitions: u16,
    /// How long a statement may take before the database gives it up. 10 s. An answer is waited for twice
    /// as long: then the connection is closed.
    pub statement_timeout: Duration,
    /// How long it is asked how a batch ended whose answer did not arrive. 30 s.
    pub settle_deadline: Duration,
    /// Accepts a database that may lose what it has confirmed. Not set.
    pub unsafe_durability: bool,
    /// Sets the store's clock back to the database's where it is ahead, once, at this opening. For one
    /// node; many nodes follow the database's clock. Not set.
    pub reset_clock: bool,
}

impl PostgresSettings {
    /// The defaults, with what `change` sets.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut settings = Self::default();
        change(&mut settings);
        settings
    }
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            node: "node".into(),
            partitions: 1_024,
            statement_timeout: Duration::from_secs(10),
            settle_deadline: Duration::from_secs(30),
            unsafe_durability: false,
            reset_clock: false,
        }
    }
}

/// A store whose data is in PostgreSQL. [`PostgresStore::connect`] opens it for one node, which fences
/// whoever had it open; [`PostgresStore::connect_shared`] lets nodes join it.
#[derive(Debug)]
pub struct PostgresStore {
    opened: Opened,
    config: Config,
    control: ControlConnections,
    readers: Arc<Readers>,
    /// By incarnation: one that settles a batch holds up no other.
    writers: Mutex<BTreeMap<u64, SharedWriter>>,
    settings: PostgresSettings,
    is_closed: AtomicBool,
    forget_before: Arc<MovingHorizons>,
    place: String,
}

impl PostgresStore {
    /// Opens or creates the store in the database at `address`, such as
    /// `postgres://stead@127.0.0.1/stead`.
    ///
    /// # Errors
    /// [`ConnectError`] by what to do about it.
    pub async fn connect(address: &str) -> Result<Self, ConnectError> {
        Self::connect_with(address, &PostgresSettings::default()).await
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// [`ConnectError`] by what to do about it.
    pub async fn connect_with(
        address: &str,
        settings: &PostgresSettings,
    ) -> Result<Self, ConnectError> {
        let (config, mut client) = reach(address, settings).await?;
        let opened = open_lane(&mut client, settings).await?;
        Ok(Self::with(config, opened, settings))
    }

    /// Connects to the store for nodes that share it; the tables are made where they are missing.
    ///
    /// # Errors
    /// [`ConnectError`] by what to do about it.
    pub async fn connect_shared(
        address: &str,
        settings: &PostgresSettings,
    ) -> Result<Self, ConnectError> {
        let (config, client) = reach(address, settings).await?;
        let kept = read_settings(&client).await?;
        let now: i64 = client.query_typed_one(members::NOW, &[]).await?.get(0);
        let time = Timestamp::from_micros(now);
        let opened = Opened::connected(kept, time);
        Ok(Self::with(config, opened, settings))
    }

    fn with(config: Config, opened: Opened, settings: &PostgresSettings) -> Self {
        Self {
            opened,
            readers: Arc::new(Readers::new(config.clone(), settings)),
            place: connect::place(&config),
            config,
            settings: settings.clone(),
            control: ControlConnections::default(),
            writers: Mutex::default(),
            is_closed: false.into(),
            forget_before: MovingHorizons::new(),
        }
    }

    /// The writer of an incarnation.
    fn writer(&self, incarnation: u64) -> SharedWriter {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        if !writers.contains_key(&incarnation) && writers.len() >= WRITERS_MAX {
            writers.pop_first();
        }
        let make = || {
            let (config, settings) = (self.config.clone(), self.settings.clone());
            let forget = self.forget_before.clone();
            Arc::new(tokio::sync::Mutex::new(Writer::new(config, settings, &self.opened, forget)))
        };
        writers.entry(incarnation).or_insert_with(make).clone()
    }

    /// The database for people: its hosts and its name, without user and password.
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// Connects to a database that keeps its promises and has the tables.
async fn reach(
    address: &str,
    settings: &PostgresSettings,
) -> Result<(Config, Connection), ConnectError> {
    let config = connect::parse(address)?;
    let mut client = connect::connect(&config).await?;
    connect::check_durability(&client, settings).await?;
    mint(&mut client, settings).await?;
    Ok((config, client))
}

/// Makes the tables with what is minted once.
async fn mint(client: &mut Client, settings: &PostgresSettings) -> Result<(), ConnectError> {
    let mut entropy = Entropy::system();
    let identity = entropy.next_wide().to_be_bytes();
    let (first, second) = (entropy.next().to_be_bytes(), entropy.next().to_be_bytes());
    let partitions = i32::from(settings.partitions.clamp(1, 4_096));
    let made = connect::migrate(client, async |making| {
        let values: [Value<'_>; 5] = [
            (&sql::SCHEMA, Type::INT4),
            (&&identity[..], Type::BYTEA),
            (&partitions, Type::INT4),
            (&&first[..], Type::BYTEA),
            (&&second[..], Type::BYTEA),
        ];
        making.execute_typed(sql::MINT_STORE, &values).await.map(drop)
    });
    match made.await {
        // Somebody else may have made them at the same time.
        Err(ConnectError::Unusable(_)) => connect::migrate(client, async |_| Ok(())).await,
        made => made,
    }
}

/// Closes every lane and opens one of a new incarnation.
async fn open_lane(
    client: &mut Client,
    settings: &PostgresSettings,
) -> Result<Opened, ConnectError> {
    let opening = connect::begin(client).await?;
    let incarnation: i64 = opening.query_typed_one(sql::NEXT_INCARNATION, &[]).await?.get(0);
    opening.execute_typed(sql::CLOSE_LANES, &[]).await?;
    opening.execute_typed(sql::DROP_NODES, &[]).await?;
    opening.execute_typed(sql::FREE_ALL, &[]).await?;
    let last = opening.query_typed_opt(sql::LAST_LANE, &[]).await?;
    let now: i64 = opening.query_typed_one(members::NOW, &[]).await?.get(0);
    let number = last.as_ref().map_or(0, |row| row.get::<_, i64>(0));
    let mut time = last.as_ref().map_or(now, |row| now.max(row.get(1)));
    let mut numbers_ahead = read_numbers_ahead(opening.client()).await?;
    if settings.reset_clock && time > now {
        numbers_ahead += Duration::from_micros((time - now).unsigned_abs());
        let (key, record) =
            (tables::meta::NUMBERS_AHEAD, record::encode(&Timeout::from(numbers_ahead)));
        let values: [Value<'_>; 2] =
            [(&vec![key], Type::BYTEA_ARRAY), (&vec![record], Type::BYTEA_ARRAY)];
        opening.execute_typed(&sql::plain(Table::Meta).put, &values).await?;
        time = now;
    }
    let node: &str = &settings.node;
    let values: [Value<'_>; 4] = [
        (&incarnation, Type::INT8),
        (&node, Type::TEXT),
        (&number, Type::INT8),
        (&time, Type::INT8),
    ];
    opening.execute_typed(sql::OPEN_LANE, &values).await?;
    opening.execute_typed(sql::DROP_LANES, &[(&(incarnation - LANES_KEPT), Type::INT8)]).await?;
    let settings = read_settings(opening.client()).await?;
    opening.commit().await?;
    Ok(Opened {
        settings,
        incarnation: incarnation.unsigned_abs(),
        last_batch: number.unsigned_abs(),
        time: Timestamp::from_micros(time),
        numbers_ahead,
        was_unclean: last.is_some_and(|row| !row.get::<_, bool>(2)),
        running: Vec::new(),
    })
}

/// How far minted numbers are ahead of the clock.
async fn read_numbers_ahead(client: &Client) -> Result<Duration, ConnectError> {
    let statement = &sql::plain(Table::Meta).get;
    let found =
        client.query_typed_opt(statement, &[(&tables::meta::NUMBERS_AHEAD, Type::BYTEA)]).await?;
    let ahead = found.map(|row| record::decode::<Timeout>(row.get(0))).transpose();
    let ahead = ahead.map_err(|error| ConnectError::Unusable(error.to_string()))?;
    Ok(ahead.unwrap_or_default().as_duration())
}

/// The settings that were minted with the store.
async fn read_settings(client: &Client) -> Result<Settings, ConnectError> {
    let store = client.query_typed_one(sql::READ_STORE, &[]).await?;
    let seed = |column| {
        let bytes: &[u8] = store.get(column);
        let bytes = bytes.try_into().map_err(|_| ConnectError::Unusable("its seed".into()))?;
        Ok::<_, ConnectError>(u64::from_be_bytes(bytes))
    };
    let partitions = u16::try_from(store.get::<_, i32>(1));
    let partitions = partitions.map_err(|error| ConnectError::Unusable(error.to_string()))?;
    Ok(Settings { partitions, seed: (seed(2)?, seed(3)?) })
}

/// The tables as one read sees them.
struct ReadView<'r> {
    reader: &'r Reader,
    runtime: Handle,
}

impl Rows for ReadView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> ReadResult<Option<Vec<u8>>> {
        let statement = &sql::plain(table).get;
        let values: [Value<'_>; 1] = [(&key, Type::BYTEA)];
        let asking =
            self.reader.ask(async |client| client.query_typed_opt(statement, &values).await);
        let found = self.runtime.block_on(asking)?;
        Ok(found.map(|row| row.get(0)))
    }

    fn get_each(
        &self,
        table: Table,
        keys: &[Vec<u8>],
        heads_only: bool,
        each: &mut EachValue<'_>,
    ) -> ReadResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let table = sql::plain(table);
        let statement = if heads_only { &table.get_many_heads } else { &table.get_many };
        let values: [Value<'_>; 1] = [(&keys, Type::BYTEA_ARRAY)];
        let asking = self.reader.ask(async |client| client.query_typed(statement, &values).await);
        let found = self.runtime.block_on(asking)?;
        let found: Map<&[u8], &[u8]> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
        keys.iter().try_for_each(|key| each(found.get(&key[..]).copied()))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: Limit,
        each: &mut EachRow<'_>,
    ) -> ReadResult<()> {
        let table = sql::plain(table);
        let statement = match (limit.descends, limit.heads_only) {
            (true, _) => &table.scan_back,
            (false, true) => &table.scan_heads,
            (false, false) => &table.scan,
        };
        let part = i64::try_from(limit.rows.saturating_add(1)).unwrap_or(PART).min(PART);
        let (mut from, mut to) = (from.to_vec(), to.to_vec());
        loop {
            let (first, end) = (from.as_slice(), to.as_slice());
            let values: [Value<'_>; 3] =
                [(&first, Type::BYTEA), (&end, Type::BYTEA), (&part, Type::INT8)];
            let asking =
                self.reader.ask(async |client| client.query_typed(statement, &values).await);
            let found = self.runtime.block_on(asking)?;
            for row in &found {
                if !each(row.get(0), row.get(1))? {
                    return Ok(());
                }
            }
            if found.len() < part as usize {
                return Ok(());
            }
            match found.last() {
                Some(last) if limit.descends => to = last.get(0),
                Some(last) => from = tables::key::behind(last.get(0)),
                None => return Ok(()),
            }
        }
    }
}

impl Store for PostgresStore {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, CommitOutcome> {
        Box::pin(async move {
            if self.is_closed.load(Ordering::SeqCst) {
                return CommitOutcome::Unavailable("the store is closed".into());
            }
            let writer = self.writer(batch.fence.incarnation);
            let mut writer = writer.lock().await;
            writer.commit(&batch).await
        })
    }

    fn has_room(&self) -> bool {
        true
    }

    fn maintain(&self, before: Horizons) {
        self.forget_before.set(before);
    }

    /// Runs a read on a connection of its own.
    fn read_view(&self, _haste: Haste, read: Read) -> BoxFuture<'static, ReadResult<()>> {
        let readers = self.readers.clone();
        let runtime = Handle::current();
        Box::pin(async move {
            let reader = readers.begin().await?;
            let reader = on_thread(move || {
                read(&ReadView { reader: &reader, runtime });
                reader
            })
            .await;
            readers.end(reader).await;
            Ok(())
        })
    }

    fn get_cached(&self, _table: Table, _key: &[u8]) -> Option<ReadResult<Option<Vec<u8>>>> {
        None
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.is_closed.store(true, Ordering::SeqCst) })
    }
}
