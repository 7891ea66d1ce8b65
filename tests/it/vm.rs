//! Virtual machines: QEMU without KVM, a serial log to wait on, and a shell on `/dev/hvc0`.
//!
//! Every wait has a deadline and every machine a longest life, so that a guest that hangs fails one
//! test and stops no other. The machine ends with the value, and with this process if it is killed.
//! The demo uses this file too.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write, stderr};
use std::net::Shutdown;
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

// Emulated machines boot in 15 to 30 seconds, and in twice that beside another one.
pub const BOOT: Duration = Duration::from_secs(240);
pub const QUICK: Duration = Duration::from_secs(60);
pub const LONG: Duration = Duration::from_secs(600);
const LONGEST_LIFE: Duration = Duration::from_secs(1500);

// No vector instructions but the oldest: emulated, they are slower than what programs do without them.
const CPU: &str = "qemu64";

const GLANCE: Duration = Duration::from_millis(50);
const LINES_OF_A_FAILURE: usize = 60;

// What an emulated machine does keeps about one core busy. With more machines than cores, stories take as long as one
// after the other, but miss their deadlines.
static STORIES: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The leave of one story to have machines.
struct Turn;

impl Turn {
    fn wait() -> Turn {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let mut stories = STORIES.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *stories >= cores {
            stories = STORIES.1.wait(stories).unwrap_or_else(PoisonError::into_inner);
        }
        *stories += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *STORIES.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        STORIES.1.notify_one();
    }
}

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
            image.display()
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
        qemu.args(["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=shell", "-chardev"]);
        qemu.arg(format!("socket,id=shell,server=on,wait=off,path={}", shell_socket(dir).display()));
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

    /// Starts the machine, once few enough stories have one.
    pub fn start(self) -> Vm {
        Vm::start(&self, Rc::new(Turn::wait())).expect("QEMU starts")
    }

    /// Starts the machine beside another one of the same story.
    pub fn start_beside(self, other: &Vm) -> Vm {
        Vm::start(&self, other.turn.clone()).expect("QEMU starts")
    }
}

/// A number that marks what is said to a machine, for what was said before may still come.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn serial_log(dir: &Path) -> PathBuf {
    dir.join("serial")
}

fn serial_socket(dir: &Path) -> PathBuf {
    dir.join("serial-socket")
}

fn shell_socket(dir: &Path) -> PathBuf {
    dir.join("shell")
}

fn monitor_socket(dir: &Path) -> PathBuf {
    dir.join("monitor")
}

/// A running machine.
pub struct Vm {
    dir: TempDir,
    shell: Option<UnixStream>,
    kill: Arc<AtomicBool>,
    ended: Arc<Mutex<Option<ExitStatus>>>,
    watcher: Option<JoinHandle<()>>,
    turn: Rc<Turn>,
}

impl Vm {
    fn start(machine: &Machine, turn: Rc<Turn>) -> Result<Vm> {
        let dir = tempfile::Builder::new().prefix("vm-").tempdir().context("making a directory for QEMU")?;
        File::create(serial_log(dir.path()))?;
        let mut command = machine.command(dir.path())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.path().join("qemu"))?);
        let kill = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(Mutex::new(None));
        // A thread of its own starts it and stays, because the death signal goes by threads.
        let watcher = thread::spawn({
            let (kill, ended) = (kill.clone(), ended.clone());
            move || {
                let status = command.spawn().and_then(|child| watch(child, &kill));
                *ended.lock().unwrap() = Some(status.expect("QEMU can be waited for"));
            }
        });
        Ok(Vm { dir, shell: None, kill, ended, watcher: Some(watcher), turn })
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
        let deadline = Instant::now() + limit;
        let find = || {
            let start = self.serial().get(heard..)?.find(marker)?;
            Some(heard + start + marker.len())
        };
        loop {
            // In this order, for its last words count.
            let ended = self.has_ended();
            if let Some(end) = find() {
                return Ok(end);
            }
            if ended {
                bail!("the machine ended before it said {marker:?}: {}", self.complaint());
            }
            if Instant::now() > deadline {
                bail!("the machine did not say {marker:?} in {} s", limit.as_secs());
            }
            sleep(GLANCE);
        }
    }

    /// Types a line at the serial port.
    #[track_caller]
    pub fn type_serial(&self, line: &str) {
        let enter = || -> Result<()> {
            let mut port = UnixStream::connect(serial_socket(self.dir.path()))?;
            port.set_read_timeout(Some(QUICK))?;
            port.write_all(format!("{line}\n").as_bytes())?;
            // QEMU hangs up once it has read all that. Before, we must not: what is left would be lost.
            port.shutdown(Shutdown::Write)?;
            std::io::copy(&mut port, &mut std::io::sink())?;
            Ok(())
        };
        enter().unwrap_or_else(|error| panic!("typing at the serial port: {error:#}: {}", self.complaint()));
    }

    /// Waits for the shell on `/dev/hvc0`.
    #[track_caller]
    pub fn wait_shell(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        // What is written before the shell listens is lost, any part of a line, so it is asked again and again. A terminal
        // that nobody reads holds 4 KiB and is slow to recover from more, hence the few words, and they leave the shell
        // nothing to wait for however they are cut, as half of a quotation would.
        let greeting = format!("up-{}-", next_number());
        let question = format!("echo {greeting}$$\n");
        let answered = |heard: &[u8]| {
            let heard = String::from_utf8_lossy(heard);
            heard.split(&greeting).skip(1).any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        let mut heard = Vec::new();
        loop {
            let patience = Instant::now() + Duration::from_secs(2);
            if self.send(question.as_bytes()).is_err() {
                sleep(GLANCE);
            } else {
                while let Ok(more) = self.receive(patience) {
                    heard.extend(more);
                    if answered(&heard) {
                        return;
                    }
                }
            }
            assert!(!self.has_ended(), "the machine ended before its shell came: {}", self.complaint());
            assert!(Instant::now() < deadline, "no shell on hvc0 within {} s", limit.as_secs());
        }
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

    /// Frames the script by markers that occur nowhere else, not even in an echo of the script.
    fn try_sh(&mut self, script: &str, limit: Duration) -> Result<(i32, String)> {
        let number = next_number();
        let (begin, end) = (format!("begin-{number}-of-script\n"), format!("\nend-{number}-of-script "));
        let framed = format!(
            "echo begin-'{number}'-of-script; ( {script}\n) </dev/null 2>&1; status=$?; echo; echo end-'{number}'-of-script $status.\n"
        );
        self.send(framed.as_bytes())?;
        let deadline = Instant::now() + limit;
        let mut heard = Vec::new();
        loop {
            let more = self.receive(deadline).with_context(|| {
                format!(
                    "running `{script}` in the machine, which had said:\n{}",
                    String::from_utf8_lossy(&heard)
                )
            })?;
            heard.extend(more.into_iter().filter(|&byte| byte != b'\r'));
            let text = String::from_utf8_lossy(&heard);
            let Some((_, rest)) = text.split_once(&begin) else { continue };
            let rest = format!("\n{rest}");
            let Some((output, status)) = rest.split_once(&end) else { continue };
            let Some((status, _)) = status.split_once('.') else { continue };
            let status = status.parse().with_context(|| format!("reading the status {status:?}"))?;
            return Ok((status, output.trim_matches('\n').to_owned()));
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.shell.is_none() {
            let deadline = Instant::now() + QUICK;
            let stream = loop {
                match UnixStream::connect(shell_socket(self.dir.path())) {
                    Ok(stream) => break stream,
                    Err(_) if Instant::now() < deadline && !self.has_ended() => sleep(GLANCE),
                    Err(error) => bail!("connecting to the machine's shell: {error}: {}", self.complaint()),
                }
            };
            stream.set_read_timeout(Some(GLANCE))?;
            stream.set_write_timeout(Some(QUICK))?;
            self.shell = Some(stream);
        }
        let shell = self.shell.as_mut().expect("it was just connected");
        // The guest's line discipline drops what it cannot hold, so a long script goes in pieces.
        for piece in bytes.chunks(512) {
            shell.write_all(piece).context("writing to the machine's shell")?;
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>> {
        let mut buffer = [0; 4096];
        let shell = self.shell.as_mut().expect("a script was sent");
        loop {
            match shell.read(&mut buffer) {
                Ok(0) => bail!("the machine ended"),
                Ok(count) => return Ok(buffer[..count].to_vec()),
                // A read with a time limit is interrupted when this process is stopped and goes on.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    if Instant::now() > deadline {
                        bail!("no answer in time");
                    }
                }
                Err(error) => return Err(error).context("reading from the machine's shell"),
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
            monitor.set_read_timeout(Some(QUICK))?;
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
        self.send(b"sync; echo o >/proc/sysrq-trigger; poweroff -f\n")
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.wait_off(QUICK);
    }

    /// Waits until the machine is off.
    #[track_caller]
    pub fn wait_off(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.has_ended() {
            assert!(Instant::now() < deadline, "the machine is still on after {} s", limit.as_secs());
            sleep(GLANCE);
        }
    }

    pub fn has_ended(&self) -> bool {
        self.ended.lock().unwrap().is_some()
    }

    fn complaint(&self) -> String {
        fs::read_to_string(self.dir.path().join("qemu")).unwrap_or_default().trim().to_owned()
    }

    fn end(&mut self) {
        self.kill.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.join().ok();
        }
    }
}

/// Waits for the machine's end, and brings it about when told so or when it lived too long.
fn watch(mut qemu: Child, kill: &AtomicBool) -> std::io::Result<ExitStatus> {
    let deadline = Instant::now() + LONGEST_LIFE;
    loop {
        if let Some(status) = qemu.try_wait()? {
            return Ok(status);
        }
        if kill.load(Ordering::Relaxed) || Instant::now() > deadline {
            qemu.kill()?;
            return qemu.wait();
        }
        sleep(GLANCE);
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
         -drive if=pflash,format=raw,snapshot=on,file={OVMF_VARS} -drive if=virtio,format=raw,file={}",
        image.display()
    )
}
