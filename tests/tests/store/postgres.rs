//! What a store in PostgreSQL promises beside the conformance suite.

use std::time::Duration;

use anyhow::{Context as _, Result};
use stead::{
    EntityId, Node, PostgresStore, Timestamp,
    stock::Counter,
    store::{
        Batch, CommitOutcome, Fence, Horizons, ReadError, Store, TypedReads as _, Write,
        conformance,
        postgres::{ConnectError, PostgresSettings},
        shared::{Registration, SharedStore as _},
        tables::{
            meta::HasWorkflows,
            states::{StateHead, StateRecord},
        },
    },
};
use stead_tests::{
    database::Database,
    proxy::{LATER, Loses, Passes, Proxy},
};

fn batch(store: &PostgresStore, number: u64, writes: Vec<Write>) -> Batch {
    let fence = Fence { incarnation: store.opened().incarnation, lane: 0, number };
    let time = Timestamp::from_micros(store.opened().time.as_micros() + number as i64);
    Batch { fence, owner: "test".into(), time, is_clean: false, is_buffered: false, writes }
}

fn state(key: &str, generation: u64, revision: u64, follows: u64) -> Write {
    let id = EntityId::new("counter", key).expect("valid");
    let head = StateHead {
        version: 1,
        generation,
        revision,
        follows,
        incarnation: 1,
        committed_at: Timestamp::default(),
    };
    let record = StateRecord::new(head, Vec::new(), vec![2]);
    Write::PutState(id, record)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_conforms() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let url = database.url();
    conformance::suite(async || PostgresStore::connect(&url).await.expect("opens")).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_conforms_when_it_is_shared() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let settings = PostgresSettings::default();
    let store = PostgresStore::connect_shared(&database.url(), &settings).await?;
    conformance::shared_suite(store).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_forgets_keys_of_its_own_partitions_only() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let settings = PostgresSettings::default();
    let store = PostgresStore::connect_shared(&database.url(), &settings).await?;
    let node = Registration {
        name: "a".into(),
        address: "a:1".into(),
        weight: 1,
        types: Vec::new(),
        lease: Duration::from_secs(60),
        secret: Vec::new(),
    };
    let joined = store.join(node).await?;
    store.acquire(joined.incarnation, vec![258]).await?;
    let old = "insert into stead_idempotency (key, at_micros, record) values \
        ('\\x010201', 5, ''), ('\\x010202', 500, ''), ('\\x010301', 5, '')";
    database.execute(old).await?;
    let changes =
        "insert into stead_changes (key, at_micros, record) values ('a', 5, ''), ('b', 500, '')";
    database.execute(changes).await?;
    let before = Timestamp::from_micros(100);
    store.maintain(Horizons { keys: before, changes: before });
    let fence = Fence { incarnation: joined.incarnation, lane: 0, number: 1 };
    let time = Timestamp::from_micros(joined.time.as_micros() + 1);
    let batch = Batch {
        fence,
        owner: "a".into(),
        time,
        is_clean: false,
        is_buffered: false,
        writes: Vec::new(),
    };
    assert_eq!(store.commit(batch).await, CommitOutcome::Committed);
    let left = "select count(*) from stead_idempotency where";
    let own = database.number(&format!("{left} get_byte(key, 1) = 2")).await?;
    assert_eq!(own, 1, "what may still be used stays");
    let others = database.number(&format!("{left} get_byte(key, 1) = 3")).await?;
    assert_eq!(others, 1, "what is another node's stays");
    let changes = database.number("select count(*) from stead_changes").await?;
    assert_eq!(changes, 1, "a change that is kept stays");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_followed_can_commit_nothing() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let first = PostgresStore::connect(&database.url()).await?;
    let next = first.opened().last_batch + 1;
    let committed = first.commit(batch(&first, next, vec![state("a", 9, 1, 0)])).await;
    assert_eq!(committed, CommitOutcome::Committed);
    let second = PostgresStore::connect(&database.url()).await?;
    let late = first.commit(batch(&first, next + 1, vec![state("a", 9, 2, 1)])).await;
    assert_eq!(late, CommitOutcome::Fenced);
    let next = second.opened().last_batch + 1;
    let other = second.commit(batch(&second, next, vec![state("a", 9, 2, 1)])).await;
    assert_eq!(other, CommitOutcome::Committed, "nothing of the late batch was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_does_not_follow_the_stored_one_is_refused() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let store = PostgresStore::connect(&database.url()).await?;
    let mut next = store.opened().last_batch + 1;
    let rows = [
        (state("a", 9, 1, 0), true),
        (state("a", 9, 1, 0), false),
        (state("a", 9, 3, 2), false),
        (state("a", 8, 1, 0), false),
        (state("a", 9, 4, 1), true),
        (state("a", 9, 5, 1), false),
        (state("b", 9, 2, 1), false),
        (state("a", 10, 1, 0), true),
        (state("a", 9, 5, 4), false),
    ];
    for (write, is_next) in rows {
        let outcome = store.commit(batch(&store, next, vec![write.clone()])).await;
        assert_eq!(outcome == CommitOutcome::Committed, is_next, "{write:?}: {outcome:?}");
        next += u64::from(is_next);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_settled_by_what_happened() -> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let proxy = Proxy::start(database.address()).await?;
    let store = PostgresStore::connect(&database.url_at(proxy.address())?).await?;
    let mut next = store.opened().last_batch + 1;
    let kinds = [Loses::TheAnswer, Loses::TheCommit, Loses::TheClient];
    for (round, loses) in kinds.into_iter().cycle().take(9).enumerate() {
        proxy.lose(loses);
        let key = format!("round-{round}");
        let outcome = store.commit(batch(&store, next, vec![state(&key, 9, 1, 0)])).await;
        assert!(proxy.has_lost());
        let id = EntityId::new("counter", &key)?;
        // Long enough for what is on its way to arrive.
        tokio::time::sleep(2 * LATER).await;
        let is_there = store.load(id).await?.is_some();
        assert_eq!(outcome == CommitOutcome::Committed, is_there, "{loses:?}: {outcome:?}");
        assert!(is_there || matches!(outcome, CommitOutcome::Unavailable(_)), "{outcome:?}");
        assert!(is_there || loses != Loses::TheAnswer, "it was committed");
        next += u64::from(is_there);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_the_database_never_answers_fails_and_the_next_one_goes_another_way()
-> Result<()> {
    let Some(database) = Database::any().await? else { return Ok(()) };
    let proxy = Proxy::start(database.address()).await?;
    let address = database.url_at(proxy.address())?;
    let settings = PostgresSettings::with(|settings| {
        settings.statement_timeout = Duration::from_millis(100);
    });
    let store = PostgresStore::connect_with(&address, &settings).await?;
    let id = EntityId::new("counter", "a")?;
    for held in [Passes::Questions, Passes::Answers] {
        assert_eq!(store.load(id.clone()).await?, None);
        // The network takes what is sent, and says nothing.
        proxy.pass(held);
        let unread = tokio::time::timeout(Duration::from_secs(30), store.load(id.clone())).await?;
        assert!(matches!(unread, Err(ReadError::Unavailable(_))), "{held:?}: {unread:?}");
        proxy.pass(Passes::All);
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_may_lose_what_it_confirms_is_refused() -> Result<()> {
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        let off = format!("{setting}=off");
        let Some(database) = Database::start(&[&off]).await? else { return Ok(()) };
        let refused = PostgresStore::connect(&database.url()).await;
        assert!(matches!(refused, Err(ConnectError::Unsafe(name)) if name == setting));
        let settings = PostgresSettings::with(|settings| settings.unsafe_durability = true);
        PostgresStore::connect_with(&database.url(), &settings).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_cannot_be_used_says_why() -> Result<()> {
    let refused = PostgresStore::connect("mysql://somewhere").await;
    assert!(matches!(refused, Err(ConnectError::Address(_))), "{refused:?}");
    let nobody = stead_tests::database::url(stead_tests::free_address()?);
    let refused = PostgresStore::connect(&nobody).await;
    assert!(matches!(refused, Err(ConnectError::Unreachable(_))), "{refused:?}");
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let stranger = database.url().replace("stead@", "stranger@");
    let refused = PostgresStore::connect(&stranger).await;
    assert!(matches!(refused, Err(ConnectError::Unreachable(_))), "{refused:?}");
    PostgresStore::connect(&database.url()).await?;
    database.execute("update stead_store set schema = 99").await?;
    let refused = PostgresStore::connect(&database.url()).await;
    assert!(matches!(refused, Err(ConnectError::Newer(99, _))), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_loses_nothing_when_its_database_crashes() -> Result<()> {
    let Some(mut database) = Database::start(&[]).await? else { return Ok(()) };
    let store = PostgresStore::connect(&database.url()).await?;
    let node = Node::builder().store(store).entity::<Counter>().start().await?;
    let mut adding = tokio::task::JoinSet::new();
    for key in 0..20 {
        let counter = node.entity::<Counter>(key.to_string());
        adding.spawn(async move {
            let mut added = 0;
            for turn in 0..50 {
                // Under a key, so that what is not known is settled.
                while counter.add(1).idempotency_key(turn.to_string()).await.is_err() {
                    tokio::task::yield_now().await;
                }
                added += 1;
            }
            (key, added)
        });
    }
    let (_, first) = adding.join_next().await.context("one")??;
    assert_eq!(first, 50);
    database.restart(rustix::process::Signal::QUIT).await?;
    while let Some(done) = adding.join_next().await {
        let (key, added) = done?;
        assert_eq!(node.entity::<Counter>(key.to_string()).value().await?, added);
    }
    node.drain().await?;
    let store = PostgresStore::connect(&database.url()).await?;
    assert!(!store.opened().was_unclean, "it was drained");
    let node = Node::builder().store(store).entity::<Counter>().start().await?;
    for key in 0..20 {
        assert_eq!(node.entity::<Counter>(key.to_string()).value().await?, 50);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_with_workflows_have_a_version_that_earlier_programs_refuse() -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    for (has_workflows, version) in [(false, 6), (true, 7), (false, 7)] {
        let store = PostgresStore::connect(&database.url()).await?;
        let note = has_workflows.then(|| Write::put(&(), &HasWorkflows));
        let next = store.opened().last_batch + 1;
        let committed = store.commit(batch(&store, next, note.into_iter().collect())).await;
        assert_eq!(committed, CommitOutcome::Committed);
        assert_eq!(database.number("select schema::bigint from stead_store").await?, version);
    }
    Ok(())
}
