//! Listening: the address as an operator writes it, the addresses behind that, and their sockets.
//!
//! The sockets wait with a backlog that takes a write group of connections: what finds no room in it is
//! dropped by the operating system and tried again by its client after 1, 3 and 7 s.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// The most connections that wait to be accepted, on one address. The operating system may keep fewer
/// (`net.core.somaxconn`).
const BACKLOG: u32 = 16_384;
/// How often a port is looked for that is free on every address of a name.
const PORTS_TRIED: usize = 16;
/// The longest name of a machine, in bytes.
const NAME_BYTES_MAX: usize = 253;
/// The name that always means this machine itself (RFC 6761, section 6.3).
const LOCALHOST: &str = "localhost";

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// One address: `127.0.0.1:8080`, `[::1]:8080`, `0.0.0.0:8080`.
    Address(SocketAddr),
    /// Every address that a name stands for: `node-1:8080`. `localhost` is `127.0.0.1` and `::1`.
    Name(String, u16),
    /// Every address of the machine, of IPv6 and IPv4: `:8080`.
    Everywhere(u16),
}

/// The text is not an address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected ADDRESS:PORT, NAME:PORT or :PORT")]
pub struct ListenError;

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (name, port) = text.rsplit_once(':').ok_or(ListenError)?;
        // A sign is no part of a port, though a number may have one.
        let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
        let port = port.and_then(|port| port.parse().ok()).ok_or(ListenError)?;
        match name {
            "" => Ok(Self::Everywhere(port)),
            name if is_name(name) => Ok(Self::Name(name.to_owned(), port)),
            _ => Err(ListenError),
        }
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Everywhere(port) => write!(f, ":{port}"),
        }
    }
}

impl Listen {
    /// Whether it means every address of the machine, so that it names none that others could use.
    pub fn is_everywhere(&self) -> bool {
        match self {
            Self::Address(address) => address.ip().is_unspecified(),
            Self::Name(..) => false,
            Self::Everywhere(_) => true,
        }
    }
}

/// Whether this is the name of a machine. What has numbers only, and is no address, is no name either.
pub(crate) fn is_name(text: &str) -> bool {
    let is_plain = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    let is_number = text.chars().all(|c| c == '.' || c.is_ascii_digit());
    text.len() <= NAME_BYTES_MAX && text.split('.').all(is_plain) && !is_number
}

/// Listens on all addresses of `listen`, at the same port: at least one socket, IPv4 before IPv6.
///
/// # Errors
/// What the operating system says. A family of addresses that the machine does not have is left out
/// where another one is there.
pub(crate) async fn bind(listen: &Listen) -> io::Result<Vec<TcpListener>> {
    match listen {
        Listen::Address(address) => Ok(vec![open(*address)?]),
        Listen::Everywhere(port) => Ok(vec![open_everywhere(*port)?]),
        Listen::Name(name, port) if name.eq_ignore_ascii_case(LOCALHOST) => {
            let (first, second) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
            open_all(&[SocketAddr::new(first, *port), SocketAddr::new(second, *port)])
        }
        Listen::Name(name, port) => {
            let mut addresses: Vec<_> = lookup_host((name.as_str(), *port)).await?.collect();
            addresses.sort_unstable();
            addresses.dedup();
            open_all(&addresses)
        }
    }
}

/// Listens on one address.
pub(crate) fn open(address: SocketAddr) -> io::Result<TcpListener> {
    open_socket(address, false)
}

/// One socket for both families, or one for IPv4 where the machine has no IPv6.
fn open_everywhere(port: u16) -> io::Result<TcpListener> {
    match open_socket(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), true) {
        Err(error) if is_missing(&error) => {
            open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        opened => opened,
    }
}

fn open_all(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let is_any_port = addresses.iter().all(|address| address.port() == 0);
    let mut tried = 0;
    loop {
        tried += 1;
        match open_each(addresses) {
            // The port that is free on the first address may be taken on the next one.
            Err(error)
                if is_any_port
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tried < PORTS_TRIED => {}
            opened => return opened,
        }
    }
}

fn open_each(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut missing = None;
    let mut chosen = None;
    for address in addresses {
        let port = chosen.unwrap_or(address.port());
        let address = SocketAddr::new(address.ip(), port);
        match open(address) {
            Ok(listener) => {
                chosen = Some(listener.local_addr()?.port());
                listeners.push(listener);
            }
            Err(error) if is_missing(&error) => missing = Some(told(address, &error)),
            Err(error) => return Err(told(address, &error)),
        }
    }
    let none = || io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    if listeners.is_empty() { Err(missing.unwrap_or_else(none)) } else { Ok(listeners) }
}

fn told(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{address}: {error}"))
}

/// Whether the machine does not have such an address, or no such family.
fn is_missing(error: &io::Error) -> bool {
    let is_no_family = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    is_no_family || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn open_socket(address: SocketAddr, is_for_both: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if is_for_both {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // A server that starts again does not wait for the connections of the one before it.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_addresses_names_and_ports() {
        let parse = |text: &str| text.parse::<Listen>();
        for address in ["127.0.0.1:8080", "0.0.0.0:0", "[::1]:8080", "[::]:1", "[fe80::1%2]:80"] {
            let parsed = parse(address).expect(address);
            assert!(matches!(parsed, Listen::Address(_)), "{address}");
            assert_eq!(parsed.to_string(), address);
        }
        for (text, listen) in [
            (":8080", Listen::Everywhere(8_080)),
            (":0", Listen::Everywhere(0)),
            ("localhost:8080", Listen::Name("localhost".into(), 8_080)),
            ("node-1.stead_x:65535", Listen::Name("node-1.stead_x".into(), 65_535)),
        ] {
            assert_eq!(parse(text), Ok(listen.clone()));
            assert_eq!(listen.to_string(), text);
        }
        let long = format!("{}:1", "n".repeat(254));
        for wrong in [
            "",
            ":",
            "8080",
            "localhost",
            "localhost:",
            "localhost:http",
            "localhost:65536",
            ":+1",
            "localhost:-1",
            "::1:8080",
            "::8080",
            "[::1]",
            "http://localhost:80",
            "a b:1",
            " :1",
            "999.1.1.1:1",
            "1.2.3:1",
            "a..b:1",
            ".:1",
            "*:80",
            "u@h:1",
            "h:1/",
            &long,
        ] {
            assert_eq!(parse(wrong), Err(ListenError), "{wrong}");
        }
        let is_everywhere = |text| parse(text).expect("valid").is_everywhere();
        assert!([":1", "0.0.0.0:1", "[::]:1"].into_iter().all(is_everywhere));
        assert!(!["127.0.0.1:1", "[::1]:1", "localhost:1"].into_iter().any(is_everywhere));
    }

    #[tokio::test]
    async fn all_addresses_of_a_name_get_the_same_port() {
        let listeners = bind(&Listen::Name("LocalHost".into(), 0)).await.expect("a loopback");
        let addresses: Vec<_> =
            listeners.iter().map(|it| it.local_addr().expect("bound")).collect();
        assert!(addresses.iter().all(|address| address.ip().is_loopback()), "{addresses:?}");
        assert!(addresses.iter().all(|it| it.port() == addresses[0].port() && it.port() > 0));
        assert!(addresses.is_sorted(), "IPv4 comes first: {addresses:?}");
        let taken = bind(&Listen::Name("localhost".into(), addresses[0].port())).await;
        let error = taken.expect_err("somebody listens");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&addresses[0].to_string()), "{error}");
    }

    #[tokio::test]
    async fn everywhere_is_reached_by_both_families() {
        let listeners = bind(&Listen::Everywhere(0)).await.expect("bound");
        let [listener] = &listeners[..] else { panic!("{listeners:?}") };
        let address = listener.local_addr().expect("bound");
        let mut reached = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))];
        // A machine may have no IPv6.
        if address.is_ipv6() {
            reached.push(SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())));
        }
        for address in reached {
            tokio::net::TcpStream::connect(address).await.expect("reached");
        }
    }
}
