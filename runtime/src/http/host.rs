//! The `Host` of a request (RFC 9112, section 3.2): HTTP/1.1 has exactly one, HTTP/1.0 at most one.

use std::net::Ipv6Addr;

use axum::http::{HeaderMap, Version, header};

use stead_entities::problem::Problem;

/// The characters of a host's name beside letters and digits (RFC 3986, section 3.2.2).
const MARKS: &[u8] = b"-._~!$&'()*+,;=";

/// Refuses a request whose `Host` is missing, given more than once, or names no host.
pub(super) fn check(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    let mut given = headers.get_all(header::HOST).iter();
    match (given.next(), given.next()) {
        (None, _) if version > Version::HTTP_10 => {
            Err(Problem::invalid("a request of HTTP/1.1 has a Host header"))
        }
        (Some(_), Some(_)) => Err(Problem::invalid("Host is given twice")),
        (Some(host), None) if !is_host(host.as_bytes()) => {
            Err(Problem::invalid("Host is NAME or NAME:PORT"))
        }
        _ => Ok(()),
    }
}

fn is_host(text: &[u8]) -> bool {
    let (is_named, rest) = match text.strip_prefix(b"[") {
        Some(inner) => {
            let end = inner.iter().position(|byte| *byte == b']').unwrap_or(inner.len());
            let address = str::from_utf8(&inner[..end]).unwrap_or_default();
            (address.parse::<Ipv6Addr>().is_ok(), inner.get(end + 1..))
        }
        None => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            (is_name(&text[..end]), Some(&text[end..]))
        }
    };
    is_named && rest.is_some_and(is_port)
}

fn is_name(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        rest = match behind {
            [high, low, behind @ ..]
                if *first == b'%' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                behind
            }
            behind if first.is_ascii_alphanumeric() || MARKS.contains(first) => behind,
            _ => return false,
        };
    }
    !text.is_empty()
}

/// Nothing, or a colon and a port, which may be left out.
fn is_port(text: &[u8]) -> bool {
    match text.split_first() {
        None => true,
        Some((b':', port)) => {
            let is_number = port.iter().all(u8::is_ascii_digit);
            let number = str::from_utf8(port).unwrap_or_default();
            is_number && (port.is_empty() || number.parse::<u16>().is_ok())
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn is_good(version: Version, hosts: &[&[u8]]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_bytes(host).expect("a value"));
        }
        check(version, &headers).is_ok()
    }

    #[test]
    fn a_request_names_one_host() {
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        assert!(is_good(old, &[]) && !is_good(new, &[]));
        for hosts in [&[&b"a"[..], b"b"][..], &[b"a", b"a"], &[b"", b"a"]] {
            assert!(!is_good(old, hosts) && !is_good(new, hosts), "{hosts:?}");
        }
        for good in [
            "x",
            "localhost",
            "localhost:8080",
            "localhost:",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:8080",
            "node_1.example.",
            "a%20b",
            "a!$&'()*+,;=~",
        ] {
            assert!(is_good(old, &[good.as_bytes()]) && is_good(new, &[good.as_bytes()]), "{good}");
        }
        for wrong in [
            "", ":80", "a b", "a/b", "a?b", "a#b", "me@a", "http://a", "a:b", "a:80:80", "a:65536",
            "a:-1", "[::1", "[]", "[::1]80", "[a]", "::1", "a%2", "a%zz", "a\\b", "a\"", "a, b",
        ] {
            assert!(!is_good(new, &[wrong.as_bytes()]), "{wrong}");
            assert!(!is_good(old, &[wrong.as_bytes()]), "{wrong}");
        }
        assert!(!is_good(new, &["h\u{e9}".as_bytes()]));
    }
}
