//! Network namespaces: networks of a test's own, from which no way leads to this machine's.

use std::fs::File;
use std::process::{Command, Output, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::wait;

/// A network namespace, until the value goes.
pub struct Space(String);

impl Space {
    pub fn new(role: &str) -> Space {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let space = Space(format!("via-{}-{}-{role}", id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        checked(Command::new("ip").args(["netns", "add", &space.0]));
        space.ip("link set lo up");
        space
    }

    /// What `ip` calls it.
    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn try_ip(&self, words: &str) -> Output {
        let mut ip = Command::new("ip");
        ip.args(["-netns", &self.0]).args(words.split_whitespace()).output().expect("iproute2 is installed")
    }

    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        let output = self.try_ip(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {words}: {said}");
        String::from_utf8(output.stdout).expect("ip writes UTF-8")
    }

    /// Runs something of ours there; programs that it starts are there too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let there = || {
            setns(space, CloneFlags::CLONE_NEWNET).expect("root may enter namespaces");
            work()
        };
        let joined = thread::scope(|scope| scope.spawn(there).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Waits until an address answers from there.
    #[track_caller]
    pub fn answers(&self, address: &str) {
        wait::until(&format!("{address} answers"), || {
            let family = if address.contains(':') { "-6" } else { "-4" };
            let mut ping = Command::new("ip");
            ping.args(["netns", "exec", &self.0, "busybox", "ping", family, "-c", "1", "-W", "1", address]);
            ping.output().expect("busybox is installed").status.success().then_some(())
        });
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "delete", &self.0]).status().ok();
    }
}

/// Runs a program that has to succeed.
#[track_caller]
pub fn checked(command: &mut Command) {
    let output = command.output().expect("iproute2 is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
