//! `install-to-dir --archive`, unpacked by GNU tar and compared with what `install-to-dir` makes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{BINARY, Ran, System, TestEnv, fixture, in_root, sh_word, small_system, text, tool};
use crate::real_nix;

struct World {
    env: TestEnv,
    system: System,
}

impl World {
    fn new() -> World {
        let env = TestEnv::new();
        let system = small_system(env.path("source"));
        World { env, system }
    }

    #[track_caller]
    fn archive(&self, name: &str, more: &[&str]) -> Ran {
        let path = self.env.path(name);
        self.env.run(self.system.words("install-to-dir", &[&["--archive", text(&path)], more].concat()))
    }

    #[track_caller]
    fn unpack(&self, name: &str) -> std::path::PathBuf {
        let dir = self.env.path(&format!("unpacked-{name}"));
        fs::create_dir(&dir).unwrap();
        tool("tar", &["--numeric-owner", "-xpf", text(&self.env.path(name)), "-C", text(&dir)]);
        dir
    }

    /// Neither the archive nor any other file is left under its name or beside it.
    #[track_caller]
    fn assert_nothing_left(&self, dir: &Path) {
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().contains(".tar")), "{names:?}");
    }
}

/// Names, kinds, modes, owners, sizes and link targets; times too in the store.
fn listing(root: &Path) -> Vec<String> {
    let all = tool("find", &[text(root), "-printf", "%P %y %m %U:%G %l\\0"]);
    let store =
        tool("find", &[text(&root.join("nix/store")), "-mindepth", "1", "-printf", "%P %T@ %n %s\\0"]);
    let mut lines: Vec<String> = all.split('\0').chain(store.split('\0')).map(String::from).collect();
    lines.sort();
    lines
}

#[track_caller]
fn assert_same_root(unpacked: &Path, dir: &Path, system: &System) {
    let (here, there) = (listing(unpacked), listing(dir));
    let more: Vec<_> = here.iter().filter(|line| !there.contains(line)).collect();
    let less: Vec<_> = there.iter().filter(|line| !here.contains(line)).collect();
    let toplevel = &system.toplevel;
    assert_eq!(less, [""; 0], "install-to-dir has these and the archive has not");
    let expected = [
        "etc/os-release f 644 0:0 ".to_owned(),
        "sbin d 755 0:0 ".to_owned(),
        format!("sbin/init l 777 0:0 {toplevel}/init"),
    ];
    assert_eq!(more.iter().map(|line| line.as_str()).collect::<Vec<_>>(), expected);
    let contents = |root: &Path| {
        tool(
            "sh",
            &[
                "-c",
                "cd \"$1/nix/store\" && find . -type f -print0 | sort -z | xargs -0 sha256sum",
                "sh",
                text(root),
            ],
        )
    };
    assert!(contents(unpacked) == contents(dir), "contents of the store");
    let note = |root: &Path| fs::read(root.join("nix/.install-via.json")).unwrap();
    assert_eq!(note(unpacked), note(dir));
    assert_eq!(real_nix::registration(unpacked, toplevel), real_nix::registration(dir, toplevel));
    real_nix::assert_clean(unpacked);
    real_nix::collect_garbage(unpacked);
    assert_eq!(real_nix::objects(unpacked), real_nix::closure(dir, toplevel), "after a garbage collection");
}

#[test]
fn an_archive_holds_what_install_to_dir_makes() {
    let world = World::new();
    for name in ["x.tar.zst", "x.tar"] {
        // Anew, for Nix makes files of its own when it looks.
        let dir = world.env.path(&format!("dir-{name}"));
        world.env.run(world.system.words("install-to-dir", &[text(&dir)])).ok();
        world.archive(name, &[]).ok().stderr_has("is in");
        if name.ends_with(".zst") {
            tool("zstd", &["-tq", text(&world.env.path(name))]);
        }
        let unpacked = world.unpack(name);
        assert_same_root(&unpacked, &dir, &world.system);
        world.env.run(["verify", text(&unpacked)]).ok();
        // It is a directory like any other.
        world
            .env
            .run(world.system.words("deploy-to-dir", &[text(&unpacked)]))
            .ok()
            .stderr_has("nothing to do");
    }
}

#[test]
fn the_links_of_an_optimised_store_stay_links() {
    let world = World::new();
    real_nix::optimise(&world.system.root);
    let dir = world.env.path("dir");
    world.env.run(world.system.words("install-to-dir", &[text(&dir)])).ok();
    world.archive("x.tar.zst", &[]).ok();
    assert_same_root(&world.unpack("x.tar.zst"), &dir, &world.system);
}

#[test]
fn a_real_system_comes_out_of_a_pipe() {
    let env = TestEnv::new();
    let (system, dir, unpacked) = (fixture("uefi"), env.path("dir"), env.path("unpacked"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    fs::create_dir(&unpacked).unwrap();
    let mut ours = env.command(system.words("install-to-dir", &["--archive", "-"]));
    let mut ours = ours.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--zstd", "--numeric-owner", "-xpf", "-", "-C"])
        .arg(&unpacked)
        .stdin(ours.stdout.take().unwrap());
    assert!(tar.status().unwrap().success() && ours.wait().unwrap().success());
    let init = fs::read_link(unpacked.join("sbin/init")).unwrap();
    assert!(in_root(&unpacked, text(&init)).exists(), "{}", init.display());
    env.run(["verify", text(&unpacked)]).ok();
    let objects = |root| real_nix::registration(root, &system.toplevel);
    assert_eq!(objects(&unpacked), objects(&dir));
    real_nix::assert_clean(&unpacked);
}

#[test]
fn the_same_system_makes_the_same_archive() {
    let world = World::new();
    let extra = world.env.path("extra");
    fs::create_dir_all(extra.join("root/.ssh")).unwrap();
    fs::write(extra.join("root/.ssh/authorized_keys"), "ssh-ed25519 key").unwrap();
    for name in ["x.tar.zst", "y.tar.zst"] {
        world.archive(name, &["--extra-files", text(&extra)]).ok();
        // Registration times are in seconds, and are those of the source.
        sleep(Duration::from_millis(1100));
    }
    tool("cmp", &[text(&world.env.path("x.tar.zst")), text(&world.env.path("y.tar.zst"))]);
    let unpacked = world.unpack("x.tar.zst");
    assert_eq!(fs::read_to_string(unpacked.join("root/.ssh/authorized_keys")).unwrap(), "ssh-ed25519 key");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let world = World::new();
    for name in ["x.tar.gz", "x.zip", "x"] {
        world.archive(name, &[]).misused().says_a_sentence().stderr_has(".tar.zst");
    }
    fs::write(world.env.path("taken.tar"), "precious").unwrap();
    world.archive("taken.tar", &[]).refused().says_a_sentence().stderr_has("remove it first");
    assert_eq!(fs::read_to_string(world.env.path("taken.tar")).unwrap(), "precious");
    fs::remove_file(world.env.path("taken.tar")).unwrap();
    let both = world.system.words("install-to-dir", &["--archive", "x.tar", "dir"]);
    world.env.run(both).misused();
    world.env.run(world.system.words("install-to-dir", &[])).misused();
    let inside = world.system.root.join("nix/x.tar");
    world.env.run(world.system.words("install-to-dir", &["--archive", text(&inside)])).refused();
    let json = ["--archive", "-", "--progress", "json"];
    world.env.run(world.system.words("install-to-dir", &json)).misused().says_a_sentence();
    world.archive("x.tar", &["--plan", "script"]).refused().says_a_sentence();
    let plan = world.archive("x.tar", &["--plan", "json"]).ok().stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["purpose"], "archive");
    world.archive("x.tar.zst", &["--dry-run"]).ok().stdout_has("Write and check 6 store paths");
    world.assert_nothing_left(&world.env.path(""));
    assert!(!inside.exists());
}

#[test]
fn a_terminal_gets_no_archive() {
    let world = World::new();
    let words = world.system.words("install-to-dir", &["--archive", "-"]);
    let words = [BINARY.to_owned()].into_iter().chain(words).map(|word| sh_word(&word));
    let line = words.collect::<Vec<_>>().join(" ");
    let output =
        Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let said = Ran::new(line, output).refused();
    assert!(said.stdout.contains("stdout is a terminal") && said.stdout.len() < 1000, "{said}");
}

#[test]
fn a_damaged_path_is_named_and_leaves_no_archive() {
    let world = World::new();
    let file = in_root(&world.system.root, &world.system.toplevel).join("kernel-params");
    tool(
        "sh",
        &[
            "-c",
            r#"chmod u+w "$1" && printf Q | dd of="$1" conv=notrunc status=none && chmod 444 "$1""#,
            "sh",
            text(&file),
        ],
    );
    for name in ["x.tar", "x.tar.zst"] {
        world
            .archive(name, &[])
            .failed()
            .says_a_sentence()
            .stderr_has(&format!("{} is damaged", world.system.toplevel));
    }
    world.assert_nothing_left(&world.env.path(""));
    // A reader of the stream hears of it too.
    let mut ours = world.env.command(world.system.words("install-to-dir", &["--archive", "-"]));
    let output = ours.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    fs::write(world.env.path("cut"), &output.stdout).unwrap();
    let tested = Command::new("zstd").args(["-tq"]).arg(world.env.path("cut")).stderr(Stdio::null()).status();
    assert!(!tested.unwrap().success());
}

#[test]
fn a_full_disk_leaves_nothing() {
    let world = World::new();
    // Incompressible, so that the packed form does not fit either.
    let small = world.env.path("small");
    fs::create_dir(&small).unwrap();
    let script =
        "mount -t tmpfs -o size=200k none small; set +e; \"$@\"; code=$?; ls -A small >left; exit $code";
    for (name, words) in [("x.tar", "make room, or write"), ("x.tar.zst", "No space left")] {
        let path = small.join(name);
        let words_of = world.system.words("install-to-dir", &["--archive", text(&path)]);
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-euc", script, "sh", BINARY])
            .args(words_of)
            .current_dir(world.env.path(""))
            .output()
            .unwrap();
        let ran = Ran::new(name.to_owned(), output);
        assert!(matches!(ran.code(), Some(1 | 3)), "{ran}");
        ran.says_a_sentence().stderr_has(words);
        assert_eq!(fs::read_to_string(world.env.path("left")).unwrap(), "");
    }
}

#[test]
fn an_archive_that_is_interrupted_is_gone() {
    let env = TestEnv::new();
    let (system, part) = (fixture("uefi"), env.path(".x.tar.zst.part"));
    let mut run = env.start(system.words("install-to-dir", &["--archive", "x.tar.zst"]));
    while File::open(&part).map_or(0, |file| file.metadata().unwrap().len()) < 1 << 20 {
        assert!(run.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(run.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_dir(env.path("")).unwrap().count(), 0);
}

#[test]
fn a_killed_run_leaves_no_archive_and_the_next_one_takes_its_file_over() {
    let env = TestEnv::new();
    let (system, path, part) = (fixture("uefi"), env.path("x.tar.zst"), env.path(".x.tar.zst.part"));
    let words = || system.words("install-to-dir", &["--archive", text(&path)]);
    let mut child = env.start(words());
    while File::open(&part).map_or(0, |file| file.metadata().unwrap().len()) < 1 << 20 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        sleep(Duration::from_millis(1));
    }
    // Meanwhile the name is taken.
    env.run(words()).failed().says_a_sentence().stderr_has("another run");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!path.exists() && part.exists());
    env.run(words()).ok();
    tool("zstd", &["-tq", text(&path)]);
    assert!(!part.exists());
}
