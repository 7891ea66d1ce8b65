//! The way in: root's SSH login to a machine, over a link, with its host key known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::env::ssh_word;
use crate::link::Link;

/// The key that may log in as root to every system of the fixture.
pub fn key() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("build/fixture-cache/id_ed25519")
}

/// The line by which a machine of this name is known.
pub fn known_host(name: &str, host_key: &str) -> String {
    let words: Vec<&str> = host_key.split_whitespace().take(2).collect();
    format!("{name} {}\n", words.join(" "))
}

pub struct Login {
    /// What leads to the machine, to be slowed, cut and counted.
    pub link: Link,
    key: PathBuf,
    known_hosts: PathBuf,
}

impl Login {
    /// A login whose known hosts, in a file in `dir`, are this link and the machine's public host key.
    pub fn new(link: Link, host_key: &str, dir: &Path) -> Login {
        Login::with_key(link, &key(), &[host_key], dir)
    }

    /// Like [`Login::new`], for a machine with several host keys that lets this `key` in.
    pub fn with_key<S: AsRef<str>>(link: Link, key: &Path, host_keys: &[S], dir: &Path) -> Login {
        let known_hosts = dir.join("known-hosts");
        let name = format!("[127.0.0.1]:{}", link.port());
        let lines: String = host_keys.iter().map(|host_key| known_host(&name, host_key.as_ref())).collect();
        fs::write(&known_hosts, lines).expect("the directory is ours");
        Login { link, key: key.to_owned(), known_hosts }
    }

    /// What a deployment calls the machine.
    pub fn address(&self) -> String {
        format!("ssh://root@127.0.0.1:{}", self.link.port())
    }

    /// The file that holds the machine's host key.
    pub fn known_hosts(&self) -> &Path {
        &self.known_hosts
    }

    /// OpenSSH's options that lead to root on the machine, each as `-o` takes it; the host to name is 127.0.0.1.
    pub fn ssh_options(&self) -> Vec<String> {
        vec![
            format!("Port={}", self.link.port()),
            format!("IdentityFile={}", ssh_word(&self.key)),
            format!("UserKnownHostsFile={}", ssh_word(&self.known_hosts)),
            // None there.
            format!("GlobalKnownHostsFile={}", ssh_word(&self.known_hosts.with_extension("global"))),
            "IdentitiesOnly=yes".into(),
            "StrictHostKeyChecking=yes".into(),
            "User=root".into(),
        ]
    }

    /// OpenSSH, about to run a script on the machine.
    pub fn ssh(&self, script: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=300"]);
        for option in self.ssh_options() {
            ssh.args(["-o", &option]);
        }
        ssh.args(["127.0.0.1", script]).stdin(Stdio::null());
        ssh
    }

    /// Can one log in, however long that takes on a busy machine?
    pub fn lets_in(&self) -> bool {
        self.ssh("true").output().expect("there is ssh").status.success()
    }

    /// Can one log in, without waiting long?
    pub fn is_reachable(&self) -> bool {
        // The first of two values counts.
        let mut ssh = Command::new("ssh");
        ssh.args(["-o", "ConnectTimeout=10"]).args(self.ssh("true").get_args());
        ssh.stdin(Stdio::null()).output().expect("there is ssh").status.success()
    }
}
