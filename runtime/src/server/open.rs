//! The stores that a server can be given.

use std::{io, net::SocketAddr, time::Duration};

use super::{exit, flags::Serve};
use crate::{
    Listen, MemoryDivision, Node, NodeBuilder, PostgresStore, RocksStore, listen,
    store::{
        postgres::{ConnectError, PostgresSettings},
        rocks::{OpenError, RocksSettings},
    },
    transport::{HttpTransport, SECRET_BYTES_MIN, Secret},
};

/// The shortest time that a statement is given.
const STATEMENT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// A node with its store, and a name for that; or an exit code with its reason.
pub(super) async fn open(settings: &Serve) -> Result<(NodeBuilder, String), (u8, String)> {
    match (&settings.store, &settings.peer_listen) {
        (Some(url), Some(listen)) => join(url, listen, settings).await,
        (Some(url), None) => open_database(url, settings).await,
        (None, _) => open_directory(settings).await,
    }
}

/// The name of the node.
pub(super) fn name(settings: &Serve) -> &str {
    settings.node_id.as_deref().unwrap_or("node")
}

/// The memory that the process may take, in bytes.
pub(super) fn memory(settings: &Serve) -> usize {
    usize::try_from(settings.memory.as_u64()).unwrap_or(usize::MAX)
}

/// A node whose data is in a directory, and the name of that; or an exit code with its reason.
async fn open_directory(settings: &Serve) -> Result<(NodeBuilder, String), (u8, String)> {
    let rocks = RocksSettings {
        node: name(settings).into(),
        free_bytes_min: settings.free_bytes_min,
        block_cache_bytes: settings.block_cache_bytes.unwrap_or(usize::MAX),
        reset_clock: settings.reset_clock,
        ..RocksSettings::default()
    };
    let rocks = rocks.within(&MemoryDivision::of(memory(settings)));
    let path = settings.data.clone();
    let opening = tokio::task::spawn_blocking(move || RocksStore::open_with(path, &rocks)).await;
    let place = settings.data.display().to_string();
    match opening {
        Ok(Ok(store)) => Ok((Node::builder().store(store), place)),
        Ok(Err(error @ OpenError::InUse(_))) => {
            let message = format!("{error}: stop it, or choose another directory with --data");
            Err((exit::IN_USE, message))
        }
        Ok(Err(error @ (OpenError::LostTail(_) | OpenError::Gap(_)))) => {
            Err((exit::LOST_TAIL, error.to_string()))
        }
        Ok(Err(error)) => Err((exit::FAILED, format!("{place}: {error}"))),
        Err(error) => Err((exit::FAILED, error.to_string())),
    }
}

/// The same for a database.
async fn open_database(url: &str, settings: &Serve) -> Result<(NodeBuilder, String), (u8, String)> {
    let postgres = PostgresSettings {
        node: name(settings).into(),
        unsafe_durability: settings.unsafe_durability,
        reset_clock: settings.reset_clock,
        ..PostgresSettings::default()
    };
    match PostgresStore::connect_with(url, &postgres).await {
        Ok(store) => {
            let place = store.place().to_owned();
            Ok((Node::builder().store(store), place))
        }
        Err(error) => Err(why_not(error)),
    }
}

/// The same for a database that other nodes use too.
async fn join(
    url: &str,
    listen: &Listen,
    settings: &Serve,
) -> Result<(NodeBuilder, String), (u8, String)> {
    let Some(file) = &settings.cluster_secret_file else {
        return Err((exit::USAGE, "--peer-listen needs --cluster-secret-file".into()));
    };
    let usage =
        |why: String| (exit::USAGE, format!("--cluster-secret-file {}: {why}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| usage(error.to_string()))?;
    let secret = Secret::new(&bytes).ok_or_else(|| {
        usage(format!("a cluster's secret has at least {SECRET_BYTES_MIN} bytes"))
    })?;
    check_address(listen, settings.peer_address.as_deref())
        .map_err(|why| (exit::USAGE, why.to_owned()))?;
    let peers = listen_for_peers(listen, settings.peer_address.clone(), secret).await;
    let peers = peers
        .map_err(|error| (exit::FAILED, format!("cannot listen for peers on {listen}: {error}")))?;
    let postgres = PostgresSettings {
        node: name(settings).into(),
        unsafe_durability: settings.unsafe_durability,
        // A batch that is stuck must not hold up who takes over.
        statement_timeout: settings.lease.max(STATEMENT_TIMEOUT_MIN),
        ..PostgresSettings::default()
    };
    let store = PostgresStore::connect_shared(url, &postgres).await.map_err(why_not)?;
    let (place, address) = (store.place().to_owned(), peers.address().to_owned());
    let place = format!("{place}, peers at {address}");
    Ok((Node::builder().share(store, peers, address).weight(settings.weight), place))
}

/// Peers are told one address, so a name stands for the first of its addresses.
async fn listen_for_peers(
    listen: &Listen,
    address: Option<String>,
    secret: Secret,
) -> io::Result<HttpTransport> {
    let first = listen::bind(listen).await?.into_iter().next();
    HttpTransport::on(first.ok_or(io::ErrorKind::AddrNotAvailable)?, address, secret)
}

/// Whether peers can reach this node where it says.
fn check_address(listen: &Listen, address: Option<&str>) -> Result<(), &'static str> {
    match address {
        None if listen.is_everywhere() => Err(
            "--peer-listen names every address of this machine: say with --peer-address HOST:PORT \
             under which one the other nodes reach it",
        ),
        Some(address) if !is_reachable(address) => Err("--peer-address is HOST:PORT"),
        _ => Ok(()),
    }
}

fn is_reachable(address: &str) -> bool {
    if let Ok(known) = address.parse::<SocketAddr>() {
        return !known.ip().is_unspecified() && known.port() > 0;
    }
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    listen::is_name(host) && port.parse().is_ok_and(|port: u16| port > 0)
}

fn why_not(error: ConnectError) -> (u8, String) {
    let code = match error {
        ConnectError::Address(_) => exit::USAGE,
        ConnectError::Newer(..) => exit::LAYOUT,
        _ => exit::FAILED,
    };
    (code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_must_be_able_to_reach_the_address() {
        let (all, one) = ("0.0.0.0:7080", "10.0.0.7:7080");
        let check = |listen: &str, address| check_address(&listen.parse().expect("valid"), address);
        assert!(check(all, None).is_err() && check("[::]:7080", None).is_err());
        assert!(check(":7080", None).is_err() && check(":7080", Some("node-1:7080")).is_ok());
        assert!(check("node-1:7080", None).is_ok());
        assert!(check(one, None).is_ok() && check(all, Some("node-1.stead:7080")).is_ok());
        assert!(check(all, Some("[fd00::7]:7080")).is_ok() && check(all, Some("node1:1")).is_ok());
        for wrong in ["", "node-1", "node-1:", ":7080", "http://node-1:7080", "me@node-1:7080"] {
            assert!(check(one, Some(wrong)).is_err(), "{wrong}");
        }
        for wrong in ["*:1", "a;b:7080", "h:0", "999.1.1.1:7", "0.0.0.0:9301", "[::]:1", "a..b:1"] {
            assert!(check(one, Some(wrong)).is_err(), "{wrong}");
        }
    }
}
