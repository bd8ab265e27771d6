//! A client that does with its connection what a test says, and sends all of a request before it reads.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How long an answer, or the end of a connection, is waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One connection.
#[derive(Debug)]
pub struct Plain {
    stream: TcpStream,
    /// What arrived behind the last answer.
    rest: Vec<u8>,
}

/// An answer with a length.
#[derive(Debug)]
pub struct Answer {
    /// The number in its first line.
    pub status: u16,
    /// Its head in small letters.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// Whether this is a problem document of this kind.
    pub fn is_problem(&self, slug: &str) -> bool {
        self.head.contains("content-type: application/problem+json")
            && self.body.contains(&format!("\"urn:stead:problem:{slug}\""))
    }
}

impl Plain {
    /// Connects.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(address).await?, rest: Vec::new() })
    }

    /// Sends `text` as it is.
    ///
    /// # Errors
    /// Where the other side has hung up.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.write_all(text.as_bytes()).await?)
    }

    /// Sends so many bytes of no meaning.
    ///
    /// # Errors
    /// Where the other side has hung up.
    pub async fn send_bytes(&mut self, length: usize) -> Result<()> {
        let part = vec![b'1'; 64 << 10];
        let mut left = length;
        while left > 0 {
            let length = left.min(part.len());
            self.stream.write_all(&part[..length]).await?;
            left -= length;
        }
        Ok(())
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// Where none arrives, or a part of one.
    pub async fn answer(&mut self) -> Result<Answer> {
        let head = loop {
            let end = self.rest.windows(4).position(|part| part == b"\r\n\r\n");
            if let Some(end) = end {
                let behind = self.rest.split_off(end + 4);
                let head = std::mem::replace(&mut self.rest, behind);
                break String::from_utf8(head)?.to_lowercase();
            }
            self.read().await.context("a head")?;
        };
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(Ok(0), str::parse)?;
        while self.rest.len() < length {
            self.read().await.context("a body")?;
        }
        let behind = self.rest.split_off(length);
        let body = String::from_utf8(std::mem::replace(&mut self.rest, behind))?;
        Ok(Answer { status, head, body })
    }

    async fn read(&mut self) -> Result<()> {
        let reading = self.stream.read_buf(&mut self.rest);
        match tokio::time::timeout(TIMEOUT, reading).await?? {
            0 => bail!("the connection ended after {} bytes", self.rest.len()),
            _some => Ok(()),
        }
    }

    /// Whether nothing happens for so long: nothing arrives, and the connection stays.
    pub async fn is_quiet(&mut self, length: Duration) -> bool {
        tokio::time::timeout(length, self.stream.read_buf(&mut self.rest)).await.is_err()
    }

    /// Waits until the other side hangs up.
    ///
    /// # Errors
    /// Where it does not, or says something instead.
    pub async fn hung_up(&mut self) -> Result<()> {
        // A reset is a hang-up too.
        match tokio::time::timeout(TIMEOUT, self.stream.read_buf(&mut self.rest)).await? {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => bail!("it says {:?}", String::from_utf8_lossy(&self.rest)),
        }
    }
}
