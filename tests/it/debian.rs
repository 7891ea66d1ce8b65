//! The Debian that is replaced in stories: a real one, which `make test` builds, in a machine of its own.
//!
//! Its root can be logged in to with a key and with a password, its account `person` with a password that
//! sudo asks for too. It reboots within the same QEMU, whatever is on its disk by then.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::env::{TestEnv, text, tool};
use crate::link::{Link, free_port};
use crate::login::{Login, known_host};
use crate::vm::{BOOT, Machine, Start, Vm};

// As tests/debian/build.sh sets them.
pub const ROOT_PASSWORD: &str = "correct horse";
pub const PERSON_PASSWORD: &str = "battery staple";

/// What the serial port says once one can log in.
pub const UP: &str = "this Debian can be logged in to";

/// The hosts of [`Debian::config`]: root by its key, root by its password, and the account that is not root.
pub const BY_KEY: &str = "debian";
pub const BY_PASSWORD: &str = "debian-by-password";
pub const AS_PERSON: &str = "debian-as-person";

// The name that host keys go by, as someone has it whose machines change their addresses.
pub const ALIAS: &str = "debian.test";

#[derive(Clone, Copy, Debug)]
pub enum Firmware {
    Uefi,
    Bios,
}

/// A machine to be; [`Hardware::start`] makes it run.
pub struct Hardware {
    firmware: Firmware,
    memory: u32,
    disk: u64,
    second_disk: Option<u64>,
    card: &'static str,
    wire: Option<String>,
    words: Vec<String>,
}

impl Hardware {
    pub fn new(firmware: Firmware, memory: u32) -> Hardware {
        let (card, wire, words) = ("virtio-net-pci", None, Vec::new());
        // Room for the largest system of the fixture, with its boot partition.
        Hardware { firmware, memory, disk: 4096, second_disk: None, card, wire, words }
    }

    /// The size of `/dev/vda` in MiB; Debian fills the first 1026 of it.
    pub fn disk(mut self, mib: u64) -> Hardware {
        self.disk = mib;
        self
    }

    /// An empty `/dev/vdb` of so many MiB, from which the firmware boots first if there is something to boot.
    pub fn second_disk(mut self, mib: u64) -> Hardware {
        self.second_disk = Some(mib);
        self
    }

    /// The network card's model, as QEMU calls it; Debian also has the driver of `vmxnet3`.
    pub fn card(mut self, model: &'static str) -> Hardware {
        self.card = model;
        self
    }

    /// A wire for the card, as QEMU calls a `netdev`: then nothing else leads to the machine, [`Debian::login`] and
    /// all that is like it neither.
    pub fn wire(mut self, netdev: String) -> Hardware {
        self.wire = Some(netdev);
        self
    }

    /// More words for QEMU's command line.
    pub fn words(mut self, words: &[&str]) -> Hardware {
        self.words.extend(words.iter().map(|word| word.to_string()));
        self
    }

    /// Boots a fresh copy of Debian, and waits until it can be logged in to.
    #[track_caller]
    pub fn start(self) -> Debian {
        let env = TestEnv::new();
        let (disk, port) = (env.path("debian.img"), free_port());
        copy_image(self.firmware, &disk, self.disk);
        let second_disk = self.second_disk.map(|mib| env.image("second.img", mib));
        let host_keys = host_keys();
        let login = Login::with_key(Link::to_port(port), &key(), &host_keys, &env.path(""));
        let aliases: String = host_keys.iter().map(|host_key| known_host(ALIAS, host_key)).collect();
        let known = fs::read_to_string(login.known_hosts()).expect("it was just written") + &aliases;
        fs::write(login.known_hosts(), known).expect("it is ours");
        write_config(&env.path("config"), &login);
        let mut debian = Debian { hardware: self, disk, second_disk, port, login, vm: None, heard: 0, env };
        debian.power_on();
        debian.wait_for(UP, BOOT);
        debian
    }
}

/// A machine that was started as Debian, and what leads to it.
pub struct Debian {
    env: TestEnv,
    hardware: Hardware,
    disk: PathBuf,
    second_disk: Option<PathBuf>,
    port: u16,
    /// Root's login by the key, over a link that can be slowed and cut; all ways in go over this link.
    pub login: Login,
    vm: Option<Vm>,
    heard: usize,
}

impl Debian {
    /// Boots a fresh copy in a plain machine with so many MiB of memory, and waits until it can be logged in to.
    #[track_caller]
    pub fn start(firmware: Firmware, memory: u32) -> Debian {
        Hardware::new(firmware, memory).start()
    }

    /// The machine while it is on: its serial port, its agent, and its time.
    pub fn vm(&mut self) -> &mut Vm {
        self.vm.as_mut().expect("the machine is on")
    }

    /// Waits until the serial port says `marker`, after all that was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, marker: &str, limit: Duration) {
        let vm = self.vm.as_ref().expect("the machine is on");
        let end = vm.try_wait_serial_behind(self.heard, marker, limit);
        self.heard = end.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Cuts the power; what was not flushed is lost.
    pub fn power_cut(&mut self) {
        self.vm.take().expect("the machine is on").kill();
    }

    /// Boots whatever is on the disks, with firmware that remembers nothing.
    pub fn power_on(&mut self) {
        let start = match self.hardware.firmware {
            Firmware::Uefi => Start::Uefi,
            Firmware::Bios => Start::Bios,
        };
        let mut machine = Machine::new(start).memory(self.hardware.memory).reboots().disk(&self.disk);
        if let Some(second) = &self.second_disk {
            machine = machine.disk(second).boot_from(1);
        }
        let Hardware { card, wire, words, .. } = &self.hardware;
        let machine = match wire {
            Some(netdev) => machine.card(netdev, card),
            None => machine.ssh_by(self.port, card),
        };
        let machine = machine.words(words);
        self.vm = Some(machine.start());
        self.heard = 0;
    }

    /// The image that is `/dev/vda`.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The image that is `/dev/vdb`.
    pub fn second_disk(&self) -> &Path {
        self.second_disk.as_deref().expect("a second disk was asked for")
    }

    /// The port of 127.0.0.1 that leads to the machine's port 22, past the link.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An OpenSSH configuration with the hosts [`BY_KEY`], [`BY_PASSWORD`] and [`AS_PERSON`].
    pub fn config(&self) -> PathBuf {
        self.env.path("config")
    }

    /// OpenSSH, about to run a script as one of the configuration's hosts.
    pub fn ssh(&self, host: &str, script: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(self.config()).args([host, script]);
        ssh
    }

    /// Makes OpenSSH, or what starts it, answer every question with this password.
    pub fn answer(&self, command: &mut Command, password: &str) {
        let program = self.env.path("askpass");
        // Written once, for a program that runs cannot be written.
        if !program.exists() {
            fs::write(&program, "#!/bin/sh\necho \"$ANSWER_OF_THE_TEST\"\n").expect("the directory is ours");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("it is ours");
        }
        command.env("SSH_ASKPASS", program).env("SSH_ASKPASS_REQUIRE", "force");
        command.env("ANSWER_OF_THE_TEST", password);
    }

    /// Runs a script as root.
    pub fn run(&self, script: &str) -> Output {
        self.login.ssh(script).output().expect("there is ssh")
    }

    /// Runs a script as root that has to succeed, and returns what it printed.
    #[track_caller]
    pub fn told(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "`{script}`: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// What tells one boot from another.
    #[track_caller]
    pub fn boot_id(&self) -> String {
        self.told("cat /proc/sys/kernel/random/boot_id")
    }
}

fn build(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("build/debian").join(name)
}

/// The key that may log in as root.
pub fn key() -> PathBuf {
    build("key")
}

/// The public host keys of every such machine.
pub fn host_keys() -> Vec<String> {
    let read = |kind| fs::read_to_string(build(&format!("ssh_host_{kind}_key.pub")));
    ["ed25519", "ecdsa", "rsa"].map(|kind| read(kind).expect("run `make test`, which builds Debian")).into()
}

fn copy_image(firmware: Firmware, to: &Path, mib: u64) {
    let from = build(match firmware {
        Firmware::Uefi => "uefi.img",
        Firmware::Bios => "bios.img",
    });
    // Its holes stay holes.
    tool("cp", &["--sparse=auto", "--reflink=auto", text(&from), text(to)]);
    let image = File::options().write(true).open(to).expect("it was just copied");
    assert!(image.metadata().expect("it is open").len() <= mib << 20, "Debian needs a larger disk");
    image.set_len(mib << 20).expect("images can be sparse");
}

fn write_config(file: &Path, login: &Login) {
    let known_hosts = login.known_hosts().display();
    // A key that is not there leaves room for one that is named on the command line.
    let missing = file.with_extension("no-key");
    let host = |name: &str, user: &str, key: &Path| {
        format!("Host {name}\n    User {user}\n    IdentityFile \"{}\"\n", key.display())
    };
    let lines = [
        host(BY_KEY, "root", &key()),
        host(BY_PASSWORD, "root", &missing),
        host(AS_PERSON, "person", &missing),
        format!("Host *\n    HostName 127.0.0.1\n    Port {}\n    HostKeyAlias {ALIAS}\n", login.link.port()),
        format!(
            "    UserKnownHostsFile \"{known_hosts}\"\n    GlobalKnownHostsFile \"{known_hosts}.global\"\n"
        ),
        "    StrictHostKeyChecking yes\n    IdentitiesOnly yes\n".into(),
    ];
    fs::write(file, lines.concat()).expect("the directory is ours");
}
