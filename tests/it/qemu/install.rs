//! A real Debian becomes a system of the fixture, over SSH and through a kexec of its own kernel.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Stdio};

use crate::debian::{AS_PERSON, BY_KEY, BY_PASSWORD, Debian, Firmware, Hardware, PERSON_PASSWORD, UP};
use crate::doorway::keygen;
use crate::env::{Ran, System, TestEnv, fixture, text, tool};
use crate::login;
use crate::mounted_root::assert_undamaged;
use crate::vm::LONG;

// What the rescue says on the console.
const WAITS: &str = "waiting for the near end";
// Emulated machines take their time.
pub const PATIENCE: [&str; 2] = ["--wait-timeout", "2400"];

/// What a person's end has: a world, the system, and the machine.
pub struct Story {
    pub env: TestEnv,
    pub system: System,
    pub debian: Debian,
}

impl Story {
    pub fn new(variant: &str, debian: Debian) -> Story {
        Story { env: TestEnv::new(), system: fixture(variant), debian }
    }

    pub fn words(&self, host: &str, more: &[&str]) -> Vec<String> {
        let mut words = vec!["install-via-ssh".to_owned()];
        words.extend(self.system.options());
        words.extend(self.reached(host));
        words.extend(more.iter().map(|word| word.to_string()));
        words
    }

    fn reached(&self, host: &str) -> Vec<String> {
        // The second key is that of the new system.
        let (config, key) = (self.debian.config(), login::key());
        ["-F", text(&config), "-i", text(&key), host].map(String::from).into()
    }

    /// The binary, with a place of its own for what it remembers.
    pub fn command(&self, words: Vec<String>) -> Command {
        let mut command = self.env.command(words);
        command.env("XDG_STATE_HOME", self.env.path("state"));
        command
    }

    pub fn run(&self, host: &str, more: &[&str]) -> Ran {
        Ran::of(&mut self.command(self.words(host, more)))
    }

    /// Goes on with what was begun.
    pub fn resume(&self, host: &str, more: &[&str]) -> Ran {
        Ran::of(&mut self.command(self.resume_words(host, more)))
    }

    pub fn resume_words(&self, host: &str, more: &[&str]) -> Vec<String> {
        let from = text(&self.system.root).to_owned();
        let mut words: Vec<String> =
            ["install-via-ssh", "--resume", "--from", &from].map(String::from).into();
        words.extend(self.reached(host));
        words.extend(more.iter().map(|word| word.to_string()));
        words
    }

    /// Refused with these words, and the machine is what it was.
    #[track_caller]
    pub fn refused(&self, host: &str, more: &[&str], code: i32, words: &str) {
        let boot = self.debian.boot_id();
        self.run(host, more).ended_with(code).stderr_has(words).says_a_sentence();
        assert_eq!(self.debian.boot_id(), boot);
    }

    /// The machine runs the system, whole.
    #[track_caller]
    pub fn assert_installed(&mut self) {
        let system = &self.system.toplevel;
        let told = "readlink /run/current-system; readlink -f /nix/var/nix/profiles/system; systemctl is-system-running --wait";
        let vm = self.debian.vm();
        vm.wait_shell(LONG);
        assert_eq!(vm.long_sh(LONG, told), format!("{system}\n{system}\nrunning"));
        vm.sh("! ls -A /nix/store | grep -v '^[0-9a-z]\\{32\\}-'");
    }

    /// What a power cut would leave of it now is whole.
    #[track_caller]
    fn assert_undamaged(&mut self) {
        let (disk, copy) = (self.debian.disk().to_owned(), self.env.path("copy.img"));
        self.debian.vm().sh("sync");
        self.debian
            .vm()
            .frozen(|| tool("cp", &["--sparse=auto", "--reflink=auto", text(&disk), text(&copy)]));
        assert_undamaged(&self.env, &copy);
        fs::remove_file(&copy).expect("it was just made");
    }

    /// The public host key that the machine has now.
    fn host_key(&mut self) -> String {
        let vm = self.debian.vm();
        vm.wait_shell(LONG);
        vm.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    }
}

/// A run that is under way, to be killed.
struct Running {
    child: Child,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Story {
    /// Starts a run whose events can be waited for.
    fn start(&self, host: &str, more: &[&str]) -> Running {
        Running::of(self.command(self.words(host, more)))
    }
}

impl Running {
    fn of(mut command: Command) -> Running {
        command.args(["--progress", "json"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary was built");
        let said = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Running { child, said }
    }

    /// Waits until it says an event with these words, and returns that.
    #[track_caller]
    fn wait_for(&mut self, words: &str) -> String {
        let mut told = Vec::new();
        for line in &mut self.said {
            let line = line.expect("events are text");
            if line.contains(words) {
                return line;
            }
            told.push(line);
        }
        let last = told.len().saturating_sub(10);
        panic!("it ended without {words:?}: {:#?}", &told[last..]);
    }

    fn kill(mut self) {
        self.child.kill().expect("it is a child of ours");
        self.child.wait().expect("it is a child of ours");
    }
}

#[test]
fn a_debian_with_uefi_becomes_the_system_whoever_is_killed_meanwhile() {
    let hardware = Hardware::new(Firmware::Uefi, 512).second_disk(200);
    let mut story = Story::new("uefi", hardware.start());
    let before = story.host_key();

    // Refused, and nothing was changed.
    story.refused(BY_KEY, &[], 3, "has several disks");
    story.refused(BY_KEY, &["--disk", "vdb"], 3, "choose a larger disk");
    story.refused(BY_KEY, &["--disk", "/dev/sdz"], 3, "has no disk /dev/sdz");
    story.refused(BY_KEY, &["--disk", "data=/dev/vda"], 2, "its disk is called main");
    let known = story.debian.login.known_hosts().to_owned();
    let right = fs::read_to_string(&known).unwrap();
    let other = fs::read_to_string(login::key().with_extension("pub")).unwrap();
    let wrong = right.lines().map(|line| login::known_host(line.split(' ').next().unwrap(), &other));
    fs::write(&known, wrong.collect::<String>()).unwrap();
    story.run(BY_KEY, &["--disk", "vda"]).ended_with(1).stderr_has("ssh could not connect").says_a_sentence();
    fs::write(&known, right).unwrap();
    let mut command = story.command(story.words(BY_PASSWORD, &["--disk", "vda"]));
    story.debian.answer(&mut command, "wrong");
    let wrong = command.output().unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");

    let dry =
        story.run(BY_KEY, &["--disk", "main=/dev/vda", "--dry-run", "--hardware-report", "report.json"]).ok();
    dry.stdout_has("Jump into the rescue").stdout_has("Restart the machine");
    let report = fs::read_to_string(story.env.path("report.json")).unwrap();
    assert!(report.contains("\"virtio_net\"") && report.contains("\"undriven\": []"), "{report}");

    // Without a driver for its network card nobody would ever reach it again.
    let (lacking, _mounted) = story.system.without_module(&story.env, "virtio_net");
    let whole = std::mem::replace(&mut story.system, lacking);
    let card = ["--disk", "vda", "--hardware-report", "report.json"];
    story.refused(BY_KEY, &card, 3, "the system has no driver for the network card");
    let report = fs::read_to_string(story.env.path("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let told = [&report["undriven"][0], &report["refused"]].map(|value| value.as_str().unwrap());
    assert!(told.iter().all(|told| told.contains("virtio:d00000001v00001AF4")), "{told:?}");
    story.system = whole;

    // Nobody comes: it goes back to what it was.
    let boot = story.debian.boot_id();
    let mut running = story.start(BY_KEY, &["--disk", "vda", "--rescue-timeout", "30"]);
    story.debian.wait_for(WAITS, LONG);
    running.wait_for("Jump into the rescue");
    running.kill();
    story.debian.wait_for(UP, LONG);
    assert_ne!(story.debian.boot_id(), boot);

    // Killed amid the copy, and gone on with.
    let mut running = story.start(BY_KEY, &["--disk", "vda"]);
    running.wait_for("Copy and check");
    for _ in 0..80 {
        running.wait_for("advance");
    }
    running.kill();
    let resumed = story.resume(BY_KEY, &[&PATIENCE[..], &["--progress", "json"]].concat());
    let resumed = resumed.ok().stdout_has("runs nixos-system");
    let (tools, _) = resumed.stdout.split_once("Copy and check").expect("it goes on there");
    assert!(!tools.contains("advance"), "the tools were sent again: {tools}");
    story.assert_installed();
    story.assert_undamaged();
    assert_eq!(story.host_key(), before);

    // What it is now can be replaced as well. It is known by the host key that it is given then.
    let keys = story.env.path("extra/etc/ssh");
    fs::create_dir_all(&keys).unwrap();
    keygen(&keys.join("ssh_host_ed25519_key"), &["-t", "ed25519"]);
    let given = fs::read_to_string(keys.join("ssh_host_ed25519_key.pub")).unwrap();
    let boot = story.debian.vm().sh("cat /proc/sys/kernel/random/boot_id");
    let more = ["--disk", "vda", "--extra-files", "extra", "--no-reboot"];
    story.run(BY_KEY, &more).ok().stderr_has("paths of tools").stderr_has("restarts it into that");
    let resumed = story.resume(BY_KEY, &PATIENCE).ok().stderr_has("runs nixos-system");
    assert!(!resumed.stderr.contains("paths of tools"), "it was not on the disk: {resumed}");
    assert_eq!(story.host_key(), given.trim());
    assert_ne!(story.debian.vm().sh("cat /proc/sys/kernel/random/boot_id"), boot);
}

#[test]
fn a_debian_with_a_bios_becomes_the_system_after_a_power_cut_and_over_a_link_that_is_lost() {
    let mut story = Story::new("bios", Hardware::new(Firmware::Bios, 256).start());
    let mut running = story.start(BY_KEY, &[]);
    running.wait_for("Copy and check");
    for _ in 0..80 {
        running.wait_for("advance");
    }
    story.debian.power_cut();
    running.kill();
    // Nobody takes it for a system, not even half of one.
    let mut start = vec![0; 1 << 20];
    File::open(story.debian.disk()).and_then(|mut disk| disk.read_exact(&mut start)).unwrap();
    assert!(start.iter().all(|byte| *byte == 0));

    let Story { system, env, .. } = story;
    let debian = Hardware::new(Firmware::Bios, 256).start();
    let mut story = Story { env, system, debian };
    let before = story.host_key();
    let extra = story.env.path("extra");
    fs::create_dir_all(extra.join("var/lib/app")).unwrap();
    fs::write(extra.join("var/lib/app/secret"), "of the app\n").unwrap();
    fs::set_permissions(extra.join("var/lib/app/secret"), fs::Permissions::from_mode(0o640)).unwrap();
    chown(extra.join("var/lib/app/secret"), Some(7), Some(8)).unwrap();
    let more = ["--sudo", "--sudo-password-file", "password", "--extra-files", "extra", "--host-keys", "new"];
    fs::write(story.env.path("password"), format!("{PERSON_PASSWORD}\n")).unwrap();
    // The new system has no such account to be asked by.
    let mut command = story.command(story.words(AS_PERSON, &[&more[..], &["--no-wait"]].concat()));
    story.debian.answer(&mut command, PERSON_PASSWORD);
    let mut running = Running::of(command);
    running.wait_for("Copy and check");
    for _ in 0..40 {
        running.wait_for("advance");
    }
    // Longer than either end believes in a connection on which nothing comes.
    story.debian.login.link.cut();
    running.wait_for("reaching it anew");
    story.debian.login.link.mend();
    let done = running.wait_for("\"done\"");
    assert!(running.child.wait().unwrap().success(), "{done}");
    story.assert_installed();
    story.assert_undamaged();
    let new = story.host_key();
    assert_ne!(new, before);
    assert!(done.contains(&new), "{new} is not in {done}");
    let file = story.debian.vm().sh("cd /var/lib/app; stat -c '%a %u %g' secret; cat secret");
    assert_eq!(file, "640 7 8\nof the app");
}
