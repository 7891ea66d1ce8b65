//! The rescue without a machine: as the first process of a PID namespace, which ends when it restarts the machine.
//!
//! It is the real program and goes by the real clock. What is told is what comes before what: a rescue that stays has
//! outlived another one that began later, with the same time to wait, and has restarted.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nixos_install_via::commands::rescue::{CONFIGURATION, Configuration, door};
use nixos_install_via::plan::network::Carried;
use nixos_install_via::plan::{DiskStep, Plan, Purpose, Step, Summary};
use nixos_install_via::size::Bytes;
use nixos_install_via::store::path::StorePath;
use nixos_install_via::system::rescue::HOST_KEYS;
use nixos_install_via::wire::VERSION;
use nixos_install_via::wire::frame::{Reader, Writer};
use nixos_install_via::wire::message::{Answer, Ask, Installation};

use crate::doorway::keygen;
use crate::env::{BINARY, TestEnv, sh_word, text};
use crate::link::{Link, free_port};
use crate::login::Login;
use crate::wait;

// Nobody needs as long to come in, on a machine as slow as may be.
const LONG: u64 = 3600;
// What ends the first process of a PID namespace in which somebody restarts the machine.
const RESTARTED: i32 = 1;

struct Machine {
    env: TestEnv,
    login: Login,
    child: Child,
}

impl Machine {
    /// A rescue whose root is this machine's own with a layer above, and in which all mounts are its own.
    fn start(timeout: u64) -> Machine {
        let (env, port) = (TestEnv::new(), free_port());
        keygen(&env.path("ssh_host_ed25519_key"), &["-t", "ed25519"]);
        keygen(&env.path("id"), &["-t", "ed25519"]);
        let read = |name| fs::read_to_string(env.path(name)).unwrap();
        let configuration =
            Configuration { authorized: read("id.pub"), network: Carried::default(), port, timeout };
        fs::write(env.path(CONFIGURATION), serde_json::to_vec(&configuration).unwrap()).unwrap();
        let script = format!(
            "set -e; umask 022; cd {}; mkdir layers; mount -t tmpfs layers layers
            cd layers; mkdir upper work root; mount -t overlay root -o lowerdir=/,upperdir=upper,workdir=work root
            mkdir root/{HOST_KEYS}; cp ../{CONFIGURATION} root/; cp ../ssh_host_ed25519_key root/{HOST_KEYS}
            exec chroot root {}",
            sh_word(text(&env.path(""))),
            sh_word(BINARY)
        );
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .expect("util-linux is installed");
        let host_key = read("ssh_host_ed25519_key.pub");
        let login = Login::with_key(Link::to_port(port), &env.path("id"), &[host_key], &env.path(""));
        Machine { env, login, child }
    }

    /// Says something to the rescue, as soon as it answers, and returns what it answers.
    #[track_caller]
    fn ask(&mut self, asks: &[Ask]) -> Vec<Answer> {
        self.ask_in_time(asks).expect("it has restarted")
    }

    /// Says something to the rescue, unless it restarts before it answers.
    #[track_caller]
    fn ask_in_time(&mut self, asks: &[Ask]) -> Option<Vec<Answer>> {
        let words = self.env.path("words");
        fs::write(&words, written(asks)).unwrap();
        let output = wait::until("the rescue answers", || {
            let mut ssh = self.login.ssh("serve");
            let output: Output = ssh.stdin(fs::File::open(&words).unwrap()).output().expect("there is ssh");
            (!output.stdout.is_empty() || self.ended().is_some()).then_some(output)
        });
        let mut reader = Reader(&output.stdout[..]);
        let answers: Vec<Answer> = std::iter::from_fn(|| reader.message().unwrap()).collect();
        (!answers.is_empty()).then_some(answers)
    }

    /// Comes in and stays, unless the rescue restarts before.
    #[track_caller]
    fn visit_in_time(&mut self) -> Option<Child> {
        wait::until("the rescue lets somebody in", || {
            let mut ssh = self.login.ssh("serve");
            ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut ssh = ssh.spawn().expect("there is ssh");
            // It does not read this if it is not let in.
            let _ = ssh.stdin.as_mut().unwrap().write_all(&written(&[hello()]));
            match Reader(ssh.stdout.as_mut().unwrap()).message::<Answer>() {
                Ok(Some(Answer::Hello { .. })) => Some(Some(ssh)),
                _ => {
                    ssh.wait().unwrap();
                    self.ended().map(|_| None)
                }
            }
        })
    }

    /// Kills the door, as the kernel does when memory is short.
    #[track_caller]
    fn kill_door(&self) {
        // `unshare` has one child, the first process of the namespace, and that has one.
        let child_of = |parent: &str| {
            let output = Command::new("pgrep").args(["-P", parent]).output().expect("procps is installed");
            Some(String::from_utf8(output.stdout).unwrap().trim().to_owned()).filter(|pid| !pid.is_empty())
        };
        let door = wait::until("there is a door", || child_of(&child_of(&self.child.id().to_string())?));
        let name = fs::read(format!("/proc/{door}/cmdline")).unwrap();
        assert!(name.starts_with(door::NAME.as_bytes()), "{name:?}");
        assert!(Command::new("kill").args(["-KILL", &door]).status().unwrap().success());
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the machine restarts.
    #[track_caller]
    fn restarts(&mut self) {
        let status = wait::until("the rescue restarts", || self.ended());
        assert_eq!(status.signal(), Some(RESTARTED), "{status}");
    }
}

/// Returns a rescue that waits for a short time, how many seconds that is, and what somebody got from it who came in
/// time: on a machine that is slow, the time is longer.
#[track_caller]
fn reached_in_time<T>(mut reach: impl FnMut(&mut Machine) -> Option<T>) -> (Machine, u64, T) {
    let mut timeout = 3;
    loop {
        let mut machine = Machine::start(timeout);
        if let Some(got) = reach(&mut machine) {
            return (machine, timeout, got);
        }
        machine.restarts();
        timeout *= 2;
        assert!(timeout < LONG, "nobody is let in");
    }
}

fn written(asks: &[Ask]) -> Vec<u8> {
    let mut said = Vec::new();
    for ask in asks {
        Writer(&mut said).message(ask).unwrap();
    }
    said
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for a system by a plan with these steps.
fn install(steps: Vec<Step>) -> Ask {
    let plan = Plan {
        purpose: Purpose::Install,
        system: StorePath::from_base_name("0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-nixos-system-x").unwrap(),
        from: "/".into(),
        target: "web1:/dev/vda".into(),
        closure: Summary { paths: 0, bytes: Bytes(0), space: Bytes(0) },
        before: vec![],
        after: vec![],
        notes: vec![],
        steps,
    };
    let plan = serde_json::to_string(&plan).unwrap();
    Ask::Install(Installation { plan, paths: vec![], keys: vec![], host_key: None })
}

fn hello() -> Ask {
    Ask::Hello { version: VERSION }
}

#[test]
fn where_nobody_comes_it_restarts_and_whoever_comes_is_waited_for() {
    let (mut visited, timeout, mut visitor) = reached_in_time(Machine::visit_in_time);
    let begun = Instant::now();
    let mut alone = Machine::start(timeout);
    alone.restarts();
    // Here the real clock counts: it has waited for no less than it was told to.
    assert!(begun.elapsed() >= Duration::from_secs(timeout));
    assert!(visited.ended().is_none(), "it restarts while somebody is there");
    drop(visitor.stdin.take());
    assert!(visitor.wait().unwrap().success());
    visited.restarts();
}

#[test]
fn a_door_that_fails_leads_back_while_there_is_a_way_and_is_opened_again_when_there_is_none() {
    let mut whole = Machine::start(LONG);
    whole.ask(&[hello()]);
    whole.kill_door();
    // It stands still first, for those who read its console.
    let restarts = thread::spawn(move || whole.restarts());

    // The disk is touched, if by a plan that has no steps, and so nobody is sent back.
    let asks = [hello(), install(vec![])];
    let (mut touched, timeout, answers) =
        reached_in_time(|machine| machine.ask_in_time(&asks).filter(|answers| answers.len() == asks.len()));
    assert!(matches!(answers[..], [Answer::Hello { .. }, Answer::Installed]), "{answers:?}");
    for _ in 0..2 {
        touched.kill_door();
        let answers = touched.ask(&asks);
        assert!(matches!(answers[..], [Answer::Hello { .. }, Answer::Installed]), "{answers:?}");
    }
    Machine::start(timeout).restarts();
    assert!(touched.ended().is_none(), "it went back to what is no more");
    restarts.join().unwrap();
}

#[test]
fn it_restarts_for_nobody_into_a_disk_that_is_half_written() {
    let mut machine = Machine::start(LONG);
    // The passphrase is missing, but as far as anybody knows the disk was written.
    let luks = serde_json::json!({ "name": "root", "content": { "type": "filesystem", "format": "ext4" } });
    let fails = DiskStep::Encrypt {
        partition: 1,
        name: "root".into(),
        luks: serde_json::from_value(luks).unwrap(),
        tools: Default::default(),
    };
    let answers = machine.ask(&[hello(), install(vec![Step::Disk(fails)])]);
    assert!(matches!(answers[..], [_, .., Answer::Failed { refused: false, .. }]), "{answers:?}");
    for _ in 0..2 {
        let answers = machine.ask(&[hello(), Ask::Reboot]);
        assert!(matches!(answers[..], [_, Answer::Failed { refused: true, .. }]), "{answers:?}");
        // Another process knows as much.
        machine.kill_door();
    }
    // What it says last has left the machine before that restarts.
    let answers = machine.ask(&[hello(), install(vec![]), Ask::Reboot]);
    assert!(matches!(answers[..], [_, Answer::Installed, Answer::Restarting]), "{answers:?}");
    machine.restarts();
}
