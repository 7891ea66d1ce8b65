//! A door in a process of its own, and the real OpenSSH client in front of it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nixos_install_via::ssh::server::{self, Door};
use nixos_install_via::sys::secret::Secret;
use nixos_install_via::system::rescue::Visits;
use sha2::Digest;

use crate::env::{Ran, TestEnv, ssh_word, text, tool};

const READY: Duration = Duration::from_secs(30);
/// What takes longer than any test of a door.
pub const LONG: Duration = Duration::from_secs(3600);

pub struct Doorway {
    pub env: TestEnv,
    pub port: u16,
    process: Child,
}

impl Doorway {
    /// Opens a door that is known by a new Ed25519 key.
    pub fn open() -> Doorway {
        Doorway::known_by(&["-t", "ed25519"], LONG)
    }

    /// Opens a door with a host key made by `ssh-keygen` with these options, and a dead man.
    pub fn known_by(kind: &[&str], timeout: Duration) -> Doorway {
        let env = TestEnv::new();
        keygen(&env.path("host"), kind);
        keygen(&env.path("id"), &["-t", "ed25519"]);
        // What cannot be used does no harm.
        fs::write(env.path("host_none"), "no key at all").unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "doorway::the_door", "--ignored", "--nocapture"])
            .env("DOOR", env.path(""))
            .env("DOOR_TIMEOUT", timeout.as_secs().to_string())
            .stdin(Stdio::null())
            .stdout(fs::File::create(env.path("log")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + READY;
        while !env.path("port").exists() {
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no door: {ended:?}");
            sleep(Duration::from_millis(20));
        }
        let port: u16 = fs::read_to_string(env.path("port")).unwrap().parse().unwrap();
        let doorway = Doorway { env, port, process };
        doorway.knows(&doorway.env.path("host.pub"));
        doorway
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
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Waits for something that the door does in its directory.
    #[track_caller]
    pub fn wait_for(&self, name: &str, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        while !self.env.path(name).exists() {
            assert!(Instant::now() < deadline, "no {name} within {limit:?}");
            sleep(Duration::from_millis(20));
        }
        Instant::now()
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
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

#[test]
#[ignore = "it is the other end of those that open a door, which run it"]
fn the_door() {
    let dir = PathBuf::from(std::env::var("DOOR").expect("the other end sets it"));
    let timeout = std::env::var("DOOR_TIMEOUT").unwrap().parse().unwrap();
    let secret = |name| Secret::new(fs::read(dir.join(name)).unwrap());
    let door = Door {
        host_keys: vec![secret("host_none"), secret("host")],
        authorized: fs::read_to_string(dir.join("id.pub")).unwrap(),
    };
    let visits = Visits::new(Duration::from_secs(timeout));
    let (dead_man, place) = (visits.clone(), dir.clone());
    thread::spawn(move || {
        dead_man.wait();
        fs::write(place.join("rebooted"), "").unwrap();
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(dir.join("port.part"), listener.local_addr().unwrap().port().to_string()).unwrap();
    fs::rename(dir.join("port.part"), dir.join("port")).unwrap();
    let session = move |input, output| obey(&dir, input, output).unwrap();
    panic!("{:#}", server::open(&door, vec![listener], visits, session).unwrap_err());
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
        "hash" => {
            sleep(Duration::from_secs(number));
            writeln!(output, "{}", hash(input))?;
        }
        "give" => {
            io::copy(&mut io::BufReader::with_capacity(1 << 16, noise(number)), &mut output)?;
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
