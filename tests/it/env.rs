//! A made-up world for one test: a directory, the built binary, systems to copy, disks to refuse.

use std::fs;
use std::io::{Write, stderr};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::{panic, thread};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::Digest;
use tempfile::TempDir;

use crate::real_nix;

/// What is tested. The bench, which has this file too, names its binary itself.
pub const BINARY: &str = match option_env!("CARGO_BIN_EXE_nixos-install-via") {
    Some(binary) => binary,
    None => "",
};

/// Beside the build, because /tmp may be memory and disks are large.
const SCRATCH: &str = match option_env!("CARGO_TARGET_TMPDIR") {
    Some(dir) => dir,
    None => concat!(env!("CARGO_MANIFEST_DIR"), "/build"),
};

/// Says why a test failed when it fails: the harness says it once all have ended, which is much later, if they end.
fn tell_failures_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let current = thread::current();
            // The harness catches what is printed, but not what is written.
            writeln!(stderr(), "\n{} failed: {panic}\n", current.name().unwrap_or("a thread")).ok();
            usual(panic);
        }));
    });
}

/// A directory that goes with the test, and the binary run from it.
pub struct TestEnv {
    dir: TempDir,
}

impl TestEnv {
    pub fn new() -> TestEnv {
        TestEnv::new_in(Path::new(SCRATCH))
    }

    /// A world elsewhere than beside the build.
    pub fn new_in(place: &Path) -> TestEnv {
        tell_failures_at_once();
        let dir = tempfile::Builder::new().prefix("it-").tempdir_in(place);
        TestEnv { dir: dir.expect("the directory can be written") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, about to run without a terminal.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(BINARY);
        command.args(words).current_dir(self.dir.path()).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        Ran::of(&mut self.command(words))
    }

    /// Starts the binary; what it says is thrown away.
    pub fn start<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Child {
        let mut command = self.command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary was built")
    }

    /// Makes an empty disk image.
    pub fn image(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).expect("images can be made");
        file.set_len(mib << 20).expect("images can be sparse");
        path
    }
}

/// A run of the binary that is over.
pub struct Ran {
    line: String,
    code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Ran {
        let output = command.output().expect("the binary was built");
        Ran::new(format!("{command:?}"), output)
    }

    pub fn new(line: String, output: Output) -> Ran {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { line, code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    #[track_caller]
    pub fn ok(self) -> Ran {
        self.ended_with(0)
    }

    #[track_caller]
    pub fn failed(self) -> Ran {
        self.ended_with(1)
    }

    #[track_caller]
    pub fn misused(self) -> Ran {
        self.ended_with(2)
    }

    #[track_caller]
    pub fn refused(self) -> Ran {
        self.ended_with(3)
    }

    #[track_caller]
    pub fn ended_with(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    pub fn code(&self) -> Option<i32> {
        self.code
    }

    #[track_caller]
    pub fn stderr_has(self, text: &str) -> Ran {
        assert!(self.stderr.contains(text), "no {text:?} in what came of {self}");
        self
    }

    #[track_caller]
    pub fn stdout_has(self, text: &str) -> Ran {
        assert!(self.stdout.contains(text), "no {text:?} in what came of {self}");
        self
    }

    /// The error is there and is one line.
    #[track_caller]
    pub fn says_a_sentence(self) -> Ran {
        let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "{}\nended with {:?}\nstdout: {}\nstderr: {}",
            self.line, self.code, self.stdout, self.stderr
        )
    }
}

/// A root to copy from: where it is and which system it holds.
#[derive(Clone)]
pub struct System {
    pub root: PathBuf,
    pub toplevel: String,
}

impl System {
    /// The options that name it.
    pub fn options(&self) -> Vec<String> {
        let root = self.root.display().to_string();
        ["--yes", "--from", &root, "--system", &self.toplevel].map(String::from).to_vec()
    }

    /// The same system, but that its kernel knows of no such module.
    pub fn without_module(&self, env: &TestEnv, name: &str) -> (System, Mounted) {
        let layer = format!("without-{name}");
        let tree = in_root(&self.root, &self.toplevel).join("kernel-modules");
        let tree = in_root(&self.root, text(&fs::read_link(tree).expect("it leads to the modules")));
        let version =
            fs::read_dir(tree.join("lib/modules")).unwrap().next().expect("it is of a kernel").unwrap();
        for list in ["modules.dep", "modules.alias"] {
            let text = fs::read_to_string(version.path().join(list)).unwrap();
            let left: String =
                text.lines().filter(|line| !line.contains(name)).map(|line| format!("{line}\n")).collect();
            assert_ne!(left.len(), text.len(), "{list} has no {name}");
            let place = version.path().strip_prefix(&self.root).unwrap().join(list);
            let place = env.path(&layer).join(place);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, left).unwrap();
        }
        // By plain names, for in a path there may be what separates options or layers.
        symlink(&self.root, env.path("lower")).expect("the name is new");
        let layers = format!("lowerdir={layer}:lower");
        let options = ["-t", "overlay", "overlay", "-o", &layers];
        let root = Mounted::new_in(&env.path(""), &options, env.path("root"));
        (System { root: root.0.clone(), toplevel: self.toplevel.clone() }, root)
    }

    /// A whole command line.
    pub fn words(&self, command: &str, more: &[&str]) -> Vec<String> {
        let more = more.iter().map(|word| word.to_string());
        [command.to_string()].into_iter().chain(self.options()).chain(more).collect()
    }
}

/// A mount that goes with the value.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Mounts with these options at a new directory.
    pub fn new(options: &[&str], point: PathBuf) -> Mounted {
        Mounted::new_in(Path::new("/"), options, point)
    }

    /// Like [`Mounted::new`], with options that name what is in the directory `dir`.
    fn new_in(dir: &Path, options: &[&str], point: PathBuf) -> Mounted {
        fs::create_dir(&point).expect("the name is new");
        Ran::of(Command::new("mount").current_dir(dir).args(options).arg(&point).stdin(Stdio::null())).ok();
        Mounted(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are plain")
}

/// A word as a shell reads it.
pub fn sh_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A path as OpenSSH's configuration has it: blanks separate words there, and `%` stands before what to put in its place.
pub fn ssh_word(path: &Path) -> String {
    let word = text(path).replace('\\', r"\\").replace('"', r#"\""#).replace('%', "%%");
    format!("\"{word}\"")
}

pub fn in_root(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The NixOS-shaped system that `make test` builds: `uefi`, `gpt-auto`, `luks` or `bios`.
pub fn fixture(variant: &str) -> System {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/fixture").join(variant);
    let toplevel = fs::read_to_string(dir.join("toplevel"))
        .unwrap_or_else(|_| panic!("run `make build/fixture/{variant}/toplevel` first"));
    // Nix wants no symlink on the way to a store.
    let root = dir.join("root").canonicalize().expect("it was built");
    System { root, toplevel: toplevel.trim().to_owned() }
}

/// A few store objects with the shape of a system, quick to copy and strange to look at.
pub fn small_system(root: PathBuf) -> System {
    let store = SmallStore::new(&root);
    let busybox = store.add("busybox-1.35", &[], |out| {
        fs::create_dir_all(out.join("bin")).unwrap();
        fs::copy("/bin/busybox", out.join("bin/busybox")).expect("busybox-static is installed");
        symlink("busybox", out.join("bin/sh")).unwrap();
    });
    let file = store.add("a-file", &[], |out| fs::write(out, "a store path that is a file\n").unwrap());
    let link = store.add("a-link", &[&file], |out| symlink(&file, out).unwrap());
    let odd = store.add("odd-names", &[], |out| {
        fs::create_dir_all(out.join("empty")).unwrap();
        for name in ["-dash", "new\nline", "quote\"'", "ünïcode", "two  words", "Case", "case"] {
            fs::write(out.join(name), name).unwrap();
        }
        fs::write(out.join("n".repeat(255)), "").unwrap();
        fs::write(out.join("zeros"), vec![0; 3 << 20]).unwrap();
        fs::hard_link(out.join("zeros"), out.join("zeros-again")).unwrap();
        symlink("/nowhere/at/all", out.join("dangling")).unwrap();
        symlink("self", out.join("self")).unwrap();
    });
    let etc = store.add("etc", &[], |out| {
        fs::create_dir_all(out.join("etc")).unwrap();
        fs::write(out.join("etc/os-release"), "ID=nixos\nNAME=NixOS\n").unwrap();
        fs::write(out.join("etc/fstab"), "/dev/disk/by-label/nixos / ext4 x-initrd.mount 0 1\n").unwrap();
    });
    let references = [&busybox, &link, &odd, &etc].map(String::as_str);
    let toplevel = store.add_self_referring("nixos-system-small-26.05", &references, |out, this| {
        let script = |text: &str| format!("#!{busybox}/bin/sh\n# {this}\n{text}\n");
        fs::create_dir_all(out.join("bin")).unwrap();
        for (name, text) in
            [("init", "exec sh"), ("activate", ":"), ("bin/switch-to-configuration", "exit 1")]
        {
            fs::write(out.join(name), script(text)).unwrap();
            fs::set_permissions(out.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, text) in [
            ("system", "x86_64-linux"),
            ("nixos-version", "26.05"),
            ("kernel-params", "quiet"),
            ("kernel", "k"),
        ] {
            fs::write(out.join(name), text).unwrap();
        }
        fs::create_dir(out.join("specialisation")).unwrap();
        symlink(format!("{etc}/etc"), out.join("etc")).unwrap();
        symlink(&busybox, out.join("sw")).unwrap();
        symlink(&odd, out.join("odd")).unwrap();
        symlink(&link, out.join("link")).unwrap();
    });
    System { root, toplevel }
}

/// Another system in the root of a small one, with which it shares all but three paths.
pub fn later_system(small: &System, number: u32, hostname: Option<&str>, platform: &str) -> System {
    let store = SmallStore { root: &small.root };
    let shared = |name: &str| store_path(name);
    let (busybox, link) = (shared("busybox-1.35"), shared("a-link"));
    let etc = store.add(&format!("etc-{number}"), &[], |out| {
        fs::create_dir_all(out.join("etc")).unwrap();
        fs::write(out.join("etc/os-release"), "ID=nixos\nNAME=NixOS\n").unwrap();
        if let Some(hostname) = hostname {
            fs::write(out.join("etc/hostname"), format!("{hostname}\n")).unwrap();
        }
    });
    let only = store.add(&format!("only-in-{number}"), &[], |out| {
        fs::create_dir(out).unwrap();
        for part in 0..20 {
            fs::write(out.join(part.to_string()), vec![number as u8 + 1; 200_000 + part]).unwrap();
        }
    });
    let references = [&busybox, &link, &etc, &only].map(String::as_str);
    let name = format!("nixos-system-small-{number}");
    let toplevel = store.add_self_referring(&name, &references, |out, this| {
        fs::create_dir(out).unwrap();
        let busybox = format!("{busybox}/bin/busybox");
        for (name, text) in
            [("init", "exec sh".into()), ("activate", format!("{busybox} ln -sfn {this} /etc/activated"))]
        {
            fs::write(out.join(name), format!("#!{busybox} sh\n{text}\n")).unwrap();
            fs::set_permissions(out.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(out.join("system"), platform).unwrap();
        for (name, target) in [("etc", format!("{etc}/etc")), ("only", only.clone()), ("link", link.clone())]
        {
            symlink(target, out.join(name)).unwrap();
        }
        symlink(store_path("busybox-1.35"), out.join("sw")).unwrap();
    });
    System { root: small.root.clone(), toplevel }
}

/// Puts objects into a root's store; the real Nix hashes and registers them.
struct SmallStore<'a> {
    root: &'a Path,
}

impl SmallStore<'_> {
    fn new(root: &Path) -> SmallStore<'_> {
        fs::create_dir_all(root.join("nix/store")).expect("a root can be made");
        SmallStore { root }
    }

    fn add(&self, name: &str, references: &[&str], build: impl FnOnce(&Path)) -> String {
        let path = store_path(name);
        self.put(&path, references.iter().map(|path| path.to_string()).collect(), build);
        path
    }

    fn add_self_referring(&self, name: &str, references: &[&str], build: impl FnOnce(&Path, &str)) -> String {
        let path = store_path(name);
        let references = references.iter().copied().chain([path.as_str()]).map(String::from).collect();
        self.put(&path, references, |out| build(out, &path));
        path
    }

    fn put(&self, path: &str, references: Vec<String>, build: impl FnOnce(&Path)) {
        let out = in_root(self.root, path);
        build(&out);
        real_nix::canonicalise(&out);
        real_nix::register(self.root, path, &out, &references);
    }
}

/// A store path whose hash part is made of its name, with letters that Nix uses.
fn store_path(name: &str) -> String {
    let letters: String = name.chars().filter(|c| "abcdfghijklmnpqrsvwxyz0123456789".contains(*c)).collect();
    format!("/nix/store/{}-{name}", letters.repeat(32).split_at(32).0)
}

/// A loop device, gone with the value.
pub struct Loop {
    pub device: PathBuf,
}

impl Loop {
    pub fn new(image: &Path, options: &[&str]) -> Loop {
        let output = Command::new("losetup").args(["--find", "--show"]).args(options).arg(image).output();
        let output = output.expect("losetup is installed");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Loop { device: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) }
    }

    pub fn name(&self) -> &str {
        self.device.to_str().expect("loop devices have plain names")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.device).status().ok();
    }
}

/// Runs a tool that has to succeed and returns what it printed.
#[track_caller]
pub fn tool(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?} ended with {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Tells whether a text stands anywhere in a disk image, or in the files below a directory.
pub fn holds(place: &Path, text: &str) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["--quiet", "--recursive", "--text", "--fixed-strings", "--file=-"]).arg(place);
    // What is looked for may be a secret, which nobody else is to find among the words of a process.
    let mut grep = grep.stdin(Stdio::piped()).spawn().expect("there is grep");
    grep.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("grep reads what it looks for");
    let status = grep.wait().expect("it is a child of ours");
    match status.code() {
        Some(0) => true,
        Some(1) => false,
        _ => panic!("grep ended with {status}"),
    }
}

/// A digest of a whole file: of every block that is not all zeros, and of where it lies.
pub fn digest(file: &Path) -> String {
    const BLOCK: usize = 64 << 10;
    let mut hash = sha2::Sha256::new();
    let file = fs::File::open(file).expect("the file is there");
    let (mut block, zeros) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut offset = 0;
    // Images are mostly holes, and reading those takes the longest.
    while let Some(data) = data_from(&file, offset) {
        offset = data - data % BLOCK as u64;
        let count = file.read_at(&mut block, offset).expect("the file can be read");
        if block[..count] != zeros[..count] {
            hash.update(offset.to_le_bytes());
            hash.update(&block[..count]);
        }
        offset += BLOCK as u64;
    }
    hash.update(file.metadata().expect("it is open").len().to_le_bytes());
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where there is something other than a hole in a file, from an offset on.
fn data_from(file: &fs::File, offset: u64) -> Option<u64> {
    match lseek(file, offset as i64, Whence::SeekData) {
        Ok(data) => Some(data as u64),
        Err(Errno::ENXIO) => None,
        Err(error) => panic!("looking for holes: {error}"),
    }
}
