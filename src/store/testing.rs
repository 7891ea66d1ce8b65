//! Stores made and judged by the real Nix, for the tests beside this file.
//!
//! A test that needs Nix fails where there is none; it is never skipped.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::path::StorePath;

/// Runs a program of Nix and returns what it did.
pub fn nix_program(name: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>, input: Stdio) -> Output {
    Command::new(name)
        .args(args)
        // Debian has no build users, and the tests need none.
        .env("NIX_CONFIG", "build-users-group =\nsandbox = false\nexperimental-features = nix-command")
        .stdin(input)
        .output()
        .unwrap_or_else(|error| panic!("{name} is needed for this test; install Nix 2.8 or newer: {error}"))
}

fn expect_success(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Returns the archive Nix makes of a tree.
pub fn dump(tree: &Path) -> Vec<u8> {
    expect_success(nix_program("nix-store", [OsStr::new("--dump"), tree.as_os_str()], Stdio::null()))
}

/// Lets Nix restore an archive, and tells whether it was willing.
pub fn restore(archive: &[u8], tree: &Path) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), archive).unwrap();
    let input = Stdio::from(File::open(file.path()).unwrap());
    nix_program("nix-store", [OsStr::new("--restore"), tree.as_os_str()], input).status.success()
}

/// A root in a temporary directory, with the programs of Nix working on it.
pub struct Nix {
    dir: TempDir,
}

#[allow(clippy::new_without_default)] // nothing is default about a root
impl Nix {
    pub fn new() -> Nix {
        Nix { dir: tempfile::tempdir().unwrap() }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    fn url(&self) -> String {
        format!("local?root={}", self.root().display())
    }

    /// Runs `nix-store` on this root.
    pub fn store<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> String {
        let own = ["--store".to_owned(), self.url()].into_iter();
        let args = own.chain(args.into_iter().map(str::to_owned));
        String::from_utf8(expect_success(nix_program("nix-store", args, Stdio::null()))).unwrap()
    }

    /// Evaluates an expression to a store path.
    pub fn eval(&self, expression: &str) -> StorePath {
        let args =
            ["--store", &self.url(), "--read-write-mode", "--eval", "--expr", expression].map(str::to_owned);
        let text = expect_success(nix_program("nix-instantiate", args, Stdio::null()));
        StorePath::parse(String::from_utf8(text).unwrap().trim().trim_matches('"')).unwrap()
    }

    /// Makes a store as a system has one: trees that trip copiers up, text files that refer to each
    /// other, a derivation. Returns the path that refers to all of them.
    pub fn fill(&self) -> StorePath {
        let trees = tempfile::tempdir().unwrap();
        tricky_tree(&trees.path().join("tricky"));
        fs::write(trees.path().join("plain"), "a store path that is a file").unwrap();
        symlink("/nowhere", trees.path().join("link")).unwrap();
        let twin = trees.path().join("twin");
        fs::create_dir(&twin).unwrap();
        fs::write(twin.join("shared"), vec![b's'; 70_000]).unwrap();
        fs::copy(twin.join("shared"), twin.join("again")).unwrap();
        let other = trees.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::copy(twin.join("shared"), other.join("elsewhere")).unwrap();
        let add = |name: &str| {
            let path = trees.path().join(name);
            self.store(["--add", path.to_str().unwrap()]).trim().to_owned()
        };
        let parts: Vec<String> = ["tricky", "plain", "link", "twin", "other"]
            .map(|name| format!("${{builtins.storePath \"{}\"}}", add(name)))
            .to_vec();
        self.eval(&format!(
            "let a = builtins.toFile \"a\" \"first\"; b = builtins.toFile \"b\" \"see ${{a}}\"; \
             drv = derivation {{ name = \"d\"; system = \"x86_64-linux\"; builder = b; outputs = [ \"out\" \"dev\" ]; }}; \
             in builtins.toFile \"system\" \"${{b}} ${{builtins.unsafeDiscardOutputDependency drv.drvPath}} {}\"",
            parts.join(" ")
        ))
    }

    /// Asserts that Nix finds every valid path whole.
    pub fn assert_sound(&self) {
        let url = self.url();
        let output =
            nix_program("nix-store", ["--store", &url, "--verify", "--check-contents"], Stdio::null());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && !said.contains("error") && !said.contains("disappeared"),
            "{said}"
        );
    }
}

/// Makes a tree, a file and a link in `dir`, and returns their names.
pub fn one_of_each(dir: &Path) -> [&'static str; 3] {
    tricky_tree(&dir.join("tree"));
    fs::write(dir.join("file"), "x").unwrap();
    symlink("/x", dir.join("link")).unwrap();
    ["tree", "file", "link"]
}

/// Makes a tree of all that has tripped copiers up.
pub fn tricky_tree(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let file = |name: &[u8], contents: &[u8]| fs::write(dir.join(OsStr::from_bytes(name)), contents).unwrap();
    for name in [
        &b"new\nline"[..],
        b"quo'te\"s",
        b"sp ace ",
        "\u{e4}\u{1f600}".as_bytes(),
        b"-dash",
        b"\xff\xfe",
        &[b'n'; 255],
    ] {
        file(name, name);
    }
    for name in ["Case", "case", "CASE", "a", "a.b", "a-b", "ab", "...", "~nix~case~hack~1"] {
        file(name.as_bytes(), name.as_bytes());
    }
    for length in [0, 1, 7, 8, 9, 32 << 10, (32 << 10) + 1] {
        file(format!("length-{length}").as_bytes(), &vec![b'x'; length]);
    }
    for name in ["run", "empty-run"] {
        file(name.as_bytes(), if name == "run" { b"#!/bin/sh\n" } else { b"" });
        fs::set_permissions(dir.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let mut zeros = vec![0; 3 << 20];
    zeros[1_000_000] = 1;
    file(b"zeros", &zeros);
    file(b"only-zeros", &vec![0; 1 << 20]);
    file(b"few-zeros", &[0; 5000]);
    fs::create_dir(dir.join("empty")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    symlink("self", dir.join("self")).unwrap();
    symlink("t".repeat(2000), dir.join("long-target")).unwrap();
    let deep: PathBuf = std::iter::repeat_n("deep", 40).collect();
    fs::create_dir_all(dir.join(&deep)).unwrap();
    fs::write(dir.join(deep).join("bottom"), "made it").unwrap();
}

/// Runs `look` while `dir` is mounted read-only, as this thread alone sees it.
pub fn on_read_only_medium(dir: &Path, look: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            const NONE: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).expect("the tests run as root");
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
            mount(Some(dir), dir, NONE, MsFlags::MS_BIND, NONE).unwrap();
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NONE, dir, NONE, flags, NONE).unwrap();
            look();
        });
    });
}

/// A lock held as another process would.
pub struct Writing(#[allow(dead_code)] Flock<File>);

impl Writing {
    pub fn shared(path: &Path) -> Writing {
        Writing(Flock::lock(File::open(path).unwrap(), FlockArg::LockShared).map_err(|(_, e)| e).unwrap())
    }
}
