//! Initrds of tests: busybox as every tool, programs with their libraries, modules, and a script that is the first process.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nixos_install_via::sys::unpack;

use crate::env::{System, tool};
use crate::vm::{Machine, Start};

// What every such script begins with.
const BEGIN: &str = "#!/bin/busybox sh
    export PATH=/bin HOME=/
    /bin/busybox --install -s /bin
    mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
    mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
";

/// The initrd of a machine with the kernel of a system, in the making.
pub struct Initrd {
    dir: PathBuf,
    kernel: PathBuf,
    /// The directory of that kernel's modules.
    modules: PathBuf,
    load: String,
}

impl Initrd {
    /// Begins one in an empty directory, which it fills.
    pub fn new(system: &System, dir: PathBuf) -> Initrd {
        let inside = |name: &str| follow(&system.root, &format!("{}/{name}", system.toplevel));
        let modules = inside("kernel-modules").join("lib/modules");
        let version = fs::read_dir(modules).unwrap().next().expect("the kernel has modules").unwrap().path();
        let initrd = Initrd {
            dir: dir.join("initrd"),
            kernel: inside("kernel"),
            modules: version,
            load: String::new(),
        };
        for dir in ["bin", "proc", "sys", "dev", "run", "tmp", "modules"] {
            fs::create_dir_all(initrd.dir.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", initrd.dir.join("bin/busybox")).expect("busybox-static is installed");
        initrd
    }

    /// Adds a file.
    pub fn file(self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Initrd {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        self
    }

    /// Adds a program, without what says of lines in files, and what it needs by the word of `ldd`.
    pub fn program(self, name: &str, program: &Path) -> Initrd {
        let copy = self.dir.join("bin").join(name);
        fs::copy(program, &copy).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        tool("strip", &[copy.to_str().unwrap()]);
        let output = Command::new("ldd").arg(program).output().expect("libc has ldd");
        let text = String::from_utf8(output.stdout).unwrap();
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let copy = self.dir.join(&library[1..]);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(library, copy).unwrap();
        }
        self
    }

    /// Adds modules and those that they need, all of which are loaded first of all.
    pub fn modules(mut self, names: &[&str]) -> Initrd {
        let text = fs::read_to_string(self.modules.join("modules.dep")).unwrap();
        let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(':')).collect();
        for name in names {
            let is_it = |path: &str| path.rsplit('/').next() == Some(&format!("{name}.ko.xz"));
            let (path, needs) =
                lines.iter().find(|(path, _)| is_it(path)).unwrap_or_else(|| panic!("{name}"));
            // Each stands before those that it needs.
            for path in needs.split_whitespace().rev().chain([*path]) {
                let copy = format!("modules/{}", path.rsplit('/').next().unwrap().trim_end_matches(".xz"));
                if !self.dir.join(&copy).exists() {
                    fs::write(self.dir.join(&copy), unpack::read(&self.modules.join(path)).unwrap()).unwrap();
                    self.load += &format!("insmod /{copy}\n");
                }
            }
        }
        self
    }

    /// A machine that starts it, and in it this script as the first process.
    pub fn machine(self, script: &str) -> Machine {
        let init = format!("{BEGIN}{}{script}", self.load);
        let Initrd { dir, kernel, .. } = self.file("init", 0o755, init);
        let initrd = dir.with_extension("cpio");
        let mut cpio = Command::new("sh");
        cpio.args(["-c", "find . | busybox cpio -o -H newc"]).current_dir(&dir).stderr(Stdio::null());
        assert!(cpio.stdout(File::create(&initrd).unwrap()).status().unwrap().success());
        let parameters = "console=ttyS0 quiet panic=-1".to_owned();
        Machine::new(Start::Kernel { kernel, initrd, parameters })
    }
}

/// Resolves links of a system's store within its root.
fn follow(root: &Path, path: &str) -> PathBuf {
    let within = |path: &Path| root.join(path.strip_prefix("/").expect("links of a toplevel are absolute"));
    let mut path = within(Path::new(path));
    while let Ok(target) = fs::read_link(&path) {
        path = within(&target);
    }
    path
}
