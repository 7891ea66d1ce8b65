//! Machines to deploy to: a system of the fixture in namespaces, which boots in a second.
//!
//! Its systemd is process 1, its network is a cable to the test, its Nix daemon and its SSH daemon are real, and
//! what it boots is what its boot loader's menu says. It has no kernel and no disk of its own: for those there is [`crate::disk_machine`].

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use tempfile::TempDir;

use crate::env::{System, fixture, tool};
use crate::link::Link;
use crate::login::Login;
use crate::vm::BACKSTOP;
use crate::vm::patience::Patience;

const SCRIPT: &str = include_str!("machine.sh");
const INIT: &str = include_str!("machine-init.sh");
const ADDRESS: &str = "10.231.0.2";
const SSH: u16 = 22;
// What a login would set.
const CLEAN: [&str; 4] = ["-i", "HOME=/root", "PATH=/run/current-system/sw/bin", "LC_ALL=C"];

/// What a machine computes at most for anything that has to happen.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// A machine that is on or off; what it wrote is kept while the value lives.
pub struct Machine {
    dir: TempDir,
    store: PathBuf,
    on: Option<On>,
}

struct On {
    /// Its processes are in a cgroup that this process has made, in a mount namespace of its own.
    outside: u32,
    kill: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
    login: Login,
}

/// The system with this name in the family of systems to deploy: see `variants.nix`.
pub fn deployment(name: &str) -> System {
    let first = fixture("deploy");
    let toplevel = fs::read_to_string(family().join("systems").join(name));
    let toplevel = toplevel.unwrap_or_else(|_| panic!("variants.nix has no system {name}"));
    System { toplevel: toplevel.trim().to_owned(), ..first }
}

/// The closure of that system, sorted. Real Nix, asked for it, would write into the root that all machines share.
pub fn closure(name: &str) -> Vec<String> {
    let paths = fs::read_to_string(family().join("closures").join(name));
    paths.expect("each system has one").lines().map(String::from).collect()
}

fn family() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("build/fixture/deploy")
}

impl Machine {
    /// A machine with the first system of the family and nothing else in its store, off.
    pub fn new() -> Machine {
        let system = deployment("a");
        // Beside the build, because an overlay does not lie on every file system, nor on another overlay.
        let dir = tempfile::Builder::new().prefix("machine-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.expect("the build directory can be written");
        for (name, text) in [("system", system.toplevel.as_str()), ("run.sh", SCRIPT), ("init.sh", INIT)] {
            fs::write(dir.path().join(name), text).expect("the directory is ours");
        }
        let host_key = dir.path().join("host-key");
        tool(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-f", host_key.to_str().expect("test paths are plain")],
        );
        symlink(family().join("machine"), dir.path().join("database")).expect("the directory is ours");
        symlink(family().join("closures/a"), dir.path().join("closure")).expect("the directory is ours");
        let machine = Machine { dir, store: system.root.join("nix/store"), on: None };
        let output = machine.script("make").output().expect("there is a shell");
        assert!(output.status.success(), "machine.sh: {}", String::from_utf8_lossy(&output.stderr));
        machine
    }

    /// A machine that has booted.
    pub fn booted() -> Machine {
        let mut machine = Machine::new();
        machine.start();
        machine
    }

    /// Boots what the boot loader's menu names, and waits until the system is up.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.on.is_none(), "the machine is on");
        fs::remove_file(self.pid_file()).ok();
        let mut script = self.script("run");
        let console = File::options().create(true).append(true).open(self.console_file());
        let console = console.expect("the directory is ours");
        script.stdout(console.try_clone().expect("files can be shared")).stderr(console);
        let kill = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        // A thread of its own starts it and stays, because the death signal goes by threads.
        let watcher = thread::spawn({
            let (kill, pid_file) = (kill.clone(), self.pid_file());
            move || {
                let child = script.spawn().expect("there is setpriv");
                sender.send(child.id()).expect("the machine waits for it");
                watch(child, &kill, &pid_file);
            }
        });
        // Its network namespace is what is outside of the machine.
        let outside = receiver.recv().expect("it starts");
        let link = Link::into_namespace(outside, ADDRESS, SSH);
        let host_key = fs::read_to_string(self.dir.path().join("host-key.pub")).expect("ssh-keygen made it");
        self.on = Some(On { outside, kill, watcher, login: Login::new(link, &host_key, self.dir.path()) });
        self.wait_up();
    }

    /// Waits until systemd has started everything and the machine answers on its console.
    #[track_caller]
    pub fn wait_up(&self) {
        let patience = self.patience();
        loop {
            let said = self.try_run("systemctl is-system-running");
            let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            if ["running", "degraded"].contains(&said.as_str()) {
                return;
            }
            assert!(self.is_on(), "the machine ended before it was up:\n{}", self.console());
            assert_eq!(patience.at_end(), None, "the machine is not up:\n{}", self.console());
            sleep(POLL);
        }
    }

    /// Runs a script inside, as if typed on its console: this needs neither its network nor its SSH daemon.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        assert!(output.status.success(), "`{script}` in the machine ended with {}:\n{text}", output.status);
        text
    }

    /// Like [`Machine::run`], for what may fail.
    pub fn try_run(&self, script: &str) -> Output {
        // Before its first process has begun, whoever enters the new namespace would be its process 1.
        let begun = self.dir.path().join("begun").exists();
        let Some(pid) = fs::read_to_string(self.pid_file()).ok().filter(|_| begun) else {
            return Output { status: ExitStatusExt::from_raw(256), stdout: Vec::new(), stderr: Vec::new() };
        };
        let pid = pid.trim();
        // A question that is asked while the machine goes down may never be answered.
        let mut enter = Command::new("timeout");
        enter.args([
            "--signal=KILL",
            &BACKSTOP.as_secs().to_string(),
            "nsenter",
            "--target",
            pid,
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
        ]);
        enter.arg(format!("--pid=/proc/{pid}/ns/pid_for_children"));
        enter.arg("/run/current-system/sw/bin/env").args(CLEAN).args(["bash", "-c", script]);
        enter.stdin(Stdio::null()).output().expect("there is nsenter")
    }

    /// The way in over SSH.
    #[track_caller]
    pub fn login(&self) -> &Login {
        &self.on.as_ref().expect("the machine is on").login
    }

    /// Has it neither been powered off nor ended otherwise?
    pub fn is_on(&self) -> bool {
        self.on.as_ref().is_some_and(|on| !on.watcher.is_finished())
    }

    /// Begins a wait that ends when the machine has computed for long.
    fn patience(&self) -> Patience<impl Fn() -> Option<Duration> + use<>> {
        let outside = self.on.as_ref().map_or(0, |on| on.outside);
        let cgroup = self.dir.path().join(format!("cgroups/machine-{outside}/cpu.stat"));
        let file = PathBuf::from(format!("/proc/{outside}/root{}", cgroup.display()));
        Patience::new(LIMIT, move || computed_in(&fs::read_to_string(&file).ok()?))
    }

    /// Reboots it from within, and waits until it is up again with another boot id.
    ///
    /// Meanwhile nobody enters it to ask: what comes from outside is no child of its process 1, which would
    /// wait in vain to hear of its end.
    #[track_caller]
    pub fn reboot(&self) {
        const ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let process = || fs::read_to_string(self.pid_file()).expect("it was started");
        let (before, process_before) = (self.run(ID), process());
        self.try_run("systemctl reboot");
        let patience = self.patience();
        while process() == process_before {
            assert!(self.is_on(), "the machine ended:\n{}", self.console());
            assert_eq!(patience.at_end(), None, "no reboot:\n{}", self.console());
            sleep(POLL);
        }
        self.wait_up();
        assert_ne!(self.run(ID), before, "the boot id is as it was");
    }

    /// Powers it off from within, and waits until it is off.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.try_run("systemctl poweroff");
        let patience = self.patience();
        while self.is_on() {
            assert_eq!(patience.at_end(), None, "the machine is still on:\n{}", self.console());
            sleep(POLL);
        }
        self.end();
    }

    /// Ends all its processes at once. What it wrote is there when it starts again, even if it was never synced.
    pub fn kill(&mut self) {
        self.end();
    }

    /// What it said on its console.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.console_file()).unwrap_or_default()).into_owned()
    }

    /// `machine.sh`, with a mount and a network namespace of its own, ending with the thread that starts it.
    fn script(&self, action: &str) -> Command {
        let mut script = Command::new("setpriv");
        script.args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "sh"]);
        script.arg(self.dir.path().join("run.sh")).arg(action).arg(self.dir.path()).arg(&self.store);
        script.stdin(Stdio::null());
        script
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.path().join("pid")
    }

    fn console_file(&self) -> PathBuf {
        self.dir.path().join("console")
    }

    fn end(&mut self) {
        if let Some(on) = self.on.take() {
            on.kill.store(true, Ordering::Relaxed);
            on.watcher.join().ok();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let journal = self.try_run("journalctl --no-pager --lines 40").stdout;
            eprintln!(
                "---- the machine's last words ----\n{}\n{}",
                self.console(),
                String::from_utf8_lossy(&journal)
            );
        }
        self.end();
    }
}

/// Reads the processor time of a cgroup, with all that are below it and all processes that have ended.
fn computed_in(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(line.parse().ok()?))
}

#[test]
fn a_machine_s_processor_time_is_known() {
    assert_eq!(computed_in("usage_usec 2500000\nuser_usec 1\n"), Some(Duration::from_millis(2500)));
    assert_eq!(computed_in(""), None);
    let machine = Machine::booted();
    let patience = machine.patience();
    assert_eq!(patience.at_end(), None);
    // Its boot counts, and what it does.
    assert!(patience.computed().expect("it is on") > Duration::ZERO);
    let before = patience.computed();
    machine.run("systemd-run --quiet --wait bash -c 'for _ in $(seq 100000); do :; done'");
    assert!(patience.computed() > before);
}

/// Waits for the machine's end, and brings it about when told so.
fn watch(mut script: Child, kill: &AtomicBool, pid_file: &Path) {
    let mut killed = String::new();
    while script.try_wait().expect("it can be waited for").is_none() {
        // With the process that waits for process 1 all others of its namespace end, and then the script.
        if let (true, Ok(pid)) = (kill.load(Ordering::Relaxed), fs::read_to_string(pid_file))
            && pid.ends_with('\n')
            && pid != killed
        {
            Command::new("kill").args(["-KILL", pid.trim()]).stderr(Stdio::null()).status().ok();
            killed = pid;
        }
        sleep(POLL);
    }
}
