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

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{FileStat, Mode, SFlag, mknod, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpgrp, getppid, tcgetpgrp, tcsetpgrp};
use serde::{Deserialize, Serialize};

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
        eprintln!("error: {error:#}");
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
                eprintln!("error: {error:#}");
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
            eprintln!("error: running {} in {root}: {}", program.to_string_lossy(), reason(&error));
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
        }
    };
    drop(resolv_conf);
    Ok(code)
}

/// Mounts all that the program shall see, and leaves the host's tree for good.
fn enclose(fence: &Fence) -> Result<()> {
    let mut spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if fence.network == Network::None {
        spaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(spaces).map_err(not_allowed).context("making namespaces")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(not_allowed)
        .context("making mounts private")?;
    mount(Some(&fence.root), &fence.root, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(not_allowed)
        .context("binding the root")?;
    nix::unistd::chdir(&fence.root).context("changing into the root")?;
    change_root()?;

    // From here on every path, and every symbolic link on its way, is the target's.
    for dir in ["/dev", "/proc", "/sys", "/run"] {
        match nix::unistd::mkdir(dir, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => (),
            Err(error) => return Err(error).with_context(|| format!("making {dir}")),
        }
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", quiet, "")?;
    mount_new("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    make_dev(&fence.devices)?;
    mount_new("sysfs", "/sys", quiet | MsFlags::MS_RDONLY, "")?;
    match fence.efi {
        Efi::Hidden if Path::new("/sys/firmware").exists() => {
            mount_new("tmpfs", "/sys/firmware", quiet | MsFlags::MS_RDONLY, "mode=755,size=0")?;
        }
        Efi::Visible if Path::new("/sys/firmware/efi/efivars").exists() => {
            mount_new("efivarfs", "/sys/firmware/efi/efivars", quiet, "")?;
        }
        Efi::Hidden | Efi::Visible => (),
    }
    protect_kernel_settings()?;
    if let Some(hostname) = &fence.hostname {
        nix::unistd::sethostname(hostname).context("setting the host name")?;
    }
    Ok(())
}

/// Makes the current directory the root, with nothing else left to go to.
fn change_root() -> Result<()> {
    match nix::unistd::pivot_root(".", ".") {
        // The old root now lies over the new one.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).context("leaving the host's mounts")?,
        // The root of an initrd cannot be exchanged, only covered.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
                .context("covering the initrd")?;
            nix::unistd::chroot(".").context("changing the root")?;
        }
        Err(error) => return Err(not_allowed(error)).context("changing the root"),
    }
    nix::unistd::chdir("/").context("changing into the new root")
}

fn mount_new(kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), flags, Some(options))
        .map_err(not_allowed)
        .with_context(|| format!("mounting {at}"))
}

const CHARACTER_DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const THROW_AWAY_EFIVARS: &str = "/dev/shm/efivars";
// The group `tty` on NixOS.
const TTY_GROUP: u32 = 3;

fn make_dev(devices: &[DeviceNode]) -> Result<()> {
    // Activation remounts /dev with mode=755,size=5% and the like, which suit a tmpfs too.
    mount_new("tmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755")?;
    for (name, major, minor) in CHARACTER_DEVICES {
        make_node(name, SFlag::S_IFCHR, 0o666, nix::sys::stat::makedev(major, minor))?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(name)).with_context(|| format!("linking /dev/{name}"))?;
    }
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(dir).with_context(|| format!("making {dir}"))?;
    }
    let options = format!("newinstance,ptmxmode=0666,mode=620,gid={TTY_GROUP}");
    mount_new("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, &options)?;
    mount_new("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    fs::create_dir(THROW_AWAY_EFIVARS).with_context(|| format!("making {THROW_AWAY_EFIVARS}"))?;

    for (name, entry) in block_entries(devices)? {
        let path = Path::new("/dev").join(&name);
        let dir = path.parent().expect("a path below /dev has a parent");
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        match entry {
            BlockEntry::Node(rdev) => make_node(&name, SFlag::S_IFBLK, 0o660, rdev)?,
            BlockEntry::Link(to) => symlink(to, &path).with_context(|| format!("linking /dev/{name}"))?,
        }
    }
    Ok(())
}

fn make_node(name: &str, kind: SFlag, mode: u32, rdev: u64) -> Result<()> {
    let path = Path::new("/dev").join(name);
    mknod(&path, kind, Mode::from_bits_truncate(mode), rdev)
        .and_then(|()| {
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                &path,
                Mode::from_bits_truncate(mode),
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )
        })
        .map_err(not_allowed)
        .with_context(|| format!("making the device node /dev/{name}"))
}

#[derive(Debug, PartialEq)]
enum BlockEntry {
    Node(u64),
    Link(String),
}

/// Decides what lies below `/dev` for the given block devices.
///
/// Names with a slash are links, as udev makes them, so that programs which resolve them find the
/// name that `/proc/self/mountinfo` shows. Names without are nodes. Of two devices that claim one
/// name the first has it: the caller puts those names first that must not be mistaken.
fn block_entries(devices: &[DeviceNode]) -> Result<BTreeMap<String, BlockEntry>> {
    let mut entries = BTreeMap::new();
    for device in devices {
        let Some(first) = device.names.first() else { continue };
        for name in &device.names {
            check_device_name(name)?;
            let entry = match name.matches('/').count() {
                0 => BlockEntry::Node(device.rdev),
                depth => BlockEntry::Link(format!("{}{first}", "../".repeat(depth))),
            };
            entries.entry(name.clone()).or_insert(entry);
        }
        // How systemd finds a node by its number.
        let (major, minor) = (nix::sys::stat::major(device.rdev), nix::sys::stat::minor(device.rdev));
        entries.entry(format!("block/{major}:{minor}")).or_insert(BlockEntry::Link(format!("../{first}")));
    }
    Ok(entries)
}

fn check_device_name(name: &str) -> Result<()> {
    let reserved = CHARACTER_DEVICES.iter().map(|(name, ..)| *name).chain(["pts", "shm", "fd", "ptmx"]);
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    let start = name.split('/').next().unwrap_or_default();
    if name.split('/').any(odd)
        || reserved.into_iter().any(|reserved| reserved == start)
        || start.starts_with("std")
    {
        bail!("naming a block device {name:?}: the name cannot be used below /dev");
    }
    Ok(())
}

// What activation writes for the machine it takes itself to be booted on. The kernel has one of
// each for all namespaces, and ours may live on without the paths written there.
const SWALLOWED: [&str; 3] =
    ["/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/sys/module/firmware_class/parameters/path"];

fn protect_kernel_settings() -> Result<()> {
    let none = None::<&str>;
    mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none)
        .map_err(not_allowed)
        .context("binding /proc/sys")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(
        none,
        "/proc/sys",
        none,
        read_only | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        none,
    )
    .map_err(not_allowed)
    .context("making /proc/sys read-only")?;
    for path in SWALLOWED.into_iter().filter(|path| Path::new(path).exists()) {
        bind_text(&fs::read(path).unwrap_or_default(), Path::new(path))?;
    }
    Ok(())
}

/// Covers the file at `path` by a writable one with this text, which exists nowhere else.
fn bind_text(text: &[u8], path: &Path) -> Result<()> {
    let source = Path::new("/dev/.cover");
    fs::write(source, text).with_context(|| format!("writing {}", source.display()))?;
    let bound = mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    fs::remove_file(source).with_context(|| format!("removing {}", source.display()))?;
    bound.with_context(|| format!("covering {}", path.display()))
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
            eprintln!("warning: {program} ended with {code}");
            lines[lines.len().saturating_sub(LAST_LINES)..].iter().for_each(|line| eprintln!("    {line}"));
        }
        Ok(code)
    };
    if let Err(error) = run()
        && preparation.output != Output::Drop
    {
        eprintln!("warning: {error:#}");
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

/// The host's `resolv.conf` bound over the target's. Leaves nothing behind.
struct ResolvConf {
    mounted: File,
    made: Option<(OwnedFd, OsString)>,
}

impl ResolvConf {
    /// A root without a place for it gets none: names do not resolve, and nothing else changes.
    fn pass_through(text: &[u8]) -> Option<Self> {
        let path = Path::new("/etc/resolv.conf");
        let made = if path.exists() { None } else { Some(Self::make(path)?) };
        bind_text(text, path).ok()?;
        let mounted = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).ok()?;
        Some(ResolvConf { mounted, made })
    }

    /// Makes an empty file to mount on, where a link points to if there is one.
    fn make(path: &Path) -> Option<(OwnedFd, OsString)> {
        let dir = path.parent()?;
        let place = fs::read_link(path).map_or(path.to_owned(), |target| dir.join(target));
        let parent = place.parent()?;
        let in_run = fs::canonicalize(parent.components().take(2).collect::<PathBuf>())
            .is_ok_and(|top| top == Path::new("/run"));
        if in_run || path_starts_in_run(&place) {
            fs::create_dir_all(parent).ok()?;
        }
        let name = place.file_name()?.to_owned();
        let parent =
            OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(parent).ok()?;
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&place).ok()?;
        Some((parent.into(), name))
    }
}

/// Tells whether a path such as `/etc/../run/systemd/resolv.conf` lies in `/run`, going by its words.
fn path_starts_in_run(path: &Path) -> bool {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(parts.pop()),
            std::path::Component::Normal(name) => parts.push(name),
            _ => (),
        }
    }
    parts.first().is_some_and(|first| *first == "run")
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let Some((dir, name)) = &self.made else { return };
        // What the program mounted may have changed where the path leads.
        let _ =
            umount2(Path::new(&format!("/proc/self/fd/{}", self.mounted.as_raw_fd())), MntFlags::MNT_DETACH);
        let empty = |stat: FileStat| stat.st_size == 0;
        if nix::sys::stat::fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(empty) {
            let _ = nix::unistd::unlinkat(dir, name.as_os_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
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
mod tests {
    use super::testing::{BUSYBOX, root, script};
    use super::*;
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    fn said(fence: &Fence, text: &str) -> String {
        let (output, code) = script(fence, text);
        assert_eq!(code, 0, "{text}: {output}");
        output.trim_end().to_owned()
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn the_exit_status_is_the_programs() {
        let root = root();
        let fence = Fence::around(root.path());
        for (text, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
            assert_eq!(script(&fence, text), (String::new(), code), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_said_in_one_sentence() {
        let root = root();
        fs::write(root.path().join("bin/text"), "no program").unwrap();
        let show = root.path().display();
        for (root, program, code, sentence) in [
            (
                root.path(),
                "/bin/none",
                127,
                format!("error: running /bin/none in {show}: there is no such program\n"),
            ),
            (
                root.path(),
                "/bin/text",
                126,
                format!("error: running /bin/text in {show}: it is not executable\n"),
            ),
            (
                &root.path().join("bin/busybox"),
                BUSYBOX,
                BROKEN,
                format!("error: entering {show}/bin/busybox: it is not a directory\n"),
            ),
            (
                &root.path().join("none"),
                BUSYBOX,
                BROKEN,
                format!("error: entering {show}/none: No such file or directory (os error 2)\n"),
            ),
            (
                Path::new("/"),
                BUSYBOX,
                BROKEN,
                "error: entering /: it is the running system itself\n".to_owned(),
            ),
        ] {
            let output = Fence::around(root).command(program, [""; 0]).output().unwrap();
            assert_eq!(exit_code(output.status), code);
            assert_eq!(String::from_utf8(output.stderr).unwrap(), sentence);
        }
    }

    #[test]
    fn without_privilege_there_is_one_clear_sentence() {
        let root = root();
        let mut command = Fence::around(root.path()).command(BUSYBOX, ["true"]);
        let output = command.uid(65534).gid(65534).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(exit_code(output.status), BROKEN, "{error}");
        assert!(
            error.ends_with("not permitted; run as root, and not in an unprivileged container\n"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn dev_holds_the_devices_named_and_no_others() {
        let root = root();
        let disk = nix::sys::stat::makedev(7, 250);
        let part = nix::sys::stat::makedev(7, 251);
        let node = |names: &[&str], rdev| DeviceNode {
            names: names.iter().map(|&name| name.into()).collect(),
            rdev,
        };
        let fence = Fence {
            devices: vec![
                node(&["vdb", "vda"], disk),
                node(&["vdb1", "vda1", "disk/by-label/EFI\\x20x", "disk/by-uuid/12AB-34CD"], part),
            ],
            ..Fence::around(root.path())
        };
        let expected = "block disk fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
        assert_eq!(said(&fence, "$b ls -A /dev | $b grep -v ^vd | $b tr '\\n' ' '").trim_end(), expected);
        let numbers =
            said(&fence, "$b ls -l /dev/vda /dev/vda1 /dev/vdb /dev/vdb1 | $b awk '{print $1,$5,$6,$NF}'");
        assert_eq!(
            numbers,
            "brw-rw---- 7, 250 /dev/vda\nbrw-rw---- 7, 251 /dev/vda1\n\
             brw-rw---- 7, 250 /dev/vdb\nbrw-rw---- 7, 251 /dev/vdb1"
        );
        assert_eq!(
            said(
                &fence,
                "$b readlink '/dev/disk/by-label/EFI\\x20x'; $b readlink /dev/block/7:250; $b find /dev/disk -type l | $b wc -l"
            ),
            "../../vdb1\n../vdb\n2"
        );
        // Nor can one be made.
        assert!(said(&fence, "$b mknod /dev/sda b 8 0 || echo refused").ends_with("refused"));
        // Everything below works as it should.
        assert_eq!(
            said(
                &fence,
                "echo x > /dev/null; $b head -c 3 /dev/zero | $b wc -c; echo y > /dev/shm/y; $b ls /dev/pts"
            ),
            "3\nptmx"
        );
    }

    #[test]
    fn names_that_would_hide_something_are_refused() {
        for name in ["null", "../etc/passwd", "disk//x", "", "pts/0", "stdin", "fd"] {
            let devices = [DeviceNode { names: vec![name.to_owned()], rdev: 1 }];
            assert!(block_entries(&devices).is_err(), "{name}");
        }
        let devices = [
            DeviceNode { names: vec!["vdb".into(), "vda".into()], rdev: 1 },
            DeviceNode { names: vec!["vda".into()], rdev: 2 },
        ];
        assert_eq!(block_entries(&devices).unwrap()["vda"], BlockEntry::Node(1));
    }

    #[test]
    fn nothing_of_the_host_can_be_reached() {
        let root = root();
        let marker = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        let fence = Fence::around(root.path());
        // An escape by a second chroot ends at the same root.
        let escape =
            "$b mkdir -p /x; $b chroot /x /bin/busybox true 2>/dev/null; cd /../../../..; $b pwd; $b ls /";
        assert_eq!(said(&fence, escape), "/\nbin\ndev\nproc\nrun\nsys\nx");
        let path = marker.path().display();
        assert_eq!(
            said(&fence, &format!("$b test -e {path} || $b test -e /proc/1/root{path} || echo gone")),
            "gone"
        );
        // The only mounts are ours, and the kernel's settings cannot be changed.
        let mounts = said(&fence, "$b cut -d' ' -f5 /proc/self/mountinfo");
        let mounts: BTreeSet<&str> = mounts.lines().collect();
        for mount in &mounts {
            assert!(
                *mount == "/" || ["/proc", "/sys", "/dev", "/run"].iter().any(|top| mount.starts_with(top)),
                "{mount}"
            );
        }
        for path in
            ["/proc/sys/kernel/panic", "/sys/kernel/uevent_helper", "/sys/block/loop0/queue/read_ahead_kb"]
        {
            let text = said(&fence, &format!("$b test -e {path} || echo x; echo 1 > {path} || echo kept"));
            assert!(text.ends_with("kept") || text.ends_with('x'), "{text}");
        }
        // Processes and the network are not the host's either.
        assert_eq!(
            said(&fence, "echo $$; $b ls /sys/class/net; $b ls -d /sys/firmware/* 2>/dev/null || echo none"),
            "2\nlo\nnone"
        );
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let named = Fence { hostname: Some("clone".into()), ..fence };
        assert_eq!(said(&named, "$b hostname"), "clone");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), host);
    }

    #[test]
    fn what_activation_writes_for_the_whole_kernel_goes_nowhere() {
        let root = root();
        let modprobe = "/proc/sys/kernel/modprobe";
        if !Path::new(modprobe).exists() {
            return;
        }
        let before = fs::read(modprobe).unwrap();
        let fence = Fence::around(root.path());
        assert_eq!(
            said(&fence, &format!("echo /nix/modprobe > {modprobe} && $b cat {modprobe}")),
            "/nix/modprobe"
        );
        assert_eq!(fs::read(modprobe).unwrap(), before);
    }

    #[test]
    fn mounts_below_the_root_are_carried_in_and_missing_mount_points_are_made() {
        let root = root();
        let boot = root.path().join("boot");
        fs::create_dir(&boot).unwrap();
        // In a mount namespace of its own, as the commands have it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                mount(Some("tmpfs"), &boot, Some("tmpfs"), MsFlags::empty(), none).unwrap();
                fs::write(boot.join("kernel"), "k").unwrap();
                assert_eq!(
                    said(
                        &Fence::around(root.path()),
                        "$b cat /boot/kernel; $b grep -c ' /boot ' /proc/mounts"
                    ),
                    "k1"
                );
            });
        });
        for dir in ["dev", "proc", "sys", "run"] {
            let meta = fs::metadata(root.path().join(dir)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o755, 0), "{dir}");
            assert_eq!(fs::read_dir(root.path().join(dir)).unwrap().count(), 0, "{dir}");
        }
        assert_eq!(fs::read_dir(&boot).unwrap().count(), 0);
    }

    #[test]
    fn links_in_the_root_never_lead_to_the_host() {
        let root = root();
        symlink("/tmp", root.path().join("run")).unwrap();
        let (text, _) = script(&Fence::around(root.path()), "echo in");
        assert!(text.is_empty() || text.contains("mounting /run"), "{text}");
    }

    #[test]
    fn the_environment_is_cleared() {
        let root = root();
        // HOME, PATH, and what the shell sets by itself.
        let mut command = Fence::around(root.path()).command(BUSYBOX, ["env"]);
        command.env("NIXOS_INSTALL_BOOTLOADER", "1");
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let names: BTreeSet<&str> = output.lines().filter_map(|line| line.split('=').next()).collect();
        let expected = ["EFIVARFS_PATH", "HOME", "LIBEFIVAR_OPS", "NIXOS_INSTALL_BOOTLOADER", "PATH"];
        assert_eq!(names.into_iter().filter(|name| *name != "TERM").collect::<Vec<_>>(), expected);
    }

    #[test]
    fn resolv_conf_is_passed_through_and_left_as_it_was() {
        let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        if host.is_empty() {
            return;
        }
        let look = "$b cat /etc/resolv.conf";
        let seen = |root: &Path| said(&Fence { resolv_conf: true, ..Fence::around(root) }, look);

        // No /etc at all: nothing is made.
        let bare = root();
        let fence = Fence { resolv_conf: true, ..Fence::around(bare.path()) };
        assert_eq!(said(&fence, "$b ls /etc/resolv.conf 2>/dev/null || echo none"), "none");
        assert!(!bare.path().join("etc").exists());

        // Missing: made, and removed again.
        let etc = bare.path().join("etc");
        fs::create_dir(&etc).unwrap();
        assert_eq!(seen(bare.path()), host.trim_end());
        assert_eq!(fs::read_dir(&etc).unwrap().count(), 0);

        // Present: covered.
        fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(seen(bare.path()), host.trim_end());
        assert_eq!(fs::read_to_string(etc.join("resolv.conf")).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(said(&Fence::around(bare.path()), look), "nameserver 192.0.2.1");

        // A link into /run, dangling as it does before the first boot.
        for target in ["/run/systemd/resolve/stub-resolv.conf", "../run/resolvconf/x"] {
            fs::remove_file(etc.join("resolv.conf")).unwrap();
            symlink(target, etc.join("resolv.conf")).unwrap();
            assert_eq!(seen(bare.path()), host.trim_end());
            assert_eq!(fs::read_link(etc.join("resolv.conf")).unwrap(), Path::new(target));
            assert_eq!(fs::read_dir(bare.path().join("run")).unwrap().count(), 0);
        }
    }

    #[test]
    fn preparations_share_the_namespaces_and_their_failure_stops_nothing() {
        let root = root();
        let say = |text: &str, output| Preparation {
            words: [BUSYBOX, "sh", "-c", text].map(str::to_owned).to_vec(),
            environment: vec![("WORD".into(), "hello".into())],
            output,
        };
        let fence = Fence {
            before: vec![
                say("echo $WORD > /run/made; echo quiet", Output::ShowFailure),
                say("echo loud", Output::Show),
                say("echo broken; exit 3", Output::ShowFailure),
                say("echo dropped; exit 3", Output::Drop),
                Preparation { words: vec!["/none".into()], environment: vec![], output: Output::Show },
            ],
            ..Fence::around(root.path())
        };
        let output = fence.command(BUSYBOX, ["cat", "/run/made"]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "hello\n");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "loud\nwarning: /bin/busybox ended with 3\n    broken\nwarning: running /none: No such file or directory (os error 2)\n"
        );
    }

    #[test]
    fn orphans_end_with_the_program() {
        let root = root();
        let fence = Fence::around(root.path());
        let start = Instant::now();
        let text =
            said(&fence, "for i in 1 2 3; do ( $b sleep 77.5 >/dev/null 2>&1 & ); ( : & ); done; echo done");
        assert_eq!(text, "done");
        assert!(start.elapsed() < Duration::from_secs(20));
        wait_until("no orphan is left", || processes_with("77.5").is_empty());
    }

    fn processes_with(word: &str) -> Vec<i32> {
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let has = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != std::process::id() as i32
                && line.split(|&byte| byte == 0).any(|part| part == word.as_bytes())
        };
        pids.filter(has).collect()
    }

    #[test]
    fn killing_any_process_of_the_fence_leaves_none_and_no_mount() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for victim in 0..2 {
            let root = root();
            let word = format!("7{victim}.25");
            let fence = Fence::around(root.path());
            let mut child = fence
                .command(
                    BUSYBOX,
                    ["sh", "-c", &format!("/bin/busybox sleep {word} & /bin/busybox sleep {word}")],
                )
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            wait_until("both sleep", || processes_with(&word).len() == 2);
            let outside = child.id() as i32;
            let children = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).unwrap();
            let first: i32 = children.trim().parse().unwrap();
            let pid = Pid::from_raw([outside, first][victim]);
            nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
            assert_eq!(exit_code(child.wait().unwrap()), 137);
            wait_until("nothing is left", || processes_with(&word).is_empty());
            assert!(!Path::new(&format!("/proc/{first}/root/bin/busybox")).exists());
            fs::remove_dir_all(root.path()).unwrap();
        }
        // Others may mount meanwhile, but never there.
        let now = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(now.lines().filter(|line| !mounts.contains(*line)).all(|line| !line.contains("/tmp/.tmp")));
    }

    #[test]
    fn the_fence_dies_with_whoever_started_it() {
        let root = root();
        let fence = Fence::around(root.path());
        // The starter is a thread, which is what parent-death signals go by.
        let path = root.path().to_owned();
        std::thread::spawn(move || {
            drop(fence.command(BUSYBOX, ["sleep", "76.75"]).stdin(Stdio::null()).spawn().unwrap());
            // Outside, PID 1, and the program.
            wait_until("it sleeps", || processes_with("76.75").len() == 3);
        })
        .join()
        .unwrap();
        wait_until("nothing is left", || processes_with("76.75").is_empty());
        assert!(path.exists());
    }

    #[test]
    fn settings_that_are_not_ours_are_refused() {
        let error = outside(["{}".into(), "/".into()]).unwrap_err().to_string();
        assert_eq!(error, "reading the fence's settings");
    }
}
