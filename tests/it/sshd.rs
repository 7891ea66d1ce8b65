//! A machine to log in to: a real sshd on 127.0.0.1, with accounts, mounts and processes of its own.
//!
//! Nothing of it is seen from outside: its accounts exist in files mounted over those in `/etc`, in
//! a mount namespace that goes with it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nixos_install_via::ssh::{Address, Settings};

use crate::env::{TestEnv, ssh_word, text, tool};
use crate::wait;

/// What the accounts with a password have as such.
pub const PASSWORD: &str = "correct horse";
const HASH: &str =
    "$6$installvia$WzVXE/7amEx/PcD3nwXixGIaM65SnMqbGNmxpWzPxPuMshz.cuZQlbmxwn7ugrLr37twSIA5aXtgIQUFZW.GD0";

/// An account: its name, its user id and its login shell.
type Account = (&'static str, u32, &'static str);

// Those that end in -root are root by another name, with another shell.
const ACCOUNTS: [Account; 12] = [
    ("sh-root", 0, "/bin/sh"),
    ("bash-root", 0, "/bin/bash"),
    ("fish-root", 0, "/usr/bin/fish"),
    ("tcsh-root", 0, "/usr/bin/tcsh"),
    ("zsh-root", 0, "/usr/bin/zsh"),
    ("busybox-root", 0, "/run/busybox/ash"),
    ("nologin-root", 0, "/usr/sbin/nologin"),
    ("endless-root", 0, "/run/endless"),
    ("free", 31001, "/bin/bash"),
    ("asked", 31002, "/usr/bin/fish"),
    ("nobody-special", 31003, "/bin/sh"),
    ("keyless-root", 0, "/bin/sh"),
];
// As Debian has it, and newer versions of sudo without being told.
const SUDOERS: &str =
    "Defaults use_pty\nroot ALL=(ALL:ALL) ALL\nfree ALL=(ALL:ALL) NOPASSWD: ALL\nasked ALL=(ALL:ALL) ALL\n";

// What root may put the program into, in the order in which it is tried.
const PLACES: [&str; 5] = ["/run", "/root", "/var/tmp", "/tmp", "/dev/shm"];
// Where the machine has its own files, which come from a directory of ours.
const FILES: &str = "/run/machine";

pub struct Sshd {
    pub env: TestEnv,
    pub port: u16,
    ip: &'static str,
    namespace: Child,
}

impl Sshd {
    /// Starts a machine; `more` are shell commands that change it before it can be reached.
    pub fn start(more: &str) -> Sshd {
        Sshd::start_at("127.0.0.1", more)
    }

    /// Like [`Sshd::start`], at another address of the network namespace that this thread is in.
    pub fn start_at(ip: &'static str, more: &str) -> Sshd {
        Sshd::start_in(TestEnv::new(), ip, more)
    }

    /// Like [`Sshd::start_at`], with what is already in a directory, in which `more` is run. What is mounted there
    /// hides that directory's path if it is below, say, `/home`, so only names in it can be relied on.
    pub fn start_in(env: TestEnv, ip: &'static str, more: &str) -> Sshd {
        let free = TcpListener::bind((ip, 0)).expect("there are free ports");
        let port = free.local_addr().unwrap().port();
        drop(free);
        for key in ["host", "id"] {
            let file = env.path(key);
            tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", text(&file)]);
        }
        let host_key = fs::read_to_string(env.path("host.pub")).unwrap();
        fs::write(env.path("known_hosts"), format!("[{ip}]:{port} {host_key}")).unwrap();
        write_accounts(&env);
        fs::write(env.path("sshd_config"), config(ip, port)).unwrap();
        let log = fs::File::create(env.path("log")).unwrap();
        let namespace = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["/bin/sh", "-euc", &setup(more)])
            .current_dir(env.path(""))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("unshare is there");
        let mut sshd = Sshd { env, port, ip, namespace };
        sshd.wait();
        sshd
    }

    fn wait(&mut self) {
        wait::until("sshd listens", || {
            let ended = self.namespace.try_wait().unwrap();
            assert!(ended.is_none(), "no sshd: {}", self.log());
            TcpStream::connect((self.ip, self.port)).ok()
        });
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.env.path("log")).unwrap_or_default()
    }

    pub fn address(&self, account: &str) -> Address {
        format!("{account}@{}", self.ip).parse().unwrap()
    }

    /// What a person would write to get there by key, with no questions asked.
    pub fn settings(&self) -> Settings {
        let known = format!("UserKnownHostsFile={}", ssh_word(&self.env.path("known_hosts")));
        let options = [&known, "GlobalKnownHostsFile=/etc/ssh/none", "BatchMode=yes", "IdentitiesOnly=yes"];
        Settings {
            port: Some(self.port),
            identity: vec![self.env.path("id")],
            options: options.map(|option| option.parse().unwrap()).into(),
            ..Settings::default()
        }
    }

    /// A path of the machine, seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        let id = self.namespace.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        Path::new(&format!("/proc/{}/root{path}", children.trim())).to_owned()
    }

    /// What is left of programs that were sent.
    pub fn leftovers(&self) -> Vec<String> {
        let homes = fs::read_dir(self.path("/home")).unwrap().map(|home| home.unwrap().path());
        let places = PLACES.iter().map(|place| self.path(place)).chain(homes);
        let names = places.flat_map(|place| fs::read_dir(place).unwrap());
        let names = names.map(|entry| entry.unwrap().path().display().to_string());
        names.filter(|name| name.contains("nixos-install-via")).collect()
    }

    /// What was sent goes, if not at once.
    #[track_caller]
    pub fn assert_tidy(&self) {
        wait::until("nothing that was sent is left", || self.leftovers().is_empty().then_some(()));
    }

    /// Ends all that runs there, at once.
    pub fn die(&mut self) {
        self.namespace.kill().unwrap();
        self.namespace.wait().unwrap();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}

fn write_accounts(env: &TestEnv) {
    let mut passwd = fs::read_to_string("/etc/passwd").unwrap();
    let mut shadow = fs::read_to_string("/etc/shadow").unwrap();
    for (name, id, shell) in ACCOUNTS {
        passwd += &format!("{name}:x:{id}:{id}::/home/{name}:{shell}\n");
        shadow += &format!("{name}:{HASH}:20000:0:99999:7:::\n");
    }
    for (name, contents, mode) in
        [("passwd", passwd.as_str(), "644"), ("shadow", &shadow, "600"), ("sudoers", SUDOERS, "440")]
    {
        let file = env.path(name);
        fs::write(&file, contents).unwrap();
        tool("chmod", &[mode, text(&file)]);
    }
}

fn config(ip: &str, port: u16) -> String {
    format!(
        "ListenAddress {ip}\nPort {port}\nHostKey {FILES}/host\nPidFile none\nUsePAM no\nPermitRootLogin yes\n\
         AuthorizedKeysFile /run/keys\nStrictModes no\nPasswordAuthentication yes\nPrintLastLog no\n\
         MaxStartups 100\nPerSourceMaxStartups none\n\
         Match User keyless-root\n  PubkeyAuthentication no\n"
    )
}

fn setup(more: &str) -> String {
    let homes: String = ACCOUNTS
        .iter()
        .map(|(name, id, _)| format!("mkdir -m 700 /home/{name}; chown {id}:{id} /home/{name}\n"))
        .collect();
    // What its own files are called is hidden from the first mount on, but they can still be had by their names in here.
    format!(
        "umask 022
        for place in /home {}; do mount -t tmpfs -o mode=755 tmpfs $place; done
        chmod 1777 /tmp /var/tmp /dev/shm
        mkdir -p /run/sshd /run/busybox
        cp /bin/busybox /run/busybox/ash
        printf '#!/bin/sh\nexec yes Welcome\n' >/run/endless
        chmod 755 /run/endless
        mkdir {FILES}
        cp -p host sshd_config passwd shadow sudoers {FILES}
        cat id.pub >/run/keys
        for file in passwd shadow sudoers; do mount --bind {FILES}/$file /etc/$file; done
        {homes}
        {more}
        cd /
        exec /usr/sbin/sshd -D -e -f {FILES}/sshd_config",
        PLACES.join(" ")
    )
}
