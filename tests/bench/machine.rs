//! The machine at the other end: a real sshd on 127.0.0.1 whose store is the target's, and what it costs.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::link::free_port;
use crate::world::sh;

const READY: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(20);
// The kernel counts processor time in these.
const TICKS: f64 = 100.0;

/// Keys and host keys of a directory, which machines one after the other have.
pub struct Keys {
    dir: PathBuf,
}

impl Keys {
    pub fn new(dir: &Path) -> Keys {
        let dir = dir.join("keys");
        let script = r#"mkdir -p "$1"; cd "$1"; rm -f host host.pub id id.pub
            for key in host id; do ssh-keygen -q -t ed25519 -N '' -C '' -f $key; done"#;
        sh(script, &[&dir]);
        Keys { dir }
    }

    pub fn identity(&self) -> PathBuf {
        self.dir.join("id")
    }

    /// Returns a file that knows the machine behind a port.
    pub fn known(&self, port: u16) -> PathBuf {
        let key = fs::read_to_string(self.dir.join("host.pub")).expect("ssh-keygen has made it");
        let file = self.dir.join("known_hosts");
        fs::write(&file, format!("[127.0.0.1]:{port} {key}")).expect("the directory is ours");
        file
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

pub struct Machine {
    pub port: u16,
    sshd: Child,
    largest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl Machine {
    /// Starts a machine that has the tool which is in `target`, if it is there, and nothing else in its store.
    pub fn start(keys: &Keys, target: &Path) -> Machine {
        let port = free_port();
        let dir = keys.dir.display();
        let config = keys.dir.join("sshd_config");
        let text = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host\nPidFile none\nUsePAM no\nPermitRootLogin yes\n\
             AuthorizedKeysFile {dir}/id.pub\nStrictModes no\nPrintLastLog no\n\
             SetEnv \"NIX_CONFIG=build-users-group =\" NIX_REMOTE=\n"
        );
        fs::write(&config, text).expect("the directory is ours");
        // Nothing of this is seen from outside, and it goes with the machine.
        let script = r#"mount -t tmpfs -o mode=755 tmpfs /run; mkdir /run/sshd
            mount -t tmpfs -o mode=755 tmpfs /nix; mkdir /nix/store
            for tool in "$2"/nix/store/*-nixos-install-via-*; do [ ! -e "$tool" ] || ln -s "$tool" /nix/store/; done
            exec /usr/sbin/sshd -D -e -f "$1""#;
        let sshd = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "/bin/sh", "-euc", script, "sh"])
            .args([&config, target])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(keys.dir.join("log")).expect("the directory is ours"))
            .spawn()
            .expect("unshare is there");
        let (largest, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let watching = thread::spawn({
            let (id, largest, over) = (sshd.id(), largest.clone(), over.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    largest.fetch_max(largest_below(id), Ordering::Relaxed);
                    sleep(GLANCE);
                }
            }
        });
        let machine = Machine { port, sshd, largest, over, watching: Some(watching) };
        machine.wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        machine.wait_until(|| children(machine.sshd.id()).is_empty());
        machine
    }

    /// Returns the processor seconds and the MiB of the largest process of all that has run here, once
    /// all has ended.
    pub fn costs(&self) -> (f64, f64) {
        self.wait_until(|| children(self.sshd.id()).is_empty());
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.sshd.id())).expect("it runs");
        let numbers = stat.rsplit(')').next().expect("the name stands in brackets");
        let mut of_children =
            numbers.split_whitespace().skip(13).map(|word| word.parse::<f64>().expect("a number"));
        let ticks = of_children.next().expect("user time") + of_children.next().expect("system time");
        (ticks / TICKS, self.largest.load(Ordering::Relaxed) as f64 / 1024.0)
    }

    fn wait_until(&self, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + READY;
        while !condition() {
            assert!(Instant::now() < deadline, "sshd does not do what it should; its log is in keys/log");
            sleep(GLANCE);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.watching.take().map(JoinHandle::join);
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Returns the most memory that one process below `process` has had, in KiB; sshd's own do not count.
fn largest_below(process: u32) -> u64 {
    let of = |child: u32| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let value =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("");
        let peak = value("VmHWM:").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let own = if value("Name:") == "sshd" { 0 } else { peak };
        own.max(largest_below(child))
    };
    children(process).into_iter().map(of).max().unwrap_or(0)
}

/// Bytes that have gone over the loopback interface, with all headers.
pub fn bytes_on_loopback() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("there is lo");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}
