//! The rescue without a machine: as the first process of a PID namespace, which ends when it restarts the machine.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, sleep};
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

const LIMIT: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(50);
// What ends the first process of a PID namespace in which somebody restarts the machine.
const RESTARTED: i32 = 1;

struct Machine {
    _env: TestEnv,
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
        Machine { _env: env, login, child }
    }

    /// Says something to the rescue, as soon as it answers, and returns what it answers.
    #[track_caller]
    fn ask(&self, asks: &[Ask]) -> Vec<Answer> {
        let mut said = Vec::new();
        for ask in asks {
            Writer(&mut said).message(ask).unwrap();
        }
        let words = self._env.path("words");
        fs::write(&words, said).unwrap();
        let output = self.until(|| {
            let mut ssh = self.login.ssh("serve");
            let output: Output = ssh.stdin(fs::File::open(&words).unwrap()).output().expect("there is ssh");
            (!output.stdout.is_empty()).then_some(output)
        });
        let mut reader = Reader(&output.stdout[..]);
        std::iter::from_fn(|| reader.message().unwrap()).collect()
    }

    #[track_caller]
    fn until<T>(&self, mut what: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = what() {
                return found;
            }
            assert!(begun.elapsed() < LIMIT, "it does not come to that");
            sleep(GLANCE);
        }
    }

    /// Kills the door, as the kernel does when memory is short.
    #[track_caller]
    fn kill_door(&self) {
        // `unshare` has one child, the first process of the namespace, and that has one.
        let child_of = |parent: &str| {
            let output = Command::new("pgrep").args(["-P", parent]).output().expect("procps is installed");
            Some(String::from_utf8(output.stdout).unwrap().trim().to_owned()).filter(|pid| !pid.is_empty())
        };
        let door = self.until(|| child_of(&child_of(&self.child.id().to_string())?));
        let name = fs::read(format!("/proc/{door}/cmdline")).unwrap();
        assert!(name.starts_with(door::NAME.as_bytes()), "{name:?}");
        assert!(Command::new("kill").args(["-KILL", &door]).status().unwrap().success());
    }

    /// Waits until the machine restarts, and returns when that was.
    #[track_caller]
    fn restarts(&mut self) -> Instant {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < LIMIT, "it does not restart");
            sleep(GLANCE);
        };
        assert_eq!(status.signal(), Some(RESTARTED), "{status}");
        Instant::now()
    }
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
    let begun = Instant::now();
    let mut alone = Machine::start(2);
    let mut visited = Machine::start(3);
    assert!(matches!(visited.ask(&[hello()])[..], [Answer::Hello { .. }]));
    assert!(alone.restarts() - begun >= Duration::from_secs(2));
    let left = Instant::now();
    visited.restarts();
    assert!(left.elapsed() < LIMIT);
}

#[test]
fn a_door_that_fails_leads_back_while_there_is_a_way_and_is_opened_again_when_there_is_none() {
    let mut whole = Machine::start(600);
    whole.ask(&[hello()]);
    whole.kill_door();
    // It stands still first, for those who read its console.
    let restarts = thread::spawn(move || whole.restarts());

    // The disk is touched, if by a plan that has no steps, and so nobody is sent back.
    let mut touched = Machine::start(5);
    let install = || install(vec![]);
    let answers = touched.ask(&[hello(), install()]);
    assert!(matches!(answers[..], [Answer::Hello { .. }, Answer::Installed]), "{answers:?}");
    for _ in 0..2 {
        touched.kill_door();
        let answers = touched.ask(&[hello(), install()]);
        assert!(matches!(answers[..], [Answer::Hello { .. }, Answer::Installed]), "{answers:?}");
    }
    sleep(Duration::from_secs(6));
    assert!(touched.child.try_wait().unwrap().is_none(), "it went back to what is no more");
    restarts.join().unwrap();
}

#[test]
fn it_restarts_for_nobody_into_a_disk_that_is_half_written() {
    let mut machine = Machine::start(600);
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
    let asked = Instant::now();
    let answers = machine.ask(&[hello(), install(vec![]), Ask::Reboot]);
    assert!(matches!(answers[..], [_, Answer::Installed, Answer::Restarting]), "{answers:?}");
    // What it says last has time to leave the machine.
    assert!(machine.restarts() - asked >= Duration::from_secs(2));
}
