//! `install-to-disk` says no: to disks in use, to what is no disk, to layouts that make no sense.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::env::{BINARY, Loop, Mounted, Ran, System, TestEnv, digest, fixture, small_system, text, tool};

/// Runs `install-to-disk --yes` on a disk of ours, which has to stay as it is.
#[track_caller]
fn refuse(env: &TestEnv, image: &Path, device: &str) -> Ran {
    let system = fixture("uefi");
    let before = digest(image);
    let ran = env.run(system.words("install-to-disk", &[device])).refused().says_a_sentence();
    assert_eq!(digest(image), before, "the disk changed");
    ran
}

#[test]
fn a_mounted_disk_is_refused_with_its_mount_point() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 64);
    tool("mke2fs", &["-q", "-F", text(&image)]);
    let (disk, mountpoint) = (Loop::new(&image, &[]), env.path("mnt"));
    let mounted = Mounted::new(&["-o", "ro", disk.name()], mountpoint);
    refuse(&env, &image, disk.name()).stderr_has(text(&mounted.0));
}

#[test]
fn a_disk_that_is_swapped_to_is_refused() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 64);
    // Swap refuses files with holes; a loop device hides them, but not from later writes.
    fs::write(&image, vec![0; 64 << 20]).unwrap();
    tool("mkswap", &[text(&image)]);
    let disk = Loop::new(&image, &[]);
    tool("swapon", &[disk.name()]);
    let swap = Swap(disk.name());
    refuse(&env, &image, disk.name()).stderr_has("swap");
    drop(swap);
}

/// Swap space that goes with the value.
struct Swap<'a>(&'a str);

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        Command::new("swapoff").arg(self.0).status().ok();
    }
}

#[test]
fn a_disk_below_a_loop_device_is_refused() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 64);
    let below = Loop::new(&image, &[]);
    let above = Loop::new(&below.device, &[]);
    refuse(&env, &image, below.name()).stderr_has(above.device.file_name().unwrap().to_str().unwrap());
}

#[test]
fn an_image_that_a_loop_device_holds_is_refused() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 64);
    let _disk = Loop::new(&image, &[]);
    refuse(&env, &image, text(&image)).stderr_has("loop");
}

#[test]
fn an_image_is_known_under_whatever_name_it_is_held() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 64);
    fs::hard_link(&image, env.path("other.img")).unwrap();
    let _disk = Loop::new(&env.path("other.img"), &[]);
    refuse(&env, &image, text(&image)).stderr_has("loop");
}

#[test]
fn what_a_program_has_open_is_refused_by_its_name() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 64);
    let holding = |path: &Path| {
        let file = fs::File::open(path).unwrap();
        Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap()
    };
    let disk = Loop::new(&env.image("other.img", 64), &[]);
    for (image, target) in [(&image, text(&image)), (&env.path("other.img"), disk.name())] {
        let mut program = holding(Path::new(target));
        let named = format!("is open in sleep (process {})", program.id());
        refuse(&env, image, target).stderr_has(&named);
        program.kill().unwrap();
        program.wait().unwrap();
    }
}

#[test]
fn a_disk_that_is_not_as_it_was_shown_is_left_alone() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 3072);
    let System { root, toplevel } = fixture("bios");
    let line = format!("'{BINARY}' install-to-disk --from '{}' --system {toplevel} disk.img", root.display());
    let mut run = Command::new("script");
    run.args(["-qec", &line, "/dev/null"]).current_dir(env.path(""));
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut output, mut said) = (run.stdout.take().unwrap(), Vec::new());
    while !String::from_utf8_lossy(&said).contains("to go on:") {
        let mut block = [0; 1024];
        let count = output.read(&mut block).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&block[..count]);
    }
    // Somebody else was faster.
    let disk = fs::File::options().write(true).open(&image).unwrap();
    disk.write_all_at(b"another table", 512).unwrap();
    drop(disk);
    let before = digest(&image);
    run.stdin.as_mut().unwrap().write_all(b"disk.img\n").unwrap();
    output.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(run.wait().unwrap().code(), Some(3), "{said}");
    assert!(said.contains("somebody has written to it"), "{said}");
    assert_eq!(digest(&image), before);
}

#[test]
fn what_the_loader_reads_from_outside_the_store_is_asked_for_before_the_disk_is_touched() {
    let env = TestEnv::new();
    let System { root, toplevel } = small_system(env.path("root"));
    let secrets = root.join(&toplevel[1..]).join("append-initrd-secrets");
    fs::write(secrets, "cp -a /etc/secrets/initrd/key \"$tmp/.initrd-secrets//etc/key\"\n").unwrap();
    fs::create_dir_all(env.path("extra/etc/secrets/initrd")).unwrap();
    let words = |extra: &[&str]| {
        let words = ["install-to-disk", "--dry-run", "--from", text(&root), "--system", &toplevel];
        let image = ["--image-size", "2G", "new.img"];
        words.iter().chain(&image).chain(extra).map(|word| word.to_string()).collect::<Vec<_>>()
    };
    for extra in [&[][..], &["--extra-files", "extra"]] {
        let ran = env.run(words(extra)).refused().says_a_sentence();
        ran.stderr_has("append-initrd-secrets reads /etc/secrets/initrd/key").stderr_has("--extra-files");
    }
    fs::write(env.path("extra/etc/secrets/initrd/key"), "secret").unwrap();
    env.run(words(&["--extra-files", "extra"])).ok();
}

#[test]
fn a_read_only_disk_is_refused() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 3072);
    let disk = Loop::new(&image, &["--read-only"]);
    refuse(&env, &image, disk.name()).stderr_has("read-only");
}

#[test]
fn a_disk_too_small_is_refused_with_both_sizes() {
    let env = TestEnv::new();
    // One that does not hold its table, and one whose root would not hold the system.
    for (mib, word) in [(8, "8 MiB"), (512, "partition root")] {
        let image = env.image("disk.img", mib);
        let disk = Loop::new(&image, &[]);
        let ran = refuse(&env, &image, disk.name()).stderr_has(word);
        assert!(ran.stderr.matches("MiB").count() >= 2, "{ran}");
    }
}

/// The disk that this machine runs from. Asked for its plan only, and without leave to act.
#[test]
fn the_disk_this_machine_runs_from_is_refused() {
    let env = TestEnv::new();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut sources = mountinfo.lines().filter_map(|line| line.split(" - ").nth(1)?.split(' ').nth(1));
    let Some(disk) = sources.find(|source| Path::new(source).exists() && source.starts_with("/dev/")) else {
        panic!("this machine runs from no disk, so there is none to refuse");
    };
    let System { root, toplevel } = fixture("uefi");
    let words = ["install-to-disk", "--dry-run", "--from", text(&root), "--system", &toplevel, disk];
    env.run(words).refused().says_a_sentence();
}

#[test]
fn an_image_that_its_file_system_could_not_hold_is_not_begun() {
    let env = TestEnv::new();
    let small = Mounted::new(&["-t", "tmpfs", "-o", "size=64M", "small"], env.path("small"));
    let there = small.0.join("there.img");
    fs::File::create(&there).and_then(|file| file.set_len(3 << 30)).unwrap();
    for words in [&["--image-size", "3G", "small/new.img"][..], &["small/there.img"]] {
        let ran = env.run(fixture("uefi").words("install-to-disk", words)).refused().says_a_sentence();
        ran.stderr_has("has room for 64 MiB, but the system needs");
    }
    assert_eq!(fs::metadata(&there).unwrap().blocks(), 0);
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 1);
}

#[test]
fn what_is_no_disk_is_refused() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    fs::create_dir(env.path("directory")).unwrap();
    for target in ["directory", "/dev/null", "absent.img", "/dev/absent"] {
        let ran = env.run(system.words("install-to-disk", &[target])).says_a_sentence().stderr_has(target);
        assert!(matches!(ran.code(), Some(2 | 3)), "{ran}");
    }
    assert!(!env.path("absent.img").exists());
}

#[test]
fn a_layout_that_makes_no_sense_is_refused_by_name() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 3072);
    let disk = Loop::new(&image, &[]);
    let system = fixture("uefi");
    let esp = r#"{"name":"ESP","type":"esp","size":"256M","content":{"type":"filesystem","format":"vfat","label":"ESP","mountpoint":"/boot"}}"#;
    let root = r#"{"name":"root","type":"root","size":"100%","content":{"type":"filesystem","format":"ext4","label":"nixos","mountpoint":"/"}}"#;
    let main = |partitions: &str| format!(r#"{{"disks":{{"main":{{"partitions":[{partitions}]}}}}}}"#);
    for (layout, word) in [
        ("not json".to_owned(), "layout.json"),
        ("{}".to_owned(), "disks"),
        (main(""), "/"),
        (main(esp), "/"),
        (main(&format!("{esp},{}", root.replace("nixos", "other"))), "nixos"),
        (main(&format!("{esp},{}", root.replace("ext4", "zfs"))), "zfs"),
        (main(&format!("{esp},{}", root.replace("100%", "1T"))), "TiB"),
        (main(&format!("{esp},{}", root.replace("100%", "5X"))), "5X"),
        (main(&format!("{},{root}", esp.replace("256M", "16M"))), "kernel, initrd and boot loader need"),
        (main(&format!("{root},{root}")), "root"),
        (main(&format!("{esp},{}", root.replace("\"mountpoint\"", "\"mount\""))), "mount"),
    ] {
        let file = env.path("layout.json");
        fs::write(&file, &layout).unwrap();
        let ran = env.run(system.words("install-to-disk", &["--layout", text(&file), disk.name()]));
        let ran = ran.says_a_sentence().stderr_has(word);
        assert!(matches!(ran.code(), Some(1..=3)), "{ran}");
        assert_eq!(fs::metadata(&image).map(|meta| meta.blocks()).unwrap(), 0, "{layout} was written: {ran}");
    }
}

#[test]
fn without_a_terminal_it_wants_yes() {
    let env = TestEnv::new();
    let image = env.image("disk.img", 3072);
    let disk = Loop::new(&image, &[]);
    let System { root, toplevel } = fixture("uefi");
    let words = ["install-to-disk", "--from", text(&root), "--system", &toplevel, disk.name()];
    let before = digest(&image);
    env.run(words).refused().says_a_sentence().stderr_has("--yes");
    assert_eq!(digest(&image), before);
}

#[test]
fn unknown_options_and_missing_words_are_misuse() {
    let env = TestEnv::new();
    for words in [
        &["install-to-disk"][..],
        &["install-to-dir"],
        &["install-to-disk", "--force", "/dev/absent"],
        &["install-to-disk", "--image-size", "huge", "x.img"],
        &["install-to-dir", "--plan", "poem", "x"],
        &["install-to-dir", "one", "two"],
        &["fly"],
        &[],
    ] {
        env.run(words).misused();
    }
}

#[test]
fn the_name_it_is_called_by_is_a_command() {
    let env = TestEnv::new();
    let name = env.path("install-to-disk");
    std::os::unix::fs::symlink(BINARY, &name).unwrap();
    let output = Command::new(&name).arg("--help").output().unwrap();
    Ran::new("install-to-disk --help".into(), output).ok().stdout_has("DISK|IMAGE");
}
