//! The registry: a service outside that gives a receipt for each entry, fails at random, and knows by its token what it
//! was asked before.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stead::{Layout, Server};

use crate::random::Random;

/// Given for an entry, once.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Layout,
)]
pub struct Receipt {
    pub number: u64,
    /// By which it was asked.
    pub token: String,
    pub entry: String,
}

/// The receipts that were given, in their order.
pub fn receipts(ledger: &Path) -> Result<Vec<Receipt>> {
    let text = fs::read_to_string(ledger).unwrap_or_default();
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

struct Registry {
    given: BTreeMap<String, Receipt>,
    ledger: File,
    random: Random,
}

/// How a request comes out.
enum Fate {
    /// It is answered.
    Answered,
    /// It is refused, and nothing has happened.
    Refused,
    /// It has happened, and the answer says otherwise, or comes too late.
    Lost(Duration),
}

impl Registry {
    /// One request in three goes wrong.
    fn fate(&mut self) -> Fate {
        match self.random.below(60) {
            0..10 => Fate::Refused,
            10..19 => Fate::Lost(Duration::ZERO),
            19 => Fate::Lost(Duration::from_secs(1)),
            _ => Fate::Answered,
        }
    }

    /// The receipt of a token. It is in the file before it is given.
    fn receipt(&mut self, token: &str, entry: String) -> Result<Receipt> {
        if let Some(given) = self.given.get(token) {
            return Ok(given.clone());
        }
        let receipt = Receipt { number: self.given.len() as u64, token: token.to_owned(), entry };
        self.ledger.write_all(format!("{}\n", serde_json::to_string(&receipt)?).as_bytes())?;
        self.given.insert(token.to_owned(), receipt.clone());
        Ok(receipt)
    }
}

async fn register(
    State(registry): State<Arc<Mutex<Registry>>>,
    headers: HeaderMap,
    entry: String,
) -> Result<String, StatusCode> {
    let token = headers.get("token").and_then(|token| token.to_str().ok());
    let token = token.ok_or(StatusCode::BAD_REQUEST)?;
    let (fate, receipt) = {
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        match registry.fate() {
            Fate::Refused => return Err(StatusCode::SERVICE_UNAVAILABLE),
            fate => (fate, registry.receipt(token, entry)),
        }
    };
    let receipt = receipt.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    match fate {
        Fate::Answered => Ok(json!(receipt).to_string()),
        Fate::Refused => Err(StatusCode::SERVICE_UNAVAILABLE),
        Fate::Lost(silent) => {
            tokio::time::sleep(silent).await;
            Err(StatusCode::BAD_GATEWAY)
        }
    }
}

/// Serves until it is killed; goes on with the file of the one before.
pub async fn serve(listen: SocketAddr, ledger: PathBuf, seed: u64) -> Result<()> {
    let given = receipts(&ledger)?.into_iter().map(|receipt| (receipt.token.clone(), receipt));
    let given: BTreeMap<_, _> = given.collect();
    let random = Random::new(seed.wrapping_add(given.len() as u64));
    let ledger = OpenOptions::new().create(true).append(true).open(ledger)?;
    let registry = Arc::new(Mutex::new(Registry { given, ledger, random }));
    let router = Router::new().route("/receipts", post(register)).with_state(registry);
    let server = Server::bind(listen).await?;
    server.serve(router, std::future::pending(), Duration::ZERO).await;
    Ok(())
}
