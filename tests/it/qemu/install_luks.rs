//! A real Debian becomes a system with an encrypted root, over SSH: the passphrase opens it, and stands nowhere else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use crate::debian::{BY_KEY, Firmware, Hardware};
use crate::deploy_ssh::assert_undamaged;
use crate::env::{Ran, TestEnv, holds, text};
use crate::qemu::clone_luks::{ODD, PROMPT};
use crate::qemu::install::{PATIENCE, Story};
use crate::vm::LONG;
use crate::wait;

/// The passphrase, which nothing else in the world says.
const POISON: &str = "poison 5f2c71d9 on every tongue";
/// What begins the description of a partition that is encrypted.
const HEADER: &str = r#"{"keyslots":{"0":{"type":"luks2""#;
const GLANCE: Duration = Duration::from_millis(200);

/// A run that is under way; all it says is kept in files.
struct Saying {
    line: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Saying {
    fn start(story: &Story, mut command: Command, name: &str) -> Saying {
        let file = |kind: &str| story.env.path(&format!("{name}.{kind}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let line = format!("{command:?}");
        let write = |path| File::create(path).expect("the directory is ours");
        command.stdout(write(&stdout)).stderr(write(&stderr));
        Saying { line, child: command.spawn().expect("the binary was built"), stdout, stderr }
    }

    /// Waits until stdout says some words behind others.
    #[track_caller]
    fn wait_for(&mut self, first: &str, words: &str, times: usize) {
        wait::until(first, || {
            // In this order, for its last words count.
            let ended = self.child.try_wait().expect("it is a child of ours").is_some();
            let said = fs::read_to_string(&self.stdout).expect("events are text");
            if said.split_once(first).is_some_and(|(_, rest)| rest.matches(words).count() >= times) {
                return Some(());
            }
            let words = fs::read_to_string(&self.stderr).unwrap_or_default();
            assert!(!ended, "it ended without {first:?}: {words}");
            None
        });
    }

    fn kill(mut self) {
        self.child.kill().expect("it is a child of ours");
        self.child.wait().expect("it is a child of ours");
    }

    fn end(mut self) -> Ran {
        let status = self.child.wait().expect("it is a child of ours");
        let read = |path| fs::read(path).expect("it was written");
        let (stdout, stderr) = (read(&self.stdout), read(&self.stderr));
        Ran::new(self.line, std::process::Output { status, stdout, stderr })
    }
}

/// Looks at the words and the environment of every process of this machine, for as long as it is there.
struct Watch {
    ended: Arc<AtomicBool>,
    watcher: JoinHandle<BTreeSet<&'static str>>,
}

impl Watch {
    fn for_words(words: &'static [&'static str]) -> Watch {
        let ended = Arc::new(AtomicBool::new(false));
        let watcher = thread::spawn({
            let ended = ended.clone();
            move || {
                let mut seen = BTreeSet::new();
                while !ended.load(Ordering::Relaxed) {
                    for process in fs::read_dir("/proc").expect("it is mounted").flatten() {
                        // Processes go while they are looked at.
                        let read = |name| fs::read(process.path().join(name)).unwrap_or_default();
                        let told = [read("cmdline"), read("environ")].concat();
                        let told = String::from_utf8_lossy(&told).replace('\0', " ");
                        seen.extend(words.iter().filter(|words| told.contains(**words)));
                    }
                    sleep(GLANCE);
                }
                seen
            }
        });
        Watch { ended, watcher }
    }

    /// Returns which of the words some process was seen with.
    fn seen(self) -> BTreeSet<&'static str> {
        self.ended.store(true, Ordering::Relaxed);
        self.watcher.join().expect("it only looks")
    }
}

#[test]
fn a_debian_becomes_an_encrypted_system_whose_passphrase_stands_nowhere() {
    let mut story = Story::new("luks", Hardware::new(Firmware::Uefi, 512).disk(3072).start());
    // Apart from all that a run could write.
    let keys = TestEnv::new();
    let (right, other) = (keys.path("right"), keys.path("other"));
    fs::write(&right, POISON).unwrap();
    fs::write(&other, "another passphrase").unwrap();
    let key = format!("root={}", text(&right));
    let key = ["--disk-encryption-key", &key];

    story.refused(BY_KEY, &["--disk-encryption-key", &format!("nosuch={}", text(&right))], 2, "it is root");
    story.refused(BY_KEY, &[], 3, "name a file that holds it with --disk-encryption-key root=FILE");

    // Killed while the new root is open.
    let watch = Watch::for_words(&[POISON, "--disk-encryption-key root="]);
    let mut command = story.command(story.words(BY_KEY, &key));
    command.args(["--progress", "json"]);
    let mut run = Saying::start(&story, command, "killed");
    run.wait_for("Copy and check", "advance", 80);
    run.kill();
    let frozen = |story: &mut Story| {
        let disk = story.debian.disk().to_owned();
        story.debian.vm().frozen(|| (holds(&disk, HEADER), holds(&disk, POISON)))
    };
    assert_eq!(frozen(&mut story), (true, false), "the disk while the rescue runs");
    assert!(holds(&story.env.path("state"), "luks"), "what it needs to go on is kept");
    assert!(!holds(&story.env.path(""), POISON), "the near end wrote it down while it ran");

    // What goes on needs the key that it was begun with.
    story.resume(BY_KEY, &[]).refused().stderr_has("--disk-encryption-key root=FILE").says_a_sentence();
    let wrong = format!("root={}", text(&other));
    let wrong = story.resume(BY_KEY, &["--disk-encryption-key", &wrong]);
    wrong.refused().stderr_has("another passphrase").says_a_sentence();
    let command = story.command(story.resume_words(BY_KEY, &[&key[..], &PATIENCE].concat()));
    let run = Saying::start(&story, command, "resumed");
    story.debian.wait_for(PROMPT, LONG);
    story.debian.vm().type_serial(POISON);
    let ran = run.end().ok().stderr_has("Copy and check").stderr_has("runs nixos-system");
    assert!(!ran.stderr.contains("Encrypt partition"), "it began anew: {ran}");
    let seen = watch.seen();
    assert_eq!(seen, BTreeSet::from(["--disk-encryption-key root="]), "seen among the processes");

    story.assert_installed();
    let vm = story.debian.vm();
    // There is no device mapper here, so its own Nix looks at its store.
    let (status, words) = vm.sh_within(LONG, "nix-store --verify --check-contents");
    assert_undamaged(status, &words);
    assert_eq!(vm.sh("findmnt --noheadings --output SOURCE --mountpoint /"), "/dev/mapper/root");
    assert_eq!(vm.sh("blkid --match-tag TYPE --output value /dev/vda2"), "crypto_LUKS");
    let dump = vm.sh("cryptsetup luksDump /dev/vda2");
    assert!(dump.contains("argon2id") && dump.contains("aes-xts"), "{dump}");
    // As dear to guess as this machine can afford: cryptsetup never takes more than half of all memory.
    let cost = dump.lines().find_map(|line| line.trim().strip_prefix("Memory:")).expect("argon2id has one");
    let cost: u64 = cost.trim().parse().unwrap();
    assert!((64 << 10..=256 << 10).contains(&cost), "{cost} KiB");
    assert!(!story.debian.vm().serial().contains(POISON), "the console shows it");
    assert!(!holds(&story.env.path(""), POISON), "the near end wrote it down at its end");
    assert_eq!(frozen(&mut story), (true, false), "the disk of the new system");
    assert!(holds(&story.system.root.join("nix/store"), ODD));
    assert!(!holds(story.debian.disk(), ODD), "what is on the root can be read");
}
