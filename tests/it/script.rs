//! `--plan script`: what the script makes is what the binary makes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::env::{Loop, Mounted, Ran, System, TestEnv, digest, fixture, sh_word, small_system, text, tool};
use crate::real_nix;

/// Prints the script of a command into a file, and has it judged by those who know shells. It finds no programs
/// but those whose presence it checks.
#[track_caller]
fn script(env: &TestEnv, words: &[String]) -> PathBuf {
    let file = env.path("plan.sh");
    let printed = env.run(words).ok().stdout;
    fs::write(&file, &printed).unwrap();
    tool("shellcheck", &["--shell", "sh", text(&file)]);
    tool("dash", &["-n", text(&file)]);
    let path = printed.lines().find(|line| line.starts_with("PATH=")).unwrap();
    let programs = programs(env, &printed);
    fs::write(&file, printed.replace(path, &format!("PATH={}", sh_word(text(&programs))))).unwrap();
    file
}

/// Makes a directory of the programs that a script checks for.
fn programs(env: &TestEnv, script: &str) -> PathBuf {
    let dir = env.path("programs");
    fs::create_dir_all(&dir).unwrap();
    let list = script.lines().find_map(|line| line.trim().strip_prefix("for program in ")).unwrap();
    for name in list.trim_end_matches("; do").split(' ').filter(|name| !name.contains('/')) {
        let found = tool("sh", &["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}")]);
        let link = dir.join(name);
        if !link.is_symlink() {
            symlink(found, link).unwrap();
        }
    }
    dir
}

/// Runs a script with dash, without a terminal and without any help from the environment.
fn run(script: &Path, words: &[&str]) -> Ran {
    let mut command = Command::new("/bin/dash");
    command.arg(script).args(words).env_clear().current_dir("/").stdin(Stdio::null());
    Ran::new(format!("{command:?}"), command.output().unwrap())
}

/// What a file system knows about a file, and what is in it.
#[derive(Debug, PartialEq)]
struct Entry {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    contents: String,
    /// In the store.
    modified: Option<(i64, i64)>,
    /// Of files with something in them: names that share one inode have the first of them here.
    same_as: Option<String>,
}

/// Lists all that is in a root, by its path.
fn list(root: &Path) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    let mut inodes: BTreeMap<u64, String> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                left.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let kind = meta.file_type();
        assert!(!kind.is_block_device() && !kind.is_char_device(), "{name} is a device");
        let contents = match kind {
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            kind if kind.is_file() => digest(&path),
            _ => String::new(),
        };
        let same_as = (kind.is_file() && meta.len() > 0)
            .then(|| inodes.entry(meta.ino()).or_insert_with(|| name.clone()).clone());
        let entry = Entry {
            kind: if kind.is_dir() {
                'd'
            } else if kind.is_symlink() {
                'l'
            } else {
                'f'
            },
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            contents,
            modified: name.starts_with("nix/store/").then(|| (meta.mtime(), meta.mtime_nsec())),
            same_as,
        };
        entries.insert(name, entry);
    }
    entries
}

/// What nix-store makes whenever it opens a store, and the binary leaves to it.
const MADE_BY_NIX: [&str; 4] = [
    "nix/store/.links",
    "nix/var/nix/db/reserved",
    "nix/var/nix/gcroots/per-user/root",
    "nix/var/nix/profiles/per-user/root",
];
// Compared by what Nix says about them, for when a path was registered is in it.
const DATABASE: &str = "nix/var/nix/db/db.sqlite";

#[track_caller]
fn assert_same_files(by_script: &Path, by_binary: &Path, fresh: &[&str]) {
    let [mut script, mut binary] = [by_script, by_binary].map(list);
    for made in MADE_BY_NIX {
        script.remove(made);
    }
    for files in [&mut script, &mut binary] {
        assert!(files.len() > 10, "there is hardly anything");
        for name in [&[DATABASE], fresh].concat() {
            let entry = files.get_mut(name).unwrap_or_else(|| panic!("{name} is missing"));
            entry.contents = String::new();
        }
    }
    for name in script.keys().chain(binary.keys()) {
        assert_eq!(script.get(name), binary.get(name), "{name}, by the script and by the binary");
    }
}

#[track_caller]
fn assert_same_to_nix(by_script: &Path, by_binary: &Path, toplevel: &str) {
    let database = |root: &Path| {
        let (dump, _) = real_nix::registration(root, toplevel);
        let mut lines: Vec<String> = dump.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(database(by_script), database(by_binary), "nix-store --dump-db");
    assert_eq!(real_nix::objects(by_script), real_nix::objects(by_binary));
    real_nix::assert_clean(by_script);
}

/// The table without its ids, which are fresh.
fn table(image: &Path) -> String {
    let dump = tool("sfdisk", &["--dump", text(image)]).replace(text(image), "");
    let lines = dump.lines().filter(|line| !line.starts_with("label-id:") && !line.starts_with("device:"));
    let without_id = |line: &str| {
        let words = line.split(", ").filter(|word| !word.starts_with("uuid="));
        words.collect::<Vec<_>>().join(", ")
    };
    lines.map(without_id).collect::<Vec<_>>().join("\n")
}

/// Where a partition of an image starts and how large it is, in bytes.
fn place(image: &Path, number: usize) -> (u64, u64) {
    let dump = tool("sfdisk", &["--dump", text(image)]);
    let line = dump.lines().filter(|line| line.contains("start=")).nth(number - 1).unwrap();
    let field = |name: &str| -> u64 {
        let rest = line.split_once(name).unwrap().1;
        rest.split(',').next().unwrap().trim().parse().unwrap()
    };
    (field("start=") * 512, field("size=") * 512)
}

/// Mounts a partition of an image.
fn mounted(env: &TestEnv, image: &Path, number: usize, name: &str) -> Mounted {
    let (start, size) = place(image, number);
    let options = format!("loop,offset={start},sizelimit={size}");
    Mounted::new(&["-o", &options, text(image)], env.path(name))
}

/// The part of the first sector that is code, and nothing of the table.
fn boot_code(image: &Path) -> Vec<u8> {
    let mut code = vec![0; 440];
    fs::File::open(image).unwrap().read_exact(&mut code).unwrap();
    code
}

#[track_caller]
fn assert_nothing_is_left(env: &TestEnv) {
    let attached = tool("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
    assert!(!attached.contains(text(&env.path(""))), "a loop device is left: {attached}");
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains("/run/nixos-install-via."), "left mounted: {mounts}");
}

#[test]
fn the_script_makes_the_disk_that_the_binary_makes() {
    let env = TestEnv::new();
    let system = fixture("bios");
    let new = |name: &'static str| ["--image-size", "3G", name];
    let file = script(
        &env,
        &system.words("install-to-disk", &[&["--plan", "script"], &new("script.img")[..]].concat()),
    );
    let sfdisk = env.path("programs/sfdisk");
    let found = fs::read_link(&sfdisk).unwrap();
    fs::remove_file(&sfdisk).unwrap();
    run(&file, &["--yes"]).refused().says_a_sentence().stderr_has("sfdisk is missing; put it into PATH");
    symlink(found, sfdisk).unwrap();
    let ran = run(&file, &["--yes"]).ok();
    for title in ["Format partition 2", "Install GRUB for BIOS", "done: "] {
        assert!(ran.stderr.contains(title), "{ran}");
    }
    assert_nothing_is_left(&env);
    run(&file, &["--yes"]).refused().stderr_has("is there already");
    env.run(system.words("install-to-disk", &new("binary.img"))).ok();

    let images = ["script.img", "binary.img"].map(|name| env.path(name));
    assert_eq!(table(&images[0]), table(&images[1]));
    assert!(boot_code(&images[0]) == boot_code(&images[1]), "the boot code differs");
    let roots = ["by-script", "by-binary"];
    let roots = [0, 1].map(|index| mounted(&env, &images[index], 2, roots[index]));
    let fresh = [
        // GRUB looks for the root by its UUID, which is fresh, in its configuration and in what it loads that with.
        "boot/grub/grub.cfg",
        "boot/grub/i386-pc/load.cfg",
        "boot/grub/i386-pc/core.img",
    ];
    assert_same_files(&roots[0].0, &roots[1].0, &fresh);
    assert_same_to_nix(&roots[0].0, &roots[1].0, &system.toplevel);
}

#[test]
fn a_script_that_is_interrupted_stops_at_once_and_leaves_nothing() {
    // Ctrl-C in the copy, and a shutdown in the fence, whose first process hears of no signal by itself.
    for (moment, signal, status, not_reached) in
        [("Copy and check", "INT", 130, "Register"), ("setting up /etc", "TERM", 143, "activation ended")]
    {
        let env = TestEnv::new();
        let words =
            fixture("bios").words("install-to-disk", &["--plan", "script", "--image-size", "3G", "disk.img"]);
        let file = script(&env, &words);
        let mut command = Command::new("env");
        // No shell can trap what was ignored when it was started, as Ctrl-C is of what runs in the background.
        command.args(["--default-signal=INT,TERM", "dash"]);
        // As the terminal does: to the script and to what it runs.
        command.arg(&file).arg("--yes").process_group(0).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut rest = lines.skip_while(|line| !line.contains(moment));
        assert!(rest.next().is_some(), "it did not come to {moment:?}");
        tool("kill", &["-s", signal, "--", &format!("-{}", child.id())]);
        let said: Vec<String> = rest.collect();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{said:?}");
        assert!(!said.iter().any(|line| line.contains(not_reached)), "it went on: {said:?}");
        assert_nothing_is_left(&env);
        let left = tool("ls", &["-A", text(&env.path(""))]);
        assert_eq!(left, "plan.sh\nprograms");
    }
}

#[test]
fn what_the_kernel_cannot_mount_is_known_before_anything_is_written() {
    let env = TestEnv::new();
    let images = ["script.img", "binary.img"].map(|name| env.image(name, 3072));
    let empty = digest(&images[0]);
    let words = |more: &[&str]| fixture("uefi").words("install-to-disk", more);
    let file = script(&env, &words(&["--plan", "script", "script.img"]));
    // Which of both it is depends on this machine's kernel, which now has loaded what it has.
    let by_binary = env.run(words(&["binary.img"]));
    let by_script = run(&file, &["--yes"]);
    if by_binary.code() == Some(0) {
        by_script.ok();
    } else {
        by_script.refused().stderr_has("cannot mount vfat");
        assert_eq!(digest(&images[0]), empty);
    }
}

#[test]
fn every_form_of_the_script_is_good_shell() {
    let env = TestEnv::new();
    // This machine may lack vfat, so it is read and not run.
    for more in [&[][..], &["--efi-variables"], &["--extra-files", "."]] {
        let words = [&["--plan", "script", "--image-size", "3G", "disk.img"], more].concat();
        let file = script(&env, &fixture("uefi").words("install-to-disk", &words));
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains("mkfs.vfat -F 32 -n ESP"), "{text}");
        assert_eq!(text.contains("mount -t efivarfs"), more.contains(&"--efi-variables"));
        assert!(!text.contains("KEY_FILE"));
    }
    let words = ["--plan", "script", "--image-size", "3G", "disk.img"];
    let text = fs::read_to_string(script(&env, &fixture("luks").words("install-to-disk", &words))).unwrap();
    assert!(text.contains("luksFormat --batch-mode --type=luks2") && text.contains("KEY_FILE"), "{text}");
}

#[test]
fn the_script_makes_the_directory_that_the_binary_makes() {
    let env = TestEnv::new();
    let system = small_system(env.path("source"));
    let extra = env.path("extra");
    fs::create_dir_all(extra.join("root")).unwrap();
    fs::write(extra.join("root/secret"), "word").unwrap();
    tool("chmod", &["600", text(&extra.join("root/secret"))]);
    tool("chmod", &["700", text(&extra)]);
    let words = |dir: &str, more: &[&str]| {
        system.words("install-to-dir", &[more, &["--extra-files", text(&extra), dir]].concat())
    };
    // As hard to name as a directory can be that a person would still make.
    let dirs = ["it's \"mine\" $HOME", "binary"];
    let file = script(&env, &words(dirs[0], &["--plan", "script"]));
    run(&file, &["--yes"]).ok();
    assert_nothing_is_left(&env);
    run(&file, &["--yes"]).refused().stderr_has("not empty");
    env.run(words(dirs[1], &[])).ok();
    // Nix reads such a name otherwise.
    let [by_script, by_binary] = [env.path("by-script"), env.path(dirs[1])];
    fs::rename(env.path(dirs[0]), &by_script).unwrap();
    assert_same_files(&by_script, &by_binary, &[]);
    assert_same_to_nix(&by_script, &by_binary, &system.toplevel);
    // Each knows what the other made.
    env.run(words("by-script", &[])).ok();
    env.run(words("by-script", &["--plan", "script"])).refused().says_a_sentence();
}

#[test]
fn a_changed_byte_stops_the_script_before_there_is_a_profile() {
    let env = TestEnv::new();
    let system = small_system(env.path("source"));
    let file = script(&env, &system.words("install-to-dir", &["--plan", "script", "target"]));
    let odd = fs::read_link(system.root.join(system.toplevel.trim_start_matches('/')).join("odd")).unwrap();
    let changed = system.root.join(odd.strip_prefix("/").unwrap()).join("case");
    fs::write(&changed, "casf").unwrap();
    run(&file, &["--yes"]).failed().stderr_has(odd.to_str().unwrap());
    assert!(!env.path("target/nix/var/nix/profiles/system").is_symlink());
    assert_nothing_is_left(&env);
    // An unfinished directory is the binary's to complete.
    fs::write(&changed, "case").unwrap();
    env.run(system.words("install-to-dir", &["target"])).ok();
}

/// Names with all that a shell could trip over.
const LAYOUT: &str = r#"{"disks": {"main": {"partitions": [
    {"name": "boot \"code\" $x", "type": "bios-boot", "size": "1M", "attributes": [2, 59]},
    {"name": "it's swap", "type": "swap", "size": "8M", "content": {"type": "swap", "label": "sw ap'\"$(x)"}},
    {"name": "home", "type": "home", "size": "200M", "content": {"type": "btrfs", "label": "-h o'm\"e",
        "uuid": "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80", "subvolumes": [
        {"path": "@/ne sted/home", "mountpoint": "/home"}, {"path": "@", "mountpoint": "/srv/a"}]}},
    {"name": "log", "type": "linux", "size": "310M", "content": {"type": "filesystem", "format": "xfs", "mountpoint": "/var/log"}},
    {"name": "root", "type": "root", "size": "100%", "content": {"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}]}}}"#;

#[test]
fn odd_names_reach_the_disk_and_a_disk_in_use_is_refused() {
    let env = TestEnv::new();
    let system = fixture("bios");
    fs::write(env.path("layout.json"), LAYOUT).unwrap();
    let words =
        |more: &[&str]| system.words("install-to-disk", &[&["--layout", "layout.json"], more].concat());
    let [by_script, by_binary] = ["script.img", "binary.img"].map(|name| env.image(name, 3072));
    let disk = Loop::new(&by_script, &[]);
    let file = script(&env, &words(&["--plan", "script", disk.name()]));

    tool("mke2fs", &["-q", "-F", disk.name()]);
    let point = env.path("mnt");
    fs::create_dir(&point).unwrap();
    let before = digest(&by_script);
    // Mounted where no other test's namespace takes it along and keeps it.
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-euc", r#"mount -o ro "$1" "$2"; exec dash "$3" --yes"#, "sh", disk.name()])
        .args([&point, &file])
        .output();
    Ran::new("the script on a mounted disk".into(), output.unwrap()).refused().stderr_has(text(&point));
    run(&file, &[]).refused().stderr_has("--yes");
    let above = Loop::new(&disk.device, &[]);
    run(&file, &["--yes"]).refused().stderr_has("loop");
    drop(above);
    assert_eq!(digest(&by_script), before, "a refused disk changed");

    run(&file, &["--yes"]).ok();
    drop(disk);
    assert_nothing_is_left(&env);
    env.run(words(&["binary.img"])).ok();
    assert_eq!(table(&by_script), table(&by_binary));
    let names = |image: &Path| {
        let words =
            ["--probe", "--match-tag", "LABEL", "--match-tag", "TYPE", "--output", "value", "--offset"];
        [2, 3, 4, 5].map(|number| {
            let start = place(image, number).0.to_string();
            tool("blkid", &[&words[..], &[&start, text(image)]].concat()).replace('\n', " ")
        })
    };
    assert_eq!(names(&by_script), ["sw ap'\"$(x) swap", "-h o'm\"e btrfs", "xfs", "nixos ext4"]);
    assert_eq!(names(&by_binary), names(&by_script));
}

#[test]
fn a_disk_of_another_size_or_read_only_is_refused() {
    let env = TestEnv::new();
    let System { root, toplevel } = fixture("bios");
    let image = env.image("disk.img", 3072);
    let words = ["install-to-disk", "--plan", "script", "--from", text(&root), "--system", &toplevel];
    let words =
        |disk: &str| [&words[..], &[disk]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let disk = Loop::new(&image, &[]);
    let file = script(&env, &words(disk.name()));
    let planned = fs::read_to_string(&file).unwrap();
    for (mib, options, word) in [(4096, &[][..], "bytes large"), (3072, &["--read-only"], "read-only")] {
        let other = Loop::new(&env.image("other.img", mib), options);
        // The name now belongs to another disk.
        let target = |name: &str| format!("target={name}\n");
        fs::write(&file, planned.replace(&target(disk.name()), &target(other.name()))).unwrap();
        run(&file, &["--yes"]).refused().stderr_has(word);
    }
}
