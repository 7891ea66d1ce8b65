//! The stories of [`crate::network`] in a machine whose kernel has every kind of links: Debian's, with bonds and VLANs.
//!
//! The machine has this test's own binary, `ip` and busybox, in an initrd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::env::{TestEnv, fixture, tool};
use crate::network::COMPLETE;
use crate::vm::{Machine, Start};

// Each after those that it needs.
const MODULES: [&str; 10] = [
    "net/llc/llc",
    "net/802/stp",
    "net/802/garp",
    "net/802/mrp",
    "net/tls/tls",
    "drivers/net/bonding/bonding",
    "net/8021q/8021q",
    "drivers/net/veth",
    "drivers/net/dummy",
    "net/bridge/bridge",
];
const LIMIT: Duration = Duration::from_secs(900);
const ENDED: &str = "the stories ended with";

#[test]
fn bonds_and_vlans_under_a_kernel_that_has_them() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    let inside = |name: &str| follow(&system.root, &format!("{}/{name}", system.toplevel));
    let root = env.path("initrd");
    for dir in ["bin", "proc", "sys", "dev", "run", "tmp", "modules"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let modules = inside("kernel-modules").join("lib/modules");
    let version = fs::read_dir(modules).unwrap().next().expect("the kernel has modules").unwrap().path();
    let mut load = String::new();
    for (number, module) in MODULES.iter().enumerate() {
        let name = format!("modules/{number}.ko");
        fs::copy(version.join("kernel").join(module).with_extension("ko"), root.join(&name)).unwrap();
        load += &format!("insmod /{name}\n");
    }
    let ip = Path::new("/sbin/ip").canonicalize().expect("iproute2 is installed");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for (program, name) in [(std::env::current_exe().unwrap(), "stories"), (ip, "ip")] {
        with_libraries(&program, &root.join("bin").join(name), &root);
    }
    // What it says of lines in files is not worth sending through an emulated machine.
    tool("strip", &[root.join("bin/stories").to_str().unwrap()]);
    let init = format!(
        "#!/bin/busybox sh
        export PATH=/bin HOME=/ {COMPLETE}=1
        /bin/busybox --install -s /bin
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
        mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
        {load}
        stories network:: --test-threads=1 --nocapture
        echo {ENDED} $?.
        poweroff -f\n"
    );
    fs::write(root.join("init"), init).unwrap();
    let initrd = packed(&root, &env.path("initrd.cpio"));
    let parameters = "console=ttyS0 quiet panic=-1".to_owned();
    let machine = Machine::new(Start::Kernel { kernel: inside("kernel"), initrd, parameters }).start();
    machine.wait_serial(ENDED, LIMIT);
    machine.wait_off(LIMIT);
    let serial = machine.serial();
    assert!(serial.contains(&format!("{ENDED} 0.")), "{serial}");
    assert!(!serial.contains("left out"), "{serial}");
    for story in ["a_vlan", "a_bond_of_which_one_card_works"] {
        assert!(serial.contains(&format!("network::{story} ... ok")), "{serial}");
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

/// Copies a program, what it needs, and modes: all by the word of `ldd`.
fn with_libraries(program: &Path, to: &Path, root: &Path) {
    fs::copy(program, to).unwrap();
    let output = Command::new("ldd").arg(program).output().expect("libc has ldd");
    let text = String::from_utf8(output.stdout).unwrap();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(&library[1..]);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(library, copy).unwrap();
    }
}

fn packed(root: &Path, archive: &Path) -> PathBuf {
    fs::set_permissions(root.join("init"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = "find . | busybox cpio -o -H newc";
    let mut cpio = Command::new("sh");
    cpio.args(["-c", script]).current_dir(root).stderr(Stdio::null());
    let status = cpio.stdout(fs::File::create(archive).unwrap()).status().unwrap();
    assert!(status.success());
    archive.to_owned()
}
