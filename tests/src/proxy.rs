//! A way to a port that can be cut, in either direction, and that loses what it is told to.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What a [`Proxy`] does with the next COMMIT of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Loses {
    /// It and its answer pass.
    Nothing,
    /// It passes, and its answer is lost with the connection.
    TheAnswer,
    /// It is lost with the connection.
    TheCommit,
    /// The connection is lost, and what was sent passes a while later.
    TheClient,
}

/// How much later.
pub const LATER: Duration = Duration::from_millis(300);

/// What passes a [`Proxy`]. What does not is held, and passes later, as in a network that stalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// Both directions.
    All,
    /// Answers only.
    Answers,
    /// Questions only.
    Questions,
    /// Nothing, on connections that exist and on new ones.
    Nothing,
}

/// Stands between a client and a server.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    loses: Arc<AtomicU8>,
    passes: watch::Sender<Passes>,
}

impl Proxy {
    /// A proxy in front of `server`.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let loses = Arc::new(AtomicU8::new(Loses::Nothing as u8));
        let passes = watch::Sender::new(Passes::All);
        let (asked, passing) = (loses.clone(), passes.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (asked, passing) = (asked.clone(), passing.clone());
                tokio::spawn(async move {
                    let _no_delay = client.set_nodelay(true);
                    let server = TcpStream::connect(server).await?;
                    server.set_nodelay(true)?;
                    let carried = Carried { client, server, asked, passing, is_writer: false };
                    carried.carry().await
                });
            }
        });
        Ok(Self { address, loses, passes })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens to the next COMMIT of a batch.
    pub fn lose(&self, what: Loses) {
        self.loses.store(what as u8, Ordering::SeqCst);
    }

    /// Whether it has lost what it was to lose.
    pub fn has_lost(&self) -> bool {
        self.loses.load(Ordering::SeqCst) == Loses::Nothing as u8
    }

    /// What passes from here on.
    pub fn pass(&self, what: Passes) {
        self.passes.send_replace(what);
    }
}

/// One connection.
struct Carried {
    client: TcpStream,
    server: TcpStream,
    asked: Arc<AtomicU8>,
    passing: watch::Receiver<Passes>,
    /// Whether batches are committed on it.
    is_writer: bool,
}

impl Carried {
    /// Carries bytes both ways until one side ends, or something is to be lost.
    async fn carry(mut self) -> Result<()> {
        let (mut sent, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let passes = *self.passing.borrow();
            let (out, back) = match passes {
                Passes::All => (true, true),
                Passes::Answers => (false, true),
                Passes::Questions => (true, false),
                Passes::Nothing => (false, false),
            };
            tokio::select! {
                length = self.client.read(&mut sent), if out => {
                    let part = &sent[..length?];
                    self.is_writer |= contains(part, b"update stead_lanes set number");
                    let is_commit = self.is_writer && contains(part, b"commit\0");
                    if part.is_empty() || is_commit && take(&self.asked, Loses::TheCommit) {
                        return Ok(());
                    }
                    if is_commit && take(&self.asked, Loses::TheClient) {
                        drop(self.client);
                        tokio::time::sleep(LATER).await;
                        self.server.write_all(part).await?;
                        while self.server.read(&mut answered).await? > 0 {}
                        return Ok(());
                    }
                    self.server.write_all(part).await?;
                }
                length = self.server.read(&mut answered), if back => {
                    let part = &answered[..length?];
                    let is_committed = self.is_writer && contains(part, b"COMMIT\0");
                    if part.is_empty() || is_committed && take(&self.asked, Loses::TheAnswer) {
                        return Ok(());
                    }
                    self.client.write_all(part).await?;
                }
                changed = self.passing.changed() => changed?,
            }
        }
    }
}

fn contains(part: &[u8], word: &[u8]) -> bool {
    part.windows(word.len()).any(|window| window == word)
}

/// Whether this is to be lost, and now is.
fn take(loses: &AtomicU8, what: Loses) -> bool {
    let (what, nothing) = (what as u8, Loses::Nothing as u8);
    loses.compare_exchange(what, nothing, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}
