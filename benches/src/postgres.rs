//! Durable signals with the data in PostgreSQL: how near to batches written by hand?

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use stead::{Node, PostgresStore};
use stead_tests::database::Database;
use tokio_postgres::{
    Client, NoTls,
    types::{ToSql, Type},
};

use crate::{
    ceiling::row,
    in_process::{Sum, signals_per_second},
    table::{Figure, Table, median_ratio, medians, thousands},
};

const ENTITIES: usize = 10_000;
const BATCH: usize = 1_000;
const LENGTH: Duration = Duration::from_secs(2);
const FLOOR: f64 = 0.50;

/// The same columns that stead keeps of a state.
const BY_HAND: &str = "create table by_hand (key bytea primary key, generation bytea, \
    revision bigint, record bytea, partition integer)";

pub async fn measure(table: &mut Table, rounds: usize) -> Result<()> {
    let Some(database) = Database::start(&[]).await? else { return Ok(()) };
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await?;
    let carrying = tokio::spawn(connection);
    client.batch_execute(BY_HAND).await?;
    let store = PostgresStore::connect(&database.url()).await?;
    let node = Node::builder().store(store).entity::<Sum>().start().await?;
    let mut pairs = Vec::new();
    for _ in 0..rounds {
        let bound = rows_per_second(&client).await?;
        let (rate, _) = signals_per_second(&node, ENTITIES).await?;
        pairs.push((rate, bound));
    }
    node.drain().await?;
    drop(client);
    carrying.await?.context("the connection")?;
    let (ours, bound) = medians(&pairs);
    let ratio = median_ratio(&pairs);
    table.add(Figure {
        name: "the same with PostgreSQL",
        figure: thousands(ours),
        ceiling: format!("{} rows in transactions of 1,000", thousands(bound)),
        ratio: format!("{:.0} %", ratio * 100.0),
        demanded: "50 %",
        is_met: ratio >= FLOOR,
    });
    Ok(())
}

/// Rows a second in transactions that are written by hand, one after the other.
async fn rows_per_second(client: &Client) -> Result<f64> {
    let rows: Vec<_> = (0..ENTITIES).map(row).collect();
    let (started, mut written) = (Instant::now(), 0);
    for batch in rows.chunks(BATCH).cycle() {
        if started.elapsed() >= LENGTH {
            break;
        }
        let (keys, records): (Vec<&[u8]>, Vec<&[u8]>) =
            batch.iter().map(|(key, record)| (&key[..], &record[..])).unzip();
        let (generations, revisions) = (vec![[1_u8; 8]; BATCH], vec![written as i64; BATCH]);
        let generations: Vec<_> = generations.iter().map(|it| &it[..]).collect();
        let partitions = vec![7_i32; BATCH];
        let put = "insert into by_hand select * from \
            unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bytea[], $5::integer[]) \
            on conflict (key) do update set revision = excluded.revision, \
            record = excluded.record";
        let values: [(&(dyn ToSql + Sync), Type); 5] = [
            (&keys, Type::BYTEA_ARRAY),
            (&generations, Type::BYTEA_ARRAY),
            (&revisions, Type::INT8_ARRAY),
            (&records, Type::BYTEA_ARRAY),
            (&partitions, Type::INT4_ARRAY),
        ];
        written += client.execute_typed(put, &values).await?;
    }
    Ok(written as f64 / started.elapsed().as_secs_f64())
}
