//! Virtual machines: QEMU without KVM, a serial log to wait on, and an agent that runs scripts.
//!
//! Every wait has an end, which counts what the machine computes, so that a guest that hangs fails one
//! test, and a busy host none. The machine ends with the value, and with this process if it is killed.
//! The demo uses this file too.

#[path = "vm/agent.rs"]
mod agent;
#[path = "patience.rs"]
pub mod patience;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write, stderr};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use self::agent::{Agent, PORT, Reply};
#[allow(unused_imports)] // the bench uses the rest
pub use self::patience::{BACKSTOP, BOOT, LONG, QUICK};
use self::patience::{Patience, computed_by};

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

// No vector instructions but the oldest: emulated, they are slower than what programs do without them. No SVM, for which
// each boot would load KVM.
const CPU: &str = "qemu64,-svm";

const POLL: Duration = Duration::from_millis(50);
// A question is lost if the agent that took it was about to end; asking again costs nothing.
const PING_INTERVAL: Duration = Duration::from_secs(5);
// The name of a socket has at most 107 bytes, and TMPDIR may be any.
const SOCKETS: &str = "/tmp";
const LINES_OF_A_FAILURE: usize = 60;

/// What the machine starts.
pub enum Start {
    Uefi,
    Bios,
    Kernel { kernel: PathBuf, initrd: PathBuf, parameters: String },
}

/// A machine to be; [`Machine::start`] makes it run.
pub struct Machine {
    start: Start,
    memory: u32,
    cores: u32,
    disks: Vec<String>,
    first: usize,
    reboots: bool,
    extra: Vec<String>,
}

impl Machine {
    pub fn new(start: Start) -> Machine {
        // An emulated core costs more where it has to mind others.
        Machine {
            start,
            memory: 1024,
            cores: 1,
            disks: Vec::new(),
            first: 0,
            reboots: false,
            extra: Vec::new(),
        }
    }

    pub fn cores(mut self, cores: u32) -> Machine {
        self.cores = cores;
        self
    }

    /// The memory in MiB.
    pub fn memory(mut self, mib: u32) -> Machine {
        self.memory = mib;
        self
    }

    /// Attaches a raw image as the next of `/dev/vda`, `/dev/vdb`, …
    pub fn disk(self, image: &Path) -> Machine {
        self.drive(image, "")
    }

    /// Like [`Machine::disk`]; QEMU itself refuses every write.
    pub fn read_only_disk(self, image: &Path) -> Machine {
        self.drive(image, ",readonly=on")
    }

    /// Like [`Machine::disk`]; what is written is forgotten.
    pub fn scratch_disk(self, image: &Path) -> Machine {
        self.drive(image, ",snapshot=on")
    }

    /// Boots from the disk with this number, counted from 0, and from the others only if that fails.
    pub fn boot_from(mut self, number: usize) -> Machine {
        self.first = number;
        self
    }

    /// Lets the machine boot again when it reboots, instead of ending.
    pub fn reboots(mut self) -> Machine {
        self.reboots = true;
        self
    }

    /// Gives the machine a network card, and this machine a port of 127.0.0.1 that leads to its port 22.
    pub fn ssh(self, port: u16) -> Machine {
        self.ssh_by(port, "virtio-net-pci")
    }

    /// Like [`Machine::ssh`], with a card of the model that QEMU calls `card`.
    pub fn ssh_by(self, port: u16, card: &str) -> Machine {
        self.card(&format!("user,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"), card)
    }

    /// Gives the machine a network card of a model that QEMU calls `model`, on what QEMU calls `netdev`.
    pub fn card(self, netdev: &str, model: &str) -> Machine {
        self.words(&["-netdev", &format!("{netdev},id=net"), "-device", &format!("{model},netdev=net")])
    }

    /// Adds words of QEMU's own to its command line.
    pub fn words<S: AsRef<str>>(mut self, words: &[S]) -> Machine {
        self.extra.extend(words.iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Puts UEFI below a kernel that is handed to QEMU; what the firmware writes is forgotten.
    pub fn uefi(mut self) -> Machine {
        for (file, options) in [(OVMF_CODE, ",readonly=on"), (OVMF_VARS, ",snapshot=on")] {
            self.extra.extend(["-drive".into(), format!("if=pflash,format=raw,file={file}{options}")]);
        }
        self
    }

    // What the guest has flushed is in this machine's memory, which outlives QEMU, so nothing needs this machine's disk.
    fn drive(mut self, image: &Path, options: &str) -> Machine {
        let number = self.disks.len();
        self.disks.push(format!(
            "if=none,id=disk{number},format=raw,cache=unsafe,file={}{options}",
            option_value(image)
        ));
        self
    }

    /// The command line, for this machine in `dir`.
    fn command(&self, dir: &Path) -> Result<Command> {
        // setpriv makes the machine end with the thread that watches it, whatever ends that.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", CPU]);
        qemu.args(["-smp", &self.cores.to_string(), "-m", &self.memory.to_string()]);
        qemu.args(["-nodefaults", "-display", "none"]);
        if !self.reboots {
            qemu.arg("-no-reboot");
        }
        qemu.args(["-device", "virtio-rng-pci"]);
        qemu.args(["-serial", "chardev:serial", "-chardev"]).arg(format!(
            "socket,id=serial,server=on,wait=off,path={},logfile={}",
            serial_socket(dir).display(),
            serial_log(dir).display()
        ));
        qemu.args(["-device", "virtio-serial-pci", "-chardev"]);
        qemu.arg(format!("socket,id=agent,server=on,wait=off,path={}", agent_socket(dir).display()));
        qemu.args(["-device", &format!("virtserialport,chardev=agent,name={PORT}")]);
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor_socket(dir).display()));
        match &self.start {
            Start::Bios => {}
            Start::Uefi => {
                // The firmware writes its variables: fresh ones each time, so that only the removable path boots.
                let variables = dir.join("variables.fd");
                fs::copy(OVMF_VARS, &variables).with_context(|| format!("copying {OVMF_VARS}"))?;
                qemu.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}"));
                qemu.arg("-drive").arg(format!("if=pflash,format=raw,file={}", variables.display()));
            }
            Start::Kernel { kernel, initrd, parameters } => {
                qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", parameters]);
            }
        }
        for (number, disk) in self.disks.iter().enumerate() {
            // A serial number, as real disks have. A kernel given to QEMU holds the place 0.
            let place = if number == self.first { 1 } else { number + 2 };
            let device = format!("virtio-blk-pci,drive=disk{number},serial=disk-{number},bootindex={place}");
            qemu.args(["-drive", disk, "-device", &device]);
        }
        qemu.args(&self.extra);
        Ok(qemu)
    }

    /// Starts the machine.
    pub fn start(self) -> Vm {
        Vm::start(&self).expect("QEMU starts")
    }
}

/// A path as the value of one of QEMU's options, which end at a comma.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn serial_log(dir: &Path) -> PathBuf {
    dir.join("serial")
}

fn serial_socket(dir: &Path) -> PathBuf {
    dir.join("serial-socket")
}

fn agent_socket(dir: &Path) -> PathBuf {
    dir.join("agent")
}

fn monitor_socket(dir: &Path) -> PathBuf {
    dir.join("monitor")
}

/// A running machine.
pub struct Vm {
    dir: TempDir,
    agent: Option<Agent>,
    qemu: Arc<Qemu>,
    watcher: Option<JoinHandle<()>>,
}

/// The process, as its watcher and those who wait for it see it.
#[derive(Default)]
struct Qemu {
    pid: AtomicU32,
    kill: AtomicBool,
    ended: Mutex<Option<ExitStatus>>,
}

impl Vm {
    fn start(machine: &Machine) -> Result<Vm> {
        let dir = tempfile::Builder::new().prefix("vm-").tempdir_in(SOCKETS);
        let dir = dir.context("making a directory for QEMU")?;
        File::create(serial_log(dir.path()))?;
        let mut command = machine.command(dir.path())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.path().join("qemu"))?);
        let qemu = Arc::new(Qemu::default());
        // A thread of its own starts it and stays, because the death signal goes by threads.
        let watcher = thread::spawn({
            let qemu = qemu.clone();
            move || {
                let status = command.spawn().and_then(|child| watch(child, &qemu));
                *qemu.ended.lock().unwrap() = Some(status.expect("QEMU can be waited for"));
            }
        });
        let mut vm = Vm { dir, agent: None, qemu, watcher: Some(watcher) };
        vm.agent = Some(vm.connect()?);
        Ok(vm)
    }

    /// Connects to where the agent will be, before the machine can ask whether somebody is there.
    fn connect(&self) -> Result<Agent> {
        let patience = self.patience(QUICK);
        loop {
            match Agent::connect(&agent_socket(self.dir.path())) {
                Ok(agent) => return Ok(agent),
                Err(error) if self.has_ended() || patience.at_end().is_some() => {
                    return Err(error.context(self.complaint()).context("connecting to QEMU"));
                }
                Err(_) => sleep(POLL),
            }
        }
    }

    /// Begins a wait that ends when the machine has computed for so long.
    fn patience(&self, limit: Duration) -> Patience<impl Fn() -> Option<Duration> + use<>> {
        let qemu = self.qemu.clone();
        Patience::new(limit, move || computed_by(qemu.pid.load(Ordering::Relaxed)))
    }

    /// What the serial port said so far.
    pub fn serial(&self) -> String {
        let bytes = fs::read(serial_log(self.dir.path())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until the serial port has said `marker`.
    #[track_caller]
    pub fn wait_serial(&self, marker: &str, limit: Duration) {
        self.try_wait_serial(marker, limit).unwrap_or_else(|error| panic!("{error:#}"));
    }

    pub fn try_wait_serial(&self, marker: &str, limit: Duration) -> Result<()> {
        self.try_wait_serial_behind(0, marker, limit).map(drop)
    }

    /// Like [`Vm::try_wait_serial`], behind the first `heard` bytes of what was said; returns where `marker` ends.
    pub fn try_wait_serial_behind(&self, heard: usize, marker: &str, limit: Duration) -> Result<usize> {
        let patience = self.patience(limit);
        let find = || {
            let start = self.serial().get(heard..)?.find(marker)?;
            Some(heard + start + marker.len())
        };
        loop {
            // In this order, for its last words count.
            let ended = self.has_ended();
            if let Some(end) = find() {
                patience.over(&format!("until it said {marker:?}"));
                return Ok(end);
            }
            if ended {
                bail!("the machine ended before it said {marker:?}: {}", self.complaint());
            }
            if let Some(end) = patience.at_end() {
                bail!("the machine did not say {marker:?} {end}");
            }
            sleep(POLL);
        }
    }

    /// Types a line at the serial port.
    #[track_caller]
    pub fn type_serial(&self, line: &str) {
        let enter = || -> Result<()> {
            let mut port = UnixStream::connect(serial_socket(self.dir.path()))?;
            port.set_read_timeout(Some(BACKSTOP))?;
            port.write_all(format!("{line}\n").as_bytes())?;
            // QEMU hangs up once it has read all that. Before, we must not: what is left would be lost.
            port.shutdown(Shutdown::Write)?;
            std::io::copy(&mut port, &mut std::io::sink())?;
            Ok(())
        };
        enter().unwrap_or_else(|error| panic!("typing at the serial port: {error:#}: {}", self.complaint()));
    }

    /// Waits until the machine runs scripts.
    #[track_caller]
    pub fn wait_shell(&mut self, limit: Duration) {
        self.try_wait_shell(limit).unwrap_or_else(|error| panic!("{error:#}: {}", self.complaint()));
    }

    fn try_wait_shell(&mut self, limit: Duration) -> Result<()> {
        let patience = self.patience(limit);
        let first = self.agent().ping()?;
        let mut asked = Instant::now();
        while self.agent().reply(first)?.is_none() {
            if let Some(end) = patience.at_end() {
                bail!("no agent answered {end}");
            }
            if asked.elapsed() > PING_INTERVAL {
                self.agent().ping()?;
                asked = Instant::now();
            }
        }
        patience.over("until its agent answered");
        Ok(())
    }

    fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("a machine that has started has one")
    }

    /// Runs a shell script in the machine and returns its status and what it printed.
    #[track_caller]
    pub fn sh_within(&mut self, limit: Duration, script: &str) -> (i32, String) {
        self.try_sh(script, limit).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a shell script that has to succeed, and returns what it printed.
    #[track_caller]
    pub fn sh(&mut self, script: &str) -> String {
        self.long_sh(QUICK, script)
    }

    /// Like [`Vm::sh`], for what takes its time.
    #[track_caller]
    pub fn long_sh(&mut self, limit: Duration, script: &str) -> String {
        let (status, output) = self.sh_within(limit, script);
        assert_eq!(status, 0, "`{script}` in the machine ended with {status}:\n{output}");
        output
    }

    fn try_sh(&mut self, script: &str, limit: Duration) -> Result<(i32, String)> {
        let patience = self.patience(limit);
        let (status, output) = self.reply_to(script, &patience).with_context(|| {
            format!("running `{script}` in the machine, which had said:\n{}", self.agent().unfinished())
        })?;
        patience.over(&format!("`{}`", script.trim()));
        Ok((status, String::from_utf8_lossy(&output).trim_matches('\n').to_owned()))
    }

    fn reply_to(
        &mut self,
        script: &str,
        patience: &Patience<impl Fn() -> Option<Duration>>,
    ) -> Result<Reply> {
        let number = self.agent().run(script)?;
        loop {
            if let Some(reply) = self.agent().reply(number)? {
                return Ok(reply);
            }
            if let Some(end) = patience.at_end() {
                bail!("no answer {end}");
            }
        }
    }

    /// Stops the machine's time while `look` looks at its disks, which are what a power cut would leave.
    pub fn frozen<T>(&self, look: impl FnOnce() -> T) -> T {
        self.monitor("stop");
        let seen = look();
        self.monitor("cont");
        seen
    }

    fn monitor(&self, command: &str) {
        let say = || -> Result<()> {
            let mut monitor = UnixStream::connect(monitor_socket(self.dir.path()))?;
            monitor.set_read_timeout(Some(BACKSTOP))?;
            let line = format!("{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"{command}\"}}");
            monitor.write_all(line.as_bytes())?;
            let mut heard = String::new();
            let mut buffer = [0; 4096];
            while heard.matches("\"return\"").count() < 2 {
                let count = match monitor.read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    read => read?,
                };
                if count == 0 || heard.contains("\"error\"") {
                    bail!("the monitor said {heard}");
                }
                heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            Ok(())
        };
        say().unwrap_or_else(|error| panic!("telling QEMU to {command}: {error:#}"));
    }

    /// Cuts the power.
    pub fn kill(mut self) {
        self.end();
    }

    /// Powers the machine off from within, without stopping its services, and waits until it is off.
    #[track_caller]
    pub fn power_off(mut self) {
        self.agent()
            .run("sync; echo o >/proc/sysrq-trigger; poweroff -f")
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.wait_off(QUICK);
    }

    /// Waits until the machine is off.
    #[track_caller]
    pub fn wait_off(&self, limit: Duration) {
        let patience = self.patience(limit);
        while !self.has_ended() {
            if let Some(end) = patience.at_end() {
                panic!("the machine did not go off {end}");
            }
            sleep(POLL);
        }
    }

    pub fn has_ended(&self) -> bool {
        self.qemu.ended.lock().unwrap().is_some()
    }

    fn complaint(&self) -> String {
        fs::read_to_string(self.dir.path().join("qemu")).unwrap_or_default().trim().to_owned()
    }

    fn end(&mut self) {
        self.qemu.kill.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.join().ok();
        }
    }
}

/// Waits for the machine's end, and brings it about when told so.
fn watch(mut child: Child, qemu: &Qemu) -> std::io::Result<ExitStatus> {
    qemu.pid.store(child.id(), Ordering::Relaxed);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if qemu.kill.load(Ordering::Relaxed) {
            child.kill()?;
            return child.wait();
        }
        sleep(POLL);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            let serial = self.serial();
            let lines: Vec<&str> = serial.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LINES_OF_A_FAILURE)..];
            // Written, for what is printed the harness keeps to itself until all tests have ended.
            let words =
                format!("---- the machine's last words ----\n{}\n{}", tail.join("\n"), self.complaint());
            writeln!(stderr(), "{words}").ok();
        }
    }
}

/// Returns the command line that runs a disk image under OVMF, for a person to type.
pub fn command_to_play(image: &Path) -> String {
    format!(
        "qemu-system-x86_64 -machine q35 -cpu max -m 1024 -nographic -drive if=pflash,format=raw,readonly=on,file={OVMF_CODE} \\\n    \
         -drive if=pflash,format=raw,snapshot=on,file={OVMF_VARS} -drive 'if=virtio,format=raw,file={}'",
        option_value(image)
    )
}
