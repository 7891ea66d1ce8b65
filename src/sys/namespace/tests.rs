//! What a fence keeps in, and what it keeps out.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};

use super::testing::{BUSYBOX, root, script};
use super::*;
use crate::wait;

fn said(fence: &Fence, text: &str) -> String {
    let (output, code) = script(fence, text);
    assert_eq!(code, 0, "{text}: {output}");
    output.trim_end().to_owned()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    wait::until(what, || condition().then_some(()));
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
        (Path::new("/"), BUSYBOX, BROKEN, "error: entering /: it is the running system itself\n".to_owned()),
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
    assert!(error.ends_with("not permitted; run as root, and not in an unprivileged container\n"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn dev_holds_the_devices_named_and_no_others() {
    let root = root();
    let disk = nix::sys::stat::makedev(7, 250);
    let part = nix::sys::stat::makedev(7, 251);
    let node =
        |names: &[&str], rdev| DeviceNode { names: names.iter().map(|&name| name.into()).collect(), rdev };
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
                said(&Fence::around(root.path()), "$b cat /boot/kernel; $b grep -c ' /boot ' /proc/mounts"),
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
    // If it waited for them, that would be a day.
    let text =
        said(&fence, "for i in 1 2 3; do ( $b sleep 86477.5 >/dev/null 2>&1 & ); ( : & ); done; echo done");
    assert_eq!(text, "done");
    wait_until("no orphan is left", || processes_with("86477.5").is_empty());
}

fn processes_with(word: &str) -> Vec<i32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() as i32 && line.split(|&byte| byte == 0).any(|part| part == word.as_bytes())
    };
    pids.filter(has).collect()
}

#[test]
fn killing_any_process_of_the_fence_leaves_none_and_no_mount() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for victim in 0..2 {
        let root = root();
        let word = format!("8647{victim}.25");
        let fence = Fence::around(root.path());
        let mut child = fence
            .command(BUSYBOX, ["sh", "-c", &format!("/bin/busybox sleep {word} & /bin/busybox sleep {word}")])
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
        drop(fence.command(BUSYBOX, ["sleep", "86476.75"]).stdin(Stdio::null()).spawn().unwrap());
        // Outside, PID 1, and the program.
        wait_until("it sleeps", || processes_with("86476.75").len() == 3);
    })
    .join()
    .unwrap();
    wait_until("nothing is left", || processes_with("86476.75").is_empty());
    assert!(path.exists());
}

#[test]
fn settings_that_are_not_ours_are_refused() {
    let error = outside(["{}".into(), "/".into()]).unwrap_err().to_string();
    assert_eq!(error, "reading the fence's settings");
}
