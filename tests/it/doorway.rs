//! A door in a process of its own, and the real OpenSSH client in front of it.
//!
//! No time decides there: the door sends nobody away for being slow, and the clock of its dead man stands until the test
//! lets time pass. Where what the door itself waits for is told of, its own clock stands too.

use std::cell::RefCell;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nixos_install_via::ssh::server::{self, Door, Timeouts};
use nixos_install_via::sys::clock::Clock;
use nixos_install_via::sys::secret::Secret;
use nixos_install_via::system::rescue::Visits;
use sha2::Digest;
use tokio::sync::mpsc;
use tokio::task::{spawn_blocking, yield_now};

use crate::env::{Ran, TestEnv, ssh_word, text, tool};
use crate::wait;

/// What takes longer than any test of a door.
pub const LONG: Duration = Duration::from_secs(3600);
/// A door whose clock runs, and which waits for longer than any test.
pub const PATIENT: Timeouts = Timeouts { login: LONG, keepalive_interval: LONG, silence: LONG };
// Time passes in such steps, so that one thing happens after the other.
const STEP: Duration = Duration::from_secs(1);

pub struct Doorway {
    pub env: TestEnv,
    pub port: u16,
    process: RefCell<Child>,
    orders: ChildStdin,
    told: RefCell<BufReader<ChildStdout>>,
}

/// How a door is opened.
struct Opening<'a> {
    /// What `ssh-keygen` makes the host key with.
    key: &'a [&'a str],
    /// Of the dead man.
    timeout: Duration,
    /// The door's own clock stands, and it is as patient as in a rescue.
    stands: bool,
}

const USUAL: Opening = Opening { key: &["-t", "ed25519"], timeout: LONG, stands: false };

impl Doorway {
    /// Opens a door that is known by a new Ed25519 key.
    pub fn open() -> Doorway {
        Doorway::opened(&USUAL)
    }

    /// Opens a door with a host key made by `ssh-keygen` with these options.
    pub fn known_by(key: &[&str]) -> Doorway {
        Doorway::opened(&Opening { key, ..USUAL })
    }

    /// Opens a door with a dead man.
    pub fn with_dead_man(timeout: Duration) -> Doorway {
        Doorway::opened(&Opening { timeout, ..USUAL })
    }

    /// Opens a door on which no time passes but by [`Doorway::pass`].
    pub fn in_standing_time() -> Doorway {
        Doorway::opened(&Opening { stands: true, ..USUAL })
    }

    fn opened(opening: &Opening) -> Doorway {
        let env = TestEnv::new();
        keygen(&env.path("host"), opening.key);
        keygen(&env.path("id"), &["-t", "ed25519"]);
        // What cannot be used does no harm.
        fs::write(env.path("host_none"), "no key at all").unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "doorway::the_door", "--ignored", "--nocapture"])
            .env("DOOR", env.path(""))
            .env("DOOR_TIMEOUT", opening.timeout.as_secs().to_string())
            .env("DOOR_STANDS", opening.stands.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().expect("it was piped");
        let told = RefCell::new(BufReader::new(process.stdout.take().expect("it was piped")));
        let mut doorway = Doorway { env, port: 0, process: RefCell::new(process), orders, told };
        doorway.port = doorway.told("port ").parse().unwrap();
        doorway.knows(&doorway.env.path("host.pub"));
        doorway
    }

    /// Waits for a line of the door's, and returns how it goes on.
    #[track_caller]
    fn told(&self, head: &str) -> String {
        let mut told = self.told.borrow_mut();
        loop {
            let mut line = String::new();
            assert!(told.read_line(&mut line).unwrap() > 0, "the door has ended");
            if let Some(rest) = line.strip_prefix(head) {
                return rest.trim_end().to_owned();
            }
        }
    }

    /// Lets time pass on the clocks that stand, and returns when what was due by then has been done.
    #[track_caller]
    pub fn pass(&self, time: Duration) {
        writeln!(&self.orders, "{}", time.as_millis()).unwrap();
        self.told("passed");
    }

    /// The client expects this host key from here on.
    pub fn knows(&self, public: &Path) {
        let key = fs::read_to_string(public).unwrap();
        fs::write(self.env.path("known"), format!("[127.0.0.1]:{} {key}", self.port)).unwrap();
    }

    /// The client with the right key, about to connect; what follows may take precedence.
    pub fn client(&self, words: &[&str]) -> Command {
        self.client_with("id", words)
    }

    pub fn client_with(&self, key: &str, words: &[&str]) -> Command {
        let known = format!("UserKnownHostsFile={}", ssh_word(&self.env.path("known")));
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-i"]).arg(self.env.path(key));
        for option in [
            &known,
            "GlobalKnownHostsFile=/etc/ssh/none",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(words).env_remove("DISPLAY").env("LC_ALL", "C");
        ssh
    }

    /// Runs a client to its end, with something to say.
    pub fn run(&self, mut client: Command, input: &str) -> Ran {
        let line = format!("{client:?}");
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = client.spawn().expect("ssh is there");
        // A client that has not been let in reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Ran::new(line, child.wait_with_output().unwrap())
    }

    /// Runs one session to its end.
    pub fn say(&self, input: &str) -> Ran {
        self.run(self.client(&["x@127.0.0.1", "serve"]), input)
    }

    /// Starts a session, and says what it shall do.
    pub fn start(&self, mut client: Command, order: &str) -> Child {
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = client.spawn().expect("ssh is there");
        writeln!(child.stdin.as_mut().unwrap(), "{order}").unwrap();
        child
    }

    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    /// The most memory that the door's process has ever had.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.borrow().id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    pub fn has(&self, name: &str) -> bool {
        self.env.path(name).exists()
    }

    /// Waits for something that the door does in its directory.
    #[track_caller]
    pub fn wait_for(&self, name: &str) {
        wait::until(name, || {
            let ended = self.process.borrow_mut().try_wait().unwrap();
            assert!(ended.is_none(), "no {name}, and the door has ended: {ended:?}");
            self.has(name).then_some(())
        });
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        let process = self.process.get_mut();
        let _ = process.kill();
        let _ = process.wait();
    }
}

pub fn keygen(file: &Path, kind: &[&str]) {
    tool("ssh-keygen", &[&["-q", "-N", "", "-C", "", "-f", text(file)], kind].concat());
}

/// Bytes that repeat nowhere near, of whatever number.
pub fn noise(count: u64) -> impl Read {
    struct Noise(u64);
    impl Read for Noise {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in &mut *buffer {
                self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (self.0 >> 56) as u8;
            }
            Ok(buffer.len())
        }
    }
    Noise(1).take(count)
}

/// The hash of all that can be read, and how much that was.
pub fn hash(mut input: impl Read) -> String {
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut count = 0;
    while let length @ 1.. = input.read(&mut buffer).unwrap() {
        hash.update(&buffer[..length]);
        count += length;
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digest} {count}")
}

/// A clock that stands, but for the time that a test lets pass, and by which one thread sleeps: that of the dead man.
struct Standing {
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    passed: Duration,
    /// Until when the sleeper sleeps, if it does.
    sleeps: Option<Duration>,
    /// It will not sleep again.
    awake: bool,
}

impl Standing {
    fn new() -> Arc<Standing> {
        Arc::new(Standing { start: Instant::now(), state: Mutex::default(), changed: Condvar::new() })
    }

    /// Lets time pass, and returns when the sleeper has done what it woke up for.
    fn pass(&self, time: Duration) {
        let mut state = self.state.lock().unwrap();
        state.passed += time;
        self.changed.notify_all();
        let busy = |state: &mut State| !state.awake && state.sleeps.is_none_or(|until| until <= state.passed);
        drop(self.changed.wait_while(state, busy).unwrap());
    }

    fn stays_awake(&self) {
        self.state.lock().unwrap().awake = true;
        self.changed.notify_all();
    }
}

impl Clock for Standing {
    fn now(&self) -> Instant {
        self.start + self.state.lock().unwrap().passed
    }

    fn sleep(&self, time: Duration) {
        let mut state = self.state.lock().unwrap();
        let until = state.passed + time;
        state.sleeps = Some(until);
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.passed < until).unwrap();
        state.sleeps = None;
    }
}

/// Lets time pass as the other end orders it, and ends with that.
async fn obey_the_clock(dead_man: Arc<Standing>, stands: bool) {
    let (order, mut orders) = mpsc::unbounded_channel();
    // The runtime would go on to whatever is due next by itself, were it not for this thread of its own.
    spawn_blocking(move || {
        for line in io::stdin().lines() {
            let time = line.unwrap().parse().unwrap();
            order.send(Duration::from_millis(time)).unwrap();
        }
    });
    while let Some(mut left) = orders.recv().await {
        while !left.is_zero() {
            let step = left.min(STEP);
            left -= step;
            if stands {
                tokio::time::advance(step).await;
                // Whatever is due has its turn before this has one again; twice, for what is due by that.
                yield_now().await;
                yield_now().await;
            }
            dead_man.pass(step);
        }
        println!("passed");
    }
    std::process::exit(0);
}

#[test]
#[ignore = "it is the other end of those that open a door, which run it"]
fn the_door() {
    let dir = PathBuf::from(std::env::var("DOOR").expect("the other end sets it"));
    let timeout = std::env::var("DOOR_TIMEOUT").unwrap().parse().unwrap();
    let stands = std::env::var("DOOR_STANDS").unwrap() == "true";
    // Whoever waits for something that does not come hears of it then.
    thread::spawn(|| {
        thread::sleep(wait::BACKSTOP);
        eprintln!("the door was open for too long");
        std::process::exit(1);
    });
    let secret = |name| Secret::new(fs::read(dir.join(name)).unwrap());
    let door = Door {
        host_keys: vec![secret("host_none"), secret("host")],
        authorized: fs::read_to_string(dir.join("id.pub")).unwrap(),
        timeouts: if stands { Timeouts::default() } else { PATIENT },
    };
    let clock = Standing::new();
    let visits = Visits::new(Duration::from_secs(timeout), clock.clone());
    let (dead_man, place, sleeper) = (visits.clone(), dir.clone(), clock.clone());
    thread::spawn(move || {
        dead_man.wait();
        fs::write(place.join("rebooted"), "").unwrap();
        sleeper.stays_awake();
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("\nport {}", listener.local_addr().unwrap().port());
    let session = move |input, output| obey(&dir, input, output).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(stands).build();
    let error = runtime.unwrap().block_on(async {
        tokio::spawn(obey_the_clock(clock, stands));
        server::admit(&door, vec![listener], visits, session).await.unwrap_err()
    });
    panic!("{error:#}");
}

/// Does what the first line says.
fn obey(dir: &Path, mut input: Box<dyn Read + Send>, mut output: Box<dyn Write + Send>) -> io::Result<i32> {
    let mut line = Vec::new();
    let mut byte = [0];
    while input.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (word, number) = line.split_once(' ').unwrap_or((&line, "0"));
    let number: u64 = number.parse().unwrap();
    match word {
        "exit" => return Ok(number as i32),
        "hello" => output.write_all(b"hello\n")?,
        "hash" => writeln!(output, "{}", hash(input))?,
        "hash-later" => {
            wait::until("the word to begin", || dir.join("begin").exists().then_some(()));
            writeln!(output, "{}", hash(input))?;
        }
        "give" => {
            io::copy(&mut io::BufReader::with_capacity(1 << 16, noise(number)), &mut output)?;
            fs::write(dir.join("given"), "")?;
        }
        "echo" => {
            io::copy(&mut io::BufReader::with_capacity(1 << 16, input), &mut output)?;
        }
        // One direction until it is over, and both of its ends.
        "note" => {
            fs::write(dir.join("started"), "")?;
            fs::write(dir.join("ended"), hash(input))?;
            // The client may be gone, or only have nothing more to say.
            while output.write_all(&[b'x'; 4096]).is_ok() {}
            fs::write(dir.join("broken"), "")?;
        }
        "pour" => {
            while output.write_all(&[b'x'; 4096]).is_ok() {}
            fs::write(dir.join("dry"), "")?;
        }
        "ignore" => return Ok(0),
        other => panic!("{other}?"),
    }
    Ok(0)
}
