//! Where a machine is reached: `[USER@]HOST`, or `ssh://[USER@]HOST[:PORT]`.
//!
//! HOST is whatever the user's OpenSSH makes of it: a name, an address, or an alias of its
//! configuration. What could pass for an option, or for a part of a shell's line in somebody's
//! `ProxyCommand %h`, is refused here, for old clients do not.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} names no host; write [USER@]HOST or ssh://[USER@]HOST[:PORT]")]
    NoHost(String),
    #[error("{0:?} cannot be the user or the host of an address; write [USER@]HOST")]
    Forbidden(String),
    #[error("{0:?} holds a port; give it with -p, or write ssh://[USER@]HOST:PORT")]
    Port(String),
    #[error("{0:?} is no port; it is a number from 1 to 65535")]
    NoPort(String),
}

// What newer OpenSSH clients refuse as well.
const SHELL: &[char] = &['\'', '`', '"', '$', '\\', ';', '&', '<', '>', '|', '(', ')', '{', '}'];

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let (place, port) = match text.strip_prefix("ssh://") {
            Some(rest) => split_port(rest.strip_suffix('/').unwrap_or(rest))?,
            None => (text, None),
        };
        // A name may hold an @, a host cannot.
        let (user, host) = match place.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, place),
        };
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || user == Some("") {
            return Err(AddressError::NoHost(text.to_owned()));
        }
        let domain_separator = |c: char| c == '\\';
        if !is_safe(host, |_| false) || !user.is_none_or(|user| is_safe(user, domain_separator)) {
            return Err(AddressError::Forbidden(text.to_owned()));
        }
        if host.contains(':') && !is_ipv6(host) {
            return Err(AddressError::Port(text.to_owned()));
        }
        if host.contains(['[', ']', '/', '@']) {
            return Err(AddressError::Forbidden(text.to_owned()));
        }
        Ok(Address { user: user.map(str::to_owned), host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        match (self.port, self.host.contains(':')) {
            (None, _) => write!(f, "{user}{}", self.host),
            (Some(port), false) => write!(f, "ssh://{user}{}:{port}", self.host),
            (Some(port), true) => write!(f, "ssh://{user}[{}]:{port}", self.host),
        }
    }
}

/// Splits the port off what stands behind `ssh://`. An IPv6 address that has one stands in brackets.
fn split_port(place: &str) -> Result<(&str, Option<u16>), AddressError> {
    let host = place.rsplit_once('@').map_or(place, |(_, host)| host);
    let behind = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    let Some((_, port)) = behind.rsplit_once(':').filter(|_| !is_ipv6(host)) else {
        return Ok((place, None));
    };
    match port.parse() {
        Ok(number @ 1..) if port.bytes().all(|digit| digit.is_ascii_digit()) => {
            Ok((&place[..place.len() - port.len() - 1], Some(number)))
        }
        _ => Err(AddressError::NoPort(port.to_owned())),
    }
}

fn is_ipv6(host: &str) -> bool {
    let address = host.split_once('%').map_or(host, |(address, _)| address);
    address.parse::<Ipv6Addr>().is_ok()
}

fn is_safe(word: &str, allowed: impl Fn(char) -> bool) -> bool {
    let bad = |c: char| c.is_control() || c.is_whitespace() || SHELL.contains(&c);
    !word.starts_with('-') && !word.chars().any(|c| bad(c) && !allowed(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_user_a_host_and_sometimes_a_port() {
        for (text, user, host, port) in [
            ("web1", None, "web1", None),
            ("root@web1.example.org", Some("root"), "web1.example.org", None),
            ("a@b@web1", Some("a@b"), "web1", None),
            (r"DOMAIN\me@web1", Some(r"DOMAIN\me"), "web1", None),
            ("::1", None, "::1", None),
            ("root@fe80::1%eth0", Some("root"), "fe80::1%eth0", None),
            ("[::1]", None, "::1", None),
            ("ssh://web1", None, "web1", None),
            ("ssh://web1/", None, "web1", None),
            ("ssh://root@web1:2222", Some("root"), "web1", Some(2222)),
            ("ssh://[::1]:2222/", None, "::1", Some(2222)),
            ("ssh://root@[fe80::1%eth0]", Some("root"), "fe80::1%eth0", None),
            ("ssh://::1", None, "::1", None),
            ("größe", None, "größe", None),
        ] {
            let address: Address = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(address, Address { user: user.map(String::from), host: host.into(), port }, "{text}");
            assert_eq!(address.to_string().parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_what_to_write() {
        let long = "65536".to_owned();
        for (text, error) in [
            ("", AddressError::NoHost("".into())),
            ("root@", AddressError::NoHost("root@".into())),
            ("@web1", AddressError::NoHost("@web1".into())),
            ("ssh://", AddressError::NoHost("ssh://".into())),
            ("-oProxyCommand=id", AddressError::Forbidden("-oProxyCommand=id".into())),
            ("root@-web1", AddressError::Forbidden("root@-web1".into())),
            ("-l@web1", AddressError::Forbidden("-l@web1".into())),
            ("[-oProxyCommand=id]", AddressError::Forbidden("[-oProxyCommand=id]".into())),
            ("ssh://-x", AddressError::Forbidden("ssh://-x".into())),
            ("web 1", AddressError::Forbidden("web 1".into())),
            ("web\n1", AddressError::Forbidden("web\n1".into())),
            ("\u{1b}[2J", AddressError::Forbidden("\u{1b}[2J".into())),
            ("$(id)", AddressError::Forbidden("$(id)".into())),
            ("a;b@web1", AddressError::Forbidden("a;b@web1".into())),
            ("web1/x", AddressError::Forbidden("web1/x".into())),
            ("web1:22", AddressError::Port("web1:22".into())),
            ("[::1]:22", AddressError::Port("[::1]:22".into())),
            ("ssh://web1:", AddressError::NoPort("".into())),
            ("ssh://web1:0", AddressError::NoPort("0".into())),
            ("ssh://web1:+22", AddressError::NoPort("+22".into())),
            ("ssh://web1:65536", AddressError::NoPort(long)),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text:?}");
        }
    }
}
