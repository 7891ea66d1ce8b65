//! A machine that runs a rescue system of its provider's, from memory, becomes a system of the fixture.
//!
//! That rescue system is busybox and dropbear, and nothing else: no bash, no sudo, no systemd, no keys of OpenSSH.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::env::{Ran, System, TestEnv, digest, fixture, text, tool};
use crate::initrd::Initrd;
use crate::link::{Link, free_port};
use crate::login::{self, Login};
use crate::mounted_root::assert_is_the_fixture;
use crate::qemu::clone;
use crate::vm::{BOOT, LONG, Machine, Start, Vm};

const MODULES: [&str; 8] =
    ["virtio_pci", "virtio-rng", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_ascii", "efivarfs"];
const HOST_KEY: &str = "etc/dropbear/dropbear_ed25519_host_key";
// QEMU's network has this address for its machine.
const SCRIPT: &str = "
    mkdir /dev/pts /mnt; mount -t devpts devpts /dev/pts
    ifconfig lo 127.0.0.1; ifconfig eth0 10.0.2.15 netmask 255.255.255.0; route add default gw 10.0.2.2
    exec dropbear -F -E -s\n";
// As QEMU calls the second disk.
const SERIAL: &str = "disk-1";
// Another ESP than the system's own layout has, and a partition more.
const LAYOUT: &str = r#"{ "disks": { "main": { "partitions": [
    { "name": "start", "type": "esp", "size": "96M",
      "content": { "type": "filesystem", "format": "vfat", "label": "ESP", "mountpoint": "/boot" } },
    { "name": "data", "type": "linux", "size": "32M",
      "content": { "type": "filesystem", "format": "ext4", "label": "data" } },
    { "name": "system", "type": "root", "size": "100%",
      "content": { "type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/" } }
] } } }"#;

/// The machine, what leads to it, and what it should become.
struct Story {
    env: TestEnv,
    system: System,
    disks: [PathBuf; 2],
    port: u16,
    login: Login,
    vm: Option<Vm>,
}

impl Story {
    /// Boots the rescue system, and waits until it can be logged in to.
    fn start(variant: &str) -> Story {
        let (env, system, port) = (TestEnv::new(), fixture(variant), free_port());
        let disks = [env.image("first.img", 512), env.image("second.img", 1024)];
        let key = env.path("host-key");
        let made = tool("dropbearkey", &["-t", "ed25519", "-f", text(&key)]);
        let public = made.lines().find(|line| line.starts_with("ssh-")).expect("it says the public key");
        let login = Login::new(Link::to_port(port), public, &env.path(""));
        let authorized = fs::read(login::key().with_extension("pub")).unwrap();
        let initrd = Initrd::new(&system, env.path(""))
            .modules(&MODULES)
            .program("dropbear", Path::new("/usr/sbin/dropbear"))
            .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
            .file("etc/group", 0o644, "root:x:0:\n")
            .file("etc/os-release", 0o644, "NAME=Rescue\nPRETTY_NAME=\"Rescue 7\"\n")
            .file("root/.ssh/authorized_keys", 0o600, authorized)
            .file(HOST_KEY, 0o600, fs::read(&key).unwrap());
        let machine = initrd.machine(SCRIPT).uefi().memory(512).disk(&disks[0]).disk(&disks[1]);
        let vm = machine.ssh(port).start();
        vm.wait_serial("Not backgrounding", BOOT);
        Story { env, system, disks, port, login, vm: Some(vm) }
    }

    /// The binary, with a place of its own for what it remembers.
    fn command(&self, named: &[String], more: &[&str]) -> Command {
        let mut command = self.env.command(["install-via-ssh"]);
        command.env("XDG_STATE_HOME", self.env.path("state")).args(named).args(more);
        for option in self.login.ssh_options() {
            command.args(["--ssh-option", &option]);
        }
        command.arg(self.login.address());
        command
    }

    fn run(&self, more: &[&str]) -> Ran {
        Ran::of(&mut self.command(&self.system.options(), more))
    }

    /// What goes on with what was begun.
    fn resume(&self, more: &[&str]) -> Command {
        let named = ["--resume", "--from", text(&self.system.root)].map(String::from);
        self.command(&named, more)
    }

    /// Runs a script in the rescue system.
    #[track_caller]
    fn told(&self, script: &str) -> String {
        let ran = Ran::of(&mut self.login.ssh(script)).ok();
        ran.stdout.trim_end().to_owned()
    }

    /// What tells one boot from another, and what is mounted.
    #[track_caller]
    fn state(&self) -> String {
        self.told("cat /proc/sys/kernel/random/boot_id /proc/mounts; ls / /run /root /tmp")
    }
}

#[test]
fn a_rescue_system_of_busybox_and_dropbear_becomes_the_system() {
    let mut story = Story::start("uefi");
    let before = story.state();
    let on_second = ["--disk", SERIAL];

    // It is looked at, and left as it was.
    story.run(&["--dry-run"]).refused().stderr_has("has several disks").says_a_sentence();
    let dry = story.run(&[&on_second[..], &["--dry-run", "--hardware-report", "report.json"]].concat()).ok();
    assert!(!dry.stdout.contains("Jump"), "{dry}");
    dry.stdout_has("runs Rescue 7, from memory").stdout_has("Give the machine a new SSH host key");
    let report = fs::read_to_string(story.env.path("report.json")).unwrap();
    assert!(report.contains("\"runsFrom\": \"memory\"") && report.contains("\"virtio_blk\""), "{report}");

    // Refused.
    let ran = story.run(&[&on_second[..], &["--kexec-only"]].concat()).misused();
    ran.stderr_has("runs from memory, so it needs no rescue").says_a_sentence();
    for (more, words) in [
        (&["--disk", "disk-7"][..], "has no disk disk-7; it has /dev/vda (512 MiB), /dev/vdb (1 GiB)"),
        (&["--disk", SERIAL, "--host-keys", "keep"], "has no host keys in /etc/ssh"),
    ] {
        story.run(more).refused().stderr_has(words).says_a_sentence();
    }
    assert_eq!(story.state(), before);
    story.told("mke2fs /dev/vdb && mount -t ext2 /dev/vdb /mnt");
    story.run(&on_second).refused().stderr_has("/dev/vdb of ").stderr_has("/mnt").says_a_sentence();
    story.told("touch /mnt/file && umount /mnt");
    assert_eq!(story.state(), before);

    // Installed, and it still runs what it ran.
    let first = digest(&story.disks[0]);
    fs::write(story.env.path("layout.json"), LAYOUT).unwrap();
    let more = [&on_second[..], &["--layout", "layout.json", "--phases", "disk,install"]].concat();
    let ran = story.run(&more).ok().stderr_has("on its disk");
    let known: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("[127.0.0.1]:")).collect();
    let [known] = known[..] else { panic!("its new host key is not told: {ran}") };
    assert_eq!(story.told("cat /proc/sys/kernel/random/boot_id"), before.lines().next().unwrap());
    assert!(!story.told("cat /proc/mounts").contains("/dev/vd"));

    // Gone on with. QEMU would start the rescue system again, so the disk goes into another machine.
    let mut command = story.resume(&["--wait-timeout", "2400"]);
    let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let vm = story.vm.take().expect("it is on");
    vm.wait_off(LONG);
    drop(vm);
    let mut vm = Machine::new(Start::Uefi).disk(&story.disks[1]).ssh(story.port).start();
    let ran = Ran::new(format!("{command:?}"), running.wait_with_output().unwrap()).ok();
    let ran = ran.stderr_has("runs nixos-system").stderr_has(known);
    assert!(!story.env.path("state/nixos-install-via").read_dir().unwrap().any(|_| true), "{ran}");
    vm.wait_shell(BOOT);
    clone::assert_a_whole_system(&mut vm, "uefi", "");
    clone::assert_an_esp_of(&mut vm, &story.system.toplevel);
    let key = vm.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    assert!(known.ends_with(&key), "{key} is not {known}");
    let names = vm.sh("lsblk --noheadings --list --output PARTLABEL,LABEL,FSTYPE,SIZE /dev/vda");
    for line in ["start ESP vfat 96M", "data data ext4 32M"] {
        let is_it = |told: &str| told.split_whitespace().collect::<Vec<_>>().join(" ") == line;
        assert!(names.lines().any(is_it), "no {line:?} in {names}");
    }
    assert_eq!(digest(&story.disks[0]), first, "the other disk changed");
    vm.power_off();
    assert_is_the_fixture(&story.env, &story.disks[1], "uefi");
}
