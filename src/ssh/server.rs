//! The door of a rescue: an SSH server that lets in the holder of one key, to one program.
//!
//! There is no password, no shell, no terminal, no forwarding and no second channel. [`hall`] is
//! where those wait who have not shown the key yet, [`guest`] answers what one of them asks, and
//! [`pipe`] is what a session reads and writes.
//!
//! Somebody without the key costs up to 1 MiB, and there are 16 of them at the most. With it, it
//! is up to 8 MiB: 4 of what is sent and not read yet, the rest for what is on its way out.

mod guest;
mod hall;
mod pipe;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Config, run_stream};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, kex};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use self::guest::Guest;
use self::hall::Hall;
use super::keys;
use crate::sys::secret::Secret;
use crate::system::rescue::Visits;

// Whoever has the key shows it within a second or two, on a slow machine and line in ten.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
// The question which methods there are counts as one.
const TRIES: usize = 1 + 3;
// Somebody who guesses waits as long for each answer.
const REJECTION_INTERVAL: Duration = Duration::from_secs(1);
// Three that are not answered end a connection: the dead are noticed within a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVES: usize = 3;
// One who takes nothing off a full line is not even asked.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
// Per packet: what the client sends in one piece, and what is bounded easily.
const PACKET: u32 = 64 << 10;
// What waits to be encrypted, in pieces of a packet.
const PIECES: usize = 8;
// A failed accept is mostly one of memory or descriptors, which take a while to come back.
const ACCEPT_POLL: Duration = Duration::from_millis(200);

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    // Where the law wants curves of NIST.
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const CIPHERS: &[cipher::Name] = &[cipher::CHACHA20_POLY1305, cipher::AES_256_GCM, cipher::AES_256_CTR];

/// Who is let in, and what the machine is known by.
pub struct Door {
    /// Private keys in OpenSSH's format or in PEM. What cannot be used is left out.
    pub host_keys: Vec<Secret>,
    /// The public key, as one line, that opens.
    pub authorized: String,
    pub timeouts: Timeouts,
}

/// How long the door waits for those who come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeouts {
    /// For the key.
    pub login: Duration,
    /// Before it asks somebody who says nothing whether they are there.
    pub keepalive_interval: Duration,
    /// For somebody who neither says nor takes anything.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { login: LOGIN_TIMEOUT, keepalive_interval: KEEPALIVE_INTERVAL, silence: SILENCE_TIMEOUT }
    }
}

/// What runs for somebody who is let in, until it returns its exit status.
pub type Session = dyn Fn(Box<dyn Read + Send>, Box<dyn Write + Send>) -> i32 + Send + Sync;

/// All that connections have in common.
struct House {
    config: Arc<Config>,
    login_timeout: Duration,
    authorized: PublicKey,
    hall: Hall,
    visits: Arc<Visits>,
    session: Box<Session>,
}

/// Lets in whoever has the key, for as long as the process lives. Each `exec` of `serve` runs
/// `session` on a thread of its own: reading ends with what the client has sent or with the
/// connection, and writing to one who is gone is a broken pipe.
pub fn open(
    door: &Door,
    listeners: Vec<TcpListener>,
    visits: Arc<Visits>,
    session: impl Fn(Box<dyn Read + Send>, Box<dyn Write + Send>) -> i32 + Send + Sync + 'static,
) -> Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the SSH server")?.block_on(admit(door, listeners, visits, session))
}

/// Does the same as [`open`] in a runtime of the caller's, and goes by the clock of that.
pub async fn admit(
    door: &Door,
    listeners: Vec<TcpListener>,
    visits: Arc<Visits>,
    session: impl Fn(Box<dyn Read + Send>, Box<dyn Write + Send>) -> i32 + Send + Sync + 'static,
) -> Result<Infallible> {
    let house = Arc::new(House {
        config: Arc::new(config(host_keys(door)?, &door.timeouts)),
        login_timeout: door.timeouts.login,
        authorized: keys::public_key(&door.authorized).context("reading the key that opens the door")?,
        hall: Hall::default(),
        visits,
        session: Box::new(session),
    });
    ensure!(!listeners.is_empty(), "the door is nowhere; listen on an address at least");
    for listener in listeners {
        listener.set_nonblocking(true).context("listening for SSH")?;
        let listener = tokio::net::TcpListener::from_std(listener).context("listening for SSH")?;
        tokio::spawn(receive(Arc::clone(&house), listener));
    }
    future::pending().await
}

fn host_keys(door: &Door) -> Result<Vec<PrivateKey>> {
    let texts = door.host_keys.iter().filter_map(|key| std::str::from_utf8(key.bytes()).ok());
    let keys: Vec<PrivateKey> = texts.filter_map(keys::private_key).collect();
    ensure!(
        !keys.is_empty(),
        "none of the {} host keys can be used, and the machine would not be recognised; give it one \
         of Ed25519, ECDSA or RSA without a passphrase",
        door.host_keys.len()
    );
    Ok(keys)
}

fn config(keys: Vec<PrivateKey>, timeouts: &Timeouts) -> Config {
    let sha1 = |algorithm: &Algorithm| *algorithm == Algorithm::Rsa { hash: None };
    let signatures = Preferred::DEFAULT.key.iter().filter(|algorithm| !sha1(algorithm)).cloned();
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-nixos_install_via")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION_INTERVAL,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: TRIES,
        keys,
        window_size: pipe::WINDOW,
        maximum_packet_size: PACKET,
        event_buffer_size: PIECES,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            cipher: Cow::Borrowed(CIPHERS),
            key: signatures.collect(),
            ..Preferred::DEFAULT
        },
        inactivity_timeout: Some(timeouts.silence),
        keepalive_interval: Some(timeouts.keepalive_interval),
        keepalive_max: KEEPALIVES,
        ..Config::default()
    }
}

async fn receive(house: Arc<House>, listener: tokio::net::TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(attend(Arc::clone(&house), stream, peer.ip()));
            }
            Err(_) => sleep(ACCEPT_POLL).await,
        }
    }
}

/// Answers one connection to its end. What ends it is told to nobody: there is nobody else.
async fn attend(house: Arc<House>, stream: TcpStream, from: IpAddr) {
    let deadline = Instant::now() + house.login_timeout;
    let Ok((stream, line)) = twofold(stream) else { return };
    let place = house.hall.enter(from, line);
    let guest = Guest::new(Arc::clone(&house), place);
    let greeting = run_stream(Arc::clone(&house.config), stream, guest);
    let Ok(Ok(mut running)) = timeout_at(deadline, greeting).await else { return };
    if timeout_at(deadline, &mut running).await.is_err() {
        // Does nothing to somebody who has been let in.
        house.hall.dismiss(place);
        let _ = running.await;
    }
}

/// Returns the connection, and a second handle on it that can hang up.
fn twofold(stream: TcpStream) -> io::Result<(TcpStream, std::net::TcpStream)> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let line = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_waited_for_half_a_minute_and_the_dead_are_noticed_within_one() {
        let seconds = Duration::from_secs;
        let timeouts = Timeouts::default();
        let expected = Timeouts { login: seconds(30), keepalive_interval: seconds(15), silence: seconds(60) };
        assert_eq!(timeouts, expected);
        let config = config(Vec::new(), &timeouts);
        assert_eq!(
            (config.keepalive_interval, config.keepalive_max, config.inactivity_timeout),
            (Some(seconds(15)), 3, Some(seconds(60)))
        );
        assert_eq!(
            (config.auth_rejection_time, config.auth_rejection_time_initial, config.max_auth_attempts),
            (seconds(1), Some(Duration::ZERO), 4)
        );
    }
}
