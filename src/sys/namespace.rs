//! The fence: a program inside a root directory that sees nothing of the machine around it.
//!
//! The program gets its own mount, PID, IPC and UTS namespaces (and network, unless the host's is
//! asked for), the directory as its root, and a `/dev` that holds only the block devices named
//! here. What the kernel shares between all namespaces is read-only: `/sys`, `/proc/sys`.
//!
//! Three processes do it, each with one thread. *Outside* is this binary again, started by
//! [`Fence::command`]; it makes the PID namespace, waits, and hands the exit status on. *First* is
//! PID 1 inside: it mounts, reaps orphans and ends with the program, and the kernel then ends all
//! that is left. Each dies with its parent, so that a killed installer leaves no process and,
//! the mounts being in a namespace of their own, no mount.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpgrp, getppid, tcgetpgrp, tcsetpgrp};
use serde::{Deserialize, Serialize};

use super::terminal;

mod resolv_conf;
mod view;

use resolv_conf::ResolvConf;
use view::{THROW_AWAY_EFIVARS, enclose};

/// The hidden first word that makes this binary a fence's outside. `main` sends it to [`fence_main`].
pub const WORD: &str = "__fence";

/// The exit status when the fence itself could not be built; the reason is on stderr.
pub const BROKEN: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

// What NixOS's programs need before they set their own; the shell of a login sets the rest.
pub const PATH: &str = "/run/current-system/sw/bin:/usr/bin:/bin";

// Enough of a failed preparation's output to see why.
const LAST_LINES: usize = 12;

/// A directory to run programs in, and what they may see.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fence {
    // Travels as an argument of its own, since it need not be UTF-8.
    #[serde(skip)]
    pub root: PathBuf,
    /// The only block devices.
    pub devices: Vec<DeviceNode>,
    pub network: Network,
    pub efi: Efi,
    /// Give the host's `resolv.conf` in place of the root's, for as long as the program runs.
    pub resolv_conf: bool,
    pub hostname: Option<String>,
    /// Programs to run before the main one, in the same namespaces.
    pub before: Vec<Preparation>,
    /// Leave Ctrl-C to the program.
    pub interactive: bool,
}

/// A block device and its names below `/dev`: the kernel's own first, such as `vdb1`, then others
/// such as `disk/by-label/nixos`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    pub names: Vec<String>,
    pub rdev: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    Host,
    None,
}

/// Whether the machine's EFI variables can be seen and changed.
///
/// Hidden hides all of `/sys/firmware`: where `/sys/firmware/efi` exists, bootctl takes the machine
/// for booted with EFI and fails when it cannot write variables; where it does not, it goes on.
/// efibootmgr (and through it grub-install and limine) fails without variables, so it is pointed to
/// a throw-away directory instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Efi {
    Hidden,
    Visible,
}

/// A program that runs before the main one. Its failure stops nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Preparation {
    pub words: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Goes to stderr.
    Show,
    /// The last lines go to stderr when the program fails.
    ShowFailure,
    Drop,
}

impl Fence {
    /// Returns a fence around `root`: no devices, no network, no EFI variables.
    pub fn around(root: &Path) -> Self {
        Fence {
            root: root.to_owned(),
            devices: Vec::new(),
            network: Network::None,
            efi: Efi::Hidden,
            resolv_conf: false,
            hostname: None,
            before: Vec::new(),
            interactive: false,
        }
    }

    /// Returns the command that runs `program`, as seen inside, within the fence.
    ///
    /// Its exit status is the program's, or 128 + n when signal n ended it, or [`BROKEN`]. The
    /// program dies with the *thread* that starts the command, as parent-death signals do, so wait
    /// for it in that thread.
    pub fn command<I, S>(&self, program: impl AsRef<OsStr>, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let settings = serde_json::to_string(self).expect("a fence's settings are strings and numbers");
        let mut command = Command::new("/proc/self/exe");
        command.arg0("nixos-install-via").arg(WORD).arg(settings);
        // The process to die with.
        command.arg(std::process::id().to_string()).arg(&self.root).arg(program).args(args);
        command.env_clear().env("PATH", PATH).env("HOME", "/root");
        command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
        if self.efi == Efi::Hidden {
            // libefivar's own switches; see `Efi`.
            command.env("LIBEFIVAR_OPS", "efivarfs").env("EFIVARFS_PATH", format!("{THROW_AWAY_EFIVARS}/"));
        }
        command
    }
}

/// Runs the fence's outside: `args` are the words after [`WORD`].
pub fn fence_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let code = outside(args).unwrap_or_else(|error| {
        terminal::tell(format_args!("error: {error:#}"));
        BROKEN
    });
    std::process::exit(code)
}

/// Returns the exit status a shell would show: 128 + n for signal n.
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(BROKEN)
}

/// Lets Ctrl-C and Ctrl-\ reach the program on the terminal and not us.
pub fn leave_terminal_signals_to_the_program() -> Result<()> {
    extern "C" fn nothing(_: i32) {}
    // A handler, for what is ignored stays ignored in programs we start, and a handler does not.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the handler does nothing, so it is safe at any moment.
        unsafe { sigaction(signal, &action) }.context("setting signal handlers")?;
    }
    Ok(())
}

fn outside(args: impl IntoIterator<Item = OsString>) -> Result<i32> {
    let mut args = args.into_iter();
    let settings = args.next().context("reading the fence's settings: there are none")?;
    let mut fence: Fence =
        serde_json::from_slice(settings.as_encoded_bytes()).context("reading the fence's settings")?;
    let parent = args
        .next()
        .and_then(|pid| pid.to_str()?.parse().ok())
        .context("reading the fence's parent: there is none")?;
    fence.root = args.next().context("reading the fence's root: there is none")?.into();
    let words: Vec<OsString> = args.collect();

    die_with_parent()?;
    // It may have gone before we asked; 0 is a parent in another PID namespace.
    if ![0, parent].contains(&getppid().as_raw()) {
        bail!("building a fence: whoever wanted it is gone");
    }
    if fence.interactive {
        leave_terminal_signals_to_the_program()?;
    }
    let terminal = Terminal::of_stdin();
    check_root(&fence.root)?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(not_allowed).context("making a PID namespace")?;
    let (alive, ours) = io::pipe().context("making a pipe")?;
    // SAFETY: this process has one thread, so the child may do all that we may.
    let code = match unsafe { fork() }.context("starting PID 1 of the fence")? {
        ForkResult::Child => {
            drop(ours);
            std::process::exit(first(&fence, &words, alive).unwrap_or_else(|error| {
                terminal::tell(format_args!("error: {error:#}"));
                BROKEN
            }))
        }
        ForkResult::Parent { child } => wait_for(child)?,
    };
    terminal.take_back();
    Ok(code)
}

fn check_root(root: &Path) -> Result<()> {
    let meta = fs::metadata(root).with_context(|| format!("entering {}", root.display()))?;
    if !meta.is_dir() {
        bail!("entering {}: it is not a directory", root.display());
    }
    let here = fs::metadata("/").context("looking at /")?;
    if (meta.dev(), meta.ino()) == (here.dev(), here.ino()) {
        bail!("entering {}: it is the running system itself", root.display());
    }
    Ok(())
}

/// The life of PID 1 inside.
fn first(fence: &Fence, words: &[OsString], alive: io::PipeReader) -> Result<i32> {
    die_with_parent()?;
    if pipe_is_closed(alive) {
        return Ok(BROKEN);
    }
    umask(Mode::from_bits_truncate(0o022));
    let host_resolv_conf = fence.resolv_conf.then(|| fs::read("/etc/resolv.conf").ok()).flatten();
    enclose(fence).with_context(|| format!("fencing {}", fence.root.display()))?;
    drop_capabilities()?;
    for preparation in &fence.before {
        prepare(preparation);
    }
    let resolv_conf = host_resolv_conf.and_then(|text| ResolvConf::pass_through(&text));
    let (program, args) = words.split_first().context("entering a fence: there is no program to run")?;
    let code = match Command::new(program).args(args).spawn() {
        Ok(child) => {
            // As in nixos-enter, systemd's tools shall see that no systemd is here: they compare their
            // root with that of PID 1.
            let root = File::open("/").context("opening the root")?;
            nix::unistd::chroot("/dev").context("leaving the root")?;
            let code = supervise(Pid::from_raw(child.id() as i32))?;
            nix::unistd::fchdir(&root)
                .and_then(|()| nix::unistd::chroot("."))
                .context("returning to the root")?;
            code
        }
        Err(error) => {
            let root = fence.root.display();
            terminal::tell(format_args!(
                "error: running {} in {root}: {}",
                program.to_string_lossy(),
                reason(&error)
            ));
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
        }
    };
    drop(resolv_conf);
    Ok(code)
}

/// Gives up, for all programs inside, what would reach through the fence: making device nodes,
/// loading modules, setting the clock.
fn drop_capabilities() -> Result<()> {
    // linux/capability.h
    const SYS_MODULE: libc::c_ulong = 16;
    const SYS_TIME: libc::c_ulong = 25;
    const MKNOD: libc::c_ulong = 27;
    for capability in [SYS_MODULE, SYS_TIME, MKNOD] {
        // SAFETY: PR_CAPBSET_DROP takes a number and changes this process only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        Errno::result(result).context("dropping capabilities")?;
    }
    Ok(())
}

fn prepare(preparation: &Preparation) {
    let Some((program, args)) = preparation.words.split_first() else { return };
    let run = || -> Result<i32> {
        let mut command = Command::new(program);
        command.args(args).envs(preparation.environment.iter().cloned()).stdin(Stdio::null());
        let mut said = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open("/dev/shm")?;
        match preparation.output {
            Output::Show => command.stdout(io::stderr()),
            Output::ShowFailure => command.stdout(said.try_clone()?).stderr(said.try_clone()?),
            Output::Drop => command.stdout(Stdio::null()).stderr(Stdio::null()),
        };
        let child = command.spawn().with_context(|| format!("running {program}"))?;
        let code = supervise(Pid::from_raw(child.id() as i32))?;
        if code != 0 && preparation.output == Output::ShowFailure {
            let mut text = Vec::new();
            said.rewind()?;
            said.read_to_end(&mut text)?;
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            terminal::tell(format_args!("warning: {program} ended with {code}"));
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            last.iter().for_each(|line| terminal::tell(format_args!("    {line}")));
        }
        Ok(code)
    };
    if let Err(error) = run()
        && preparation.output != Output::Drop
    {
        terminal::tell(format_args!("warning: {error:#}"));
    }
}

/// Waits for `child`, and buries whoever else dies meanwhile. Returns its exit status.
fn supervise(child: Pid) -> Result<i32> {
    loop {
        let status = match waitpid(None, None) {
            Err(Errno::EINTR) => continue,
            status => status.context("waiting for a program in the fence")?,
        };
        match status {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(128 + signal as i32),
            _ => (),
        }
    }
}

fn wait_for(child: Pid) -> Result<i32> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => return Err(error).context("waiting for the fence"),
        }
    }
}

fn die_with_parent() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tying this process to its parent")
}

/// Tells whether the process that held the other end is gone.
fn pipe_is_closed(mut pipe: io::PipeReader) -> bool {
    let flags = OFlag::O_NONBLOCK | OFlag::O_RDONLY;
    let changed = nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(flags));
    changed.is_ok() && matches!(pipe.read(&mut [0]), Ok(0))
}

/// The terminal's foreground group, which an interactive shell inside takes and cannot give back,
/// for it does not know our PIDs.
struct Terminal(Option<Pid>);

impl Terminal {
    fn of_stdin() -> Self {
        let group = if io::stdin().is_terminal() { tcgetpgrp(io::stdin()).ok() } else { None };
        Terminal(group.filter(|group| *group == getpgrp()))
    }

    fn take_back(self) {
        let Some(group) = self.0 else { return };
        let stop = SigSet::from_iter([Signal::SIGTTOU]);
        // Failing means that the terminal is gone.
        if stop.thread_block().is_ok() {
            let _ = tcsetpgrp(io::stdin(), group);
        }
    }
}

/// What `EPERM` means here, for it is all that a container says.
fn not_allowed(error: Errno) -> anyhow::Error {
    match error {
        Errno::EPERM | Errno::EACCES => {
            anyhow::anyhow!("not permitted; run as root, and not in an unprivileged container")
        }
        error => error.into(),
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such program".to_owned(),
        io::ErrorKind::PermissionDenied => "it is not executable".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
pub mod testing {
    //! A root with busybox, and this test binary as the fence's outside.

    use super::*;

    // A fence starts /proc/self/exe, which in tests is the test binary: its `main` is not ours, so
    // the word is looked for before `main`.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static BEFORE_MAIN: extern "C" fn() = before_main;

    extern "C" fn before_main() {
        use std::os::unix::ffi::OsStringExt;
        let line = fs::read("/proc/self/cmdline").unwrap_or_default();
        let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|&byte| byte == 0);
        let mut words = words.map(|word| OsString::from_vec(word.to_vec())).skip(1);
        if words.next().is_some_and(|word| word == WORD) {
            fence_main(words);
        }
    }

    pub const BUSYBOX: &str = "/bin/busybox";

    /// Returns a directory that holds `bin/busybox` and nothing else.
    pub fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::copy(BUSYBOX, root.path().join("bin/busybox")).unwrap();
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        root
    }

    /// Returns what a shell script prints inside, stderr included, and its status.
    pub fn script(fence: &Fence, text: &str) -> (String, i32) {
        let text = format!("exec 2>&1; b=/bin/busybox; {text}");
        let output = fence.command(BUSYBOX, ["sh", "-c", &text]).stdin(Stdio::null()).output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        (String::from_utf8(all).unwrap(), exit_code(output.status))
    }
}

#[cfg(test)]
mod tests;
