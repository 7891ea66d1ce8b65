//! The way to a machine: a port of 127.0.0.1, with the delay and the rate that a test wants.
//!
//! Bytes are counted, and the link can be cut: what is under way then stays there until it is mended,
//! as with a cable that is pulled. The kernel's own means for this are not everywhere.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const CHUNK: usize = 16 << 10;
// With the chunks, what fits onto the link: 4 MiB, more than OpenSSH's own window.
const CHUNKS_UNDER_WAY: usize = 256;
const GLANCE: Duration = Duration::from_millis(10);

type Stream = (Box<dyn Read + Send>, Box<dyn Write + Send>);

/// A port that leads to a machine, until the value goes.
pub struct Link {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    shape: Mutex<Shape>,
    cut: AtomicBool,
    closed: AtomicBool,
    there: Way,
    back: Way,
}

#[derive(Clone, Copy, Default)]
struct Shape {
    delay: Duration,
    bytes_per_second: Option<u64>,
}

/// One direction, which all connections share.
#[derive(Default)]
struct Way {
    bytes: AtomicU64,
    free_from: Mutex<Option<Instant>>,
}

impl Link {
    /// A link to what `open` reaches, anew for each connection.
    fn new(open: impl Fn() -> std::io::Result<Stream> + Send + 'static) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State::default());
        thread::spawn({
            let state = state.clone();
            move || {
                for near in listener.incoming() {
                    if state.closed.load(Ordering::Relaxed) {
                        break;
                    }
                    if let (Ok(near), Ok(far)) = (near, open()) {
                        join(near, far, &state);
                    }
                }
            }
        });
        Link { port, state }
    }

    /// A link to a port of this machine.
    pub fn to_port(port: u16) -> Link {
        Link::new(move || {
            let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            far.set_nodelay(true)?;
            Ok((Box::new(far.try_clone()?), Box::new(Sending(far))))
        })
    }

    /// A link to an address in the network namespace that a process has at this time.
    pub fn into_namespace(process: u32, address: &'static str, port: u16) -> Link {
        Link::new(move || {
            // Ends with the thread of this link, even if its connection goes on waiting for an answer.
            let mut nc = Command::new("setpriv");
            nc.args([
                "--pdeathsig",
                "KILL",
                "nsenter",
                "--net",
                "--target",
                &process.to_string(),
                "busybox",
                "nc",
                address,
                &port.to_string(),
            ]);
            let mut nc = nc.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let stdin = nc.stdin.take().expect("it is piped");
            let stdout = nc.stdout.take().expect("it is piped");
            thread::spawn(move || nc.wait());
            Ok((Box::new(stdout), Box::new(stdin)))
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives the link a delay in each direction, and a rate in each that all its connections share.
    pub fn shape(&self, delay: Duration, bytes_per_second: Option<u64>) {
        *self.state.shape.lock().unwrap() = Shape { delay, bytes_per_second };
    }

    /// From now on nothing gets through; connections are accepted, and hear nothing.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::Relaxed);
    }

    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::Relaxed);
    }

    /// How many bytes went to the machine, and how many came from it.
    pub fn bytes(&self) -> (u64, u64) {
        let count = |way: &Way| way.bytes.load(Ordering::Relaxed);
        (count(&self.state.there), count(&self.state.back))
    }
}

/// A port of this machine that nobody has, and that the kernel gives to nobody who asks for any.
pub fn free_port() -> u16 {
    // Another run of the tests begins elsewhere.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(131);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let ports = || Some(10_000 + (first.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed)) % 20_000) as u16);
    std::iter::from_fn(ports).take(20_000).find(is_free).expect("there is a free port")
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
    }
}

/// Tells the other side of the end of what it was sent.
struct Sending(TcpStream);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Write).ok();
    }
}

fn join(near: TcpStream, (from_far, to_far): Stream, state: &Arc<State>) {
    near.set_nodelay(true).ok();
    let Ok(from_near) = near.try_clone() else { return };
    carry(Box::new(from_near), to_far, state, |state| &state.there);
    carry(from_far, Box::new(Sending(near)), state, |state| &state.back);
}

/// Carries one direction of a connection to its end, with a thread that reads and one that waits and writes.
fn carry(
    mut from: Box<dyn Read + Send>,
    to: Box<dyn Write + Send>,
    state: &Arc<State>,
    way: fn(&State) -> &Way,
) {
    let (sender, chunks) = sync_channel(CHUNKS_UNDER_WAY);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    let state = state.clone();
    thread::spawn(move || deliver(chunks, to, &state, way(&state)));
}

fn deliver(chunks: Receiver<(Instant, Vec<u8>)>, mut to: Box<dyn Write + Send>, state: &State, way: &Way) {
    for (sent, chunk) in chunks {
        let shape = *state.shape.lock().unwrap();
        let mut due = sent + shape.delay;
        if let Some(rate) = shape.bytes_per_second {
            let mut free_from = way.free_from.lock().unwrap();
            let begun = free_from.map_or(sent, |free| free.max(sent));
            let through = begun + Duration::from_secs_f64(chunk.len() as f64 / rate as f64);
            *free_from = Some(through);
            due = through + shape.delay;
        }
        sleep(due.saturating_duration_since(Instant::now()));
        while state.cut.load(Ordering::Relaxed) && !state.closed.load(Ordering::Relaxed) {
            sleep(GLANCE);
        }
        // Before, so that whoever has them finds them counted.
        way.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if to.write_all(&chunk).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}
