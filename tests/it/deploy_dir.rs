//! `deploy-to-dir`: the next generation of a directory, judged by the real Nix.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::env::{BINARY, Ran, System, TestEnv, in_root, later_system, small_system, text, tool};
use crate::real_nix;
use crate::wait;

const PLATFORM: &str = "x86_64-linux";

/// A directory that holds generation 1, and what it was made from.
struct World {
    env: TestEnv,
    first: System,
    dir: std::path::PathBuf,
}

impl World {
    fn new() -> World {
        let env = TestEnv::new();
        let first = small_system(env.path("source"));
        let dir = env.path("target");
        env.run(first.words("install-to-dir", &[text(&dir)])).ok();
        World { env, first, dir }
    }

    /// A system that differs from the first in three paths.
    fn system(&self, number: u32) -> System {
        later_system(&self.first, number, None, PLATFORM)
    }

    fn words(&self, system: &System, more: &[&str]) -> Vec<String> {
        system.words("deploy-to-dir", &[&[text(&self.dir)], more].concat())
    }

    #[track_caller]
    fn deploy(&self, system: &System, more: &[&str]) -> Ran {
        self.env.run(self.words(system, more))
    }

    fn profile(&self, link: &str) -> Option<String> {
        let target = fs::read_link(self.dir.join("nix/var/nix/profiles").join(link)).ok()?;
        Some(target.display().to_string())
    }

    #[track_caller]
    fn assert_current(&self, number: u32, system: &System) {
        assert_eq!(self.profile("system"), Some(format!("system-{number}-link")));
        assert_eq!(self.profile(&format!("system-{number}-link")).as_ref(), Some(&system.toplevel));
        self.env.run(["verify", text(&self.dir)]).ok();
    }

    /// Everything there is in the directory: names, kinds, times, link targets.
    fn everything(&self) -> String {
        tool("find", &[text(&self.dir), "-printf", "%P %y %i %m %C@ %l\\n"])
    }
}

#[track_caller]
fn assert_same_to_nix(world: &World, systems: &[&System]) {
    let mut all = Vec::new();
    for system in systems {
        let closure = real_nix::closure(&system.root, &system.toplevel);
        assert_eq!(real_nix::closure(&world.dir, &system.toplevel), closure, "nix-store -qR");
        assert_eq!(
            real_nix::registration(&world.dir, &system.toplevel),
            real_nix::registration(&system.root, &system.toplevel),
        );
        all.extend(closure);
    }
    all.sort();
    all.dedup();
    real_nix::assert_clean(&world.dir);
    assert_eq!(real_nix::garbage(&world.dir), [""; 0], "something is dead");
    real_nix::collect_garbage(&world.dir);
    assert_eq!(real_nix::objects(&world.dir), all, "after a garbage collection");
    real_nix::assert_clean(&world.dir);
}

#[test]
fn only_what_is_missing_is_copied_and_nix_keeps_both_generations() {
    let world = World::new();
    let second = world.system(2);
    let ran = world.deploy(&second, &["--progress", "json"]).ok();
    let events: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let titles: Vec<&str> = events.iter().filter_map(|event| event["title"].as_str()).collect();
    assert!(titles[0].starts_with("Copy and check 3 of 6 store paths, "), "{titles:?}");
    assert_eq!(titles[1], "Register 3 store paths in the Nix database");
    assert_eq!(titles[2], "Make nixos-system-small-2 generation 2 of the system profile");
    let total = events.iter().find(|event| event["event"] == "start").unwrap()["total"].as_u64().unwrap();
    let copied: u64 = events.iter().filter_map(|event| event["bytes"].as_u64()).sum();
    assert_eq!(copied, total);
    assert!((4_000_000..4_100_000).contains(&copied), "three paths have 4 MB, and {copied} were copied");
    world.assert_current(2, &second);
    assert_same_to_nix(&world, &[&world.first, &second]);

    // Back, and forth again: nothing is copied, and the newest number is used again only for its own system.
    let ran = world.deploy(&world.first, &[]).ok();
    assert!(!ran.stderr.contains("Copy"), "{ran}");
    world.assert_current(3, &world.first);
    assert_same_to_nix(&world, &[&world.first, &second]);
}

#[test]
fn with_nothing_to_do_nothing_is_written() {
    let world = World::new();
    let second = world.system(2);
    let before = world.everything();
    for options in [&["--dry-run"][..], &["--plan", "json"], &["--dry-run", "--keep", "1"]] {
        let ran = world.deploy(&second, options).ok();
        assert!(ran.stdout.contains("small-2"), "{ran}");
        assert_eq!(world.everything(), before);
    }
    let plan = world.deploy(&second, &["--plan", "json"]).ok().stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!((&plan["purpose"], &plan["steps"][0]["paths"]), (&"deploy".into(), &3.into()), "{plan}");
    world.deploy(&second, &["--plan", "script"]).refused().says_a_sentence().stderr_has("--plan text");
    for options in [&[][..], &["--keep", "1"], &["--keep", "5"], &["--dry-run"]] {
        let ran = world.deploy(&world.first, options).ok();
        let said = if options == ["--dry-run"] { &ran.stdout } else { &ran.stderr };
        assert!(said.contains("there is nothing to do"), "{ran}");
        assert_eq!(world.everything(), before);
    }
}

#[test]
fn keep_removes_older_generations_and_what_only_they_held() {
    let world = World::new();
    let [second, third] = [2, 3].map(|number| world.system(number));
    world.deploy(&second, &[]).ok();
    // Roots of all kinds; the third generation needs none of what they lead to.
    let odd = fs::read_link(in_root(&world.first.root, &world.first.toplevel).join("odd")).unwrap();
    let state = world.dir.join("nix/var/nix");
    fs::create_dir_all(state.join("profiles/per-user/me")).unwrap();
    symlink(&odd, state.join("profiles/per-user/me/profile-1-link")).unwrap();
    fs::create_dir_all(state.join("gcroots/auto")).unwrap();
    symlink("/nowhere/outside", state.join("gcroots/auto/dangling")).unwrap();
    let plan = world.deploy(&third, &["--keep", "1", "--dry-run"]).ok();
    plan.stdout_has("Remove 2 generations and 5 store paths, ");
    world.deploy(&third, &["--keep", "1"]).ok();
    world.assert_current(3, &third);
    assert_eq!((world.profile("system-1-link"), world.profile("system-2-link")), (None, None));
    assert!(fs::symlink_metadata(state.join("gcroots/auto/dangling")).is_ok(), "a link of another");
    let mut expected = real_nix::closure(&third.root, &third.toplevel);
    expected.push(odd.display().to_string());
    expected.sort();
    assert_eq!(real_nix::objects(&world.dir), expected);
    assert_eq!(real_nix::garbage(&world.dir), [""; 0]);
    real_nix::assert_clean(&world.dir);

    fs::remove_dir_all(state.join("profiles/per-user/me")).unwrap();
    world.deploy(&third, &["--keep", "1"]).ok().stderr_has("Remove 1 store path, ");
    assert_same_to_nix(&world, &[&third]);
}

#[test]
fn an_optimised_store_gets_its_room_back() {
    let world = World::new();
    let second = world.system(2);
    real_nix::optimise(&world.dir);
    let links = world.dir.join("nix/store/.links");
    let single = || tool("find", &[text(&links), "-mindepth", "1", "-links", "1"]);
    assert!(fs::read_dir(&links).unwrap().count() > 5);
    world.deploy(&second, &["--keep", "1"]).ok();
    assert_eq!(single(), "");
    assert_same_to_nix(&world, &[&second]);
}

#[test]
fn what_a_running_program_uses_is_kept() {
    let world = World::new();
    let [second, third] = [2, 3].map(|number| world.system(number));
    world.deploy(&second, &[]).ok();
    let only = fs::read_link(in_root(&second.root, &second.toplevel).join("only")).unwrap();
    let words = ["enter", text(&world.dir), "--", "/nix/var/nix/profiles/system/sw/bin/sh", "-c"];
    let script = format!("exec 3<{}/0; echo there >/ready; read word", only.display());
    let mut command = world.env.command(words.iter().copied().chain([script.as_str()]));
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    wait::until("the program runs", || {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        world.dir.join("ready").exists().then_some(())
    });
    world.deploy(&third, &["--keep", "1"]).ok();
    assert!(in_root(&world.dir, text(&only)).exists(), "it is open");
    assert!(!in_root(&world.dir, &second.toplevel).exists());
    drop(child.stdin.take());
    child.wait().unwrap();
    world.deploy(&third, &["--keep", "1"]).ok().stderr_has("Remove 1 store path, ");
    assert_same_to_nix(&world, &[&third]);
}

#[test]
fn enter_runs_what_was_deployed_and_sbin_init_leads_to_it() {
    let world = World::new();
    fs::create_dir(world.dir.join("sbin")).unwrap();
    symlink(format!("{}/init", world.first.toplevel), world.dir.join("sbin/init")).unwrap();
    let [second, third] = [2, 3].map(|number| world.system(number));
    fs::write(world.dir.join("etc/kept"), "state").unwrap();
    world.deploy(&second, &["--keep", "1"]).ok();
    let init = || fs::read_link(world.dir.join("sbin/init")).unwrap().display().to_string();
    assert_eq!(init(), format!("{}/init", second.toplevel));
    assert_eq!(fs::read_to_string(world.dir.join("etc/kept")).unwrap(), "state");
    assert!(!world.dir.join("etc/activated").exists(), "it is activated when it is entered");
    let words = ["enter", text(&world.dir), "--", "/nix/var/nix/profiles/system/sw/bin/busybox"];
    let readlink = ["readlink", "/etc/activated"];
    world.env.run(words.iter().chain(&readlink)).ok().stdout_has(&second.toplevel);

    // As a run leaves it that is stopped between the profile and this link.
    world.deploy(&third, &[]).ok();
    fs::remove_file(world.dir.join("sbin/init")).unwrap();
    symlink(format!("{}/init", second.toplevel), world.dir.join("sbin/init")).unwrap();
    let ran = world.deploy(&third, &[]).ok();
    assert!(ran.stderr.contains("Lead sbin/init to init") && !ran.stderr.contains("generation"), "{ran}");
    assert_eq!(init(), format!("{}/init", third.toplevel));
    world.deploy(&second, &["--keep", "1"]).ok();

    // One that was led elsewhere stays, and keeps what it leads to.
    fs::remove_file(world.dir.join("sbin/init")).unwrap();
    let only = fs::read_link(in_root(&second.root, &second.toplevel).join("only")).unwrap();
    symlink(only.join("0"), world.dir.join("sbin/init")).unwrap();
    world.deploy(&third, &["--keep", "1"]).ok();
    assert_eq!(init(), only.join("0").display().to_string());
    assert!(in_root(&world.dir, &init()).exists());
    world.env.run(words.iter().chain(&readlink)).ok().stdout_has(&third.toplevel);
}

#[test]
fn a_directory_that_install_to_dir_has_not_completed_is_refused() {
    let world = World::new();
    let second = world.system(2);
    let elsewhere = |name: &str| world.env.run(second.words("deploy-to-dir", &[text(&world.env.path(name))]));
    elsewhere("absent").refused().says_a_sentence().stderr_has("install-to-dir");
    assert!(!world.env.path("absent").exists());
    fs::create_dir_all(world.env.path("empty")).unwrap();
    elsewhere("empty").refused().says_a_sentence().stderr_has("install-to-dir");
    fs::create_dir_all(world.env.path("home")).unwrap();
    fs::write(world.env.path("home/thesis"), "years of work").unwrap();
    elsewhere("home").refused().says_a_sentence().stderr_has("was not made by install-to-dir");
    // A root with a system, but none of ours.
    tool("cp", &["-a", text(&world.dir), text(&world.env.path("foreign"))]);
    fs::remove_file(world.env.path("foreign/nix/.install-via.json")).unwrap();
    elsewhere("foreign").refused().says_a_sentence().stderr_has("was not made by install-to-dir");
    let note = world.dir.join("nix/.install-via.json");
    let complete = fs::read_to_string(&note).unwrap();
    fs::write(&note, complete.replace("complete", "installing")).unwrap();
    world.deploy(&second, &[]).refused().says_a_sentence().stderr_has("unfinished");
    fs::write(&note, complete).unwrap();
    fs::remove_file(world.dir.join("nix/var/nix/profiles/system")).unwrap();
    world.deploy(&second, &[]).failed().says_a_sentence().stderr_has("no system profile");

    fs::rename(world.dir.join("nix/store"), world.env.path("store")).unwrap();
    symlink(world.env.path("store"), world.dir.join("nix/store")).unwrap();
    world.deploy(&second, &[]).refused().says_a_sentence().stderr_has("is a link");

    world.deploy(&second, &["--keep", "0"]).misused();
    world.deploy(&second, &["--extra-files", "x"]).misused();
    world
        .env
        .run(second.words("deploy-to-dir", &["/"]))
        .refused()
        .says_a_sentence()
        .stderr_has("running machine");
    world.env.run(second.words("deploy-to-dir", &[text(&second.root)])).refused().says_a_sentence();
    world.env.run(second.words("deploy-to-dir", &[BINARY])).misused().says_a_sentence();
}

#[test]
fn another_machine_s_system_is_refused_unless_forced() {
    let world = World::new();
    let named = later_system(&world.first, 2, Some("box"), PLATFORM);
    let other = later_system(&world.first, 3, Some("other"), PLATFORM);
    let arm = later_system(&world.first, 4, Some("box"), "aarch64-linux");
    let before = world.everything();
    world.deploy(&named, &[]).refused().says_a_sentence().stderr_has("host box");
    assert_eq!(world.everything(), before);
    world.deploy(&named, &["--force"]).ok();
    for (system, words) in [(&other, "host other"), (&arm, "platform aarch64-linux")] {
        world.deploy(system, &["--dry-run"]).refused().stderr_has(words);
        world.deploy(system, &[]).refused().says_a_sentence().stderr_has("--force");
        world.assert_current(2, &named);
    }
    world.deploy(&arm, &["--force"]).ok();
    world.assert_current(3, &arm);
}

#[test]
fn a_root_that_nix_is_using_is_refused() {
    let world = World::new();
    let second = world.system(2);
    let before = world.everything();
    let lock = File::open(world.dir.join("nix/var/nix/db/big-lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockShared).map_err(|(_, error)| error).unwrap();
    world.deploy(&second, &[]).refused().says_a_sentence().stderr_has("Nix is using");
    assert_eq!(world.everything(), before);
    drop(lock);
    let lock = Flock::lock(File::open(world.dir.join("nix")).unwrap(), FlockArg::LockExclusive);
    let lock = lock.map_err(|(_, error)| error).unwrap();
    world.deploy(&second, &[]).failed().says_a_sentence().stderr_has("another installation");
    drop(lock);
    world.deploy(&second, &[]).ok();
}

#[test]
fn a_garbage_collection_at_the_same_time_takes_nothing_that_was_added() {
    let world = World::new();
    let collector = real_nix::Collector::start(&world.dir);
    for number in 2..14 {
        let system = world.system(number);
        let mut refused = 0;
        while world.deploy(&system, &["--keep", "2"]).code() != Some(0) {
            refused += 1;
            assert!(refused < 20, "the collector never lets go");
        }
        world.assert_current(number, &system);
        let closure = real_nix::closure(&world.dir, &system.toplevel);
        assert!(
            closure.iter().all(|path| fs::symlink_metadata(in_root(&world.dir, path)).is_ok()),
            "{closure:?}"
        );
    }
    drop(collector);
    real_nix::assert_clean(&world.dir);
}

#[test]
fn whatever_kills_a_run_the_old_system_stays_and_the_next_run_completes_it() {
    let world = World::new();
    let mut current = world.system(1);
    // Whatever else is going on here, one of them is not held up much by it.
    let mut whole = Duration::MAX;
    for number in 2..5 {
        current = world.system(number);
        let begin = Instant::now();
        world.deploy(&current, &[]).ok();
        whole = whole.min(begin.elapsed());
    }
    let (parts, mut killed) = ([2, 10, 20, 30, 40, 50, 60, 70, 80, 90, 97], 0);
    for (round, part) in parts.into_iter().cycle().enumerate() {
        if round >= parts.len() && killed > 2 {
            break;
        }
        let next = world.system(round as u32 + 5);
        let mut child = world.env.start(world.words(&next, &["--keep", "1"]));
        sleep(whole * part / 100);
        match child.try_wait().unwrap() {
            None => killed += 1,
            // This machine has become faster.
            Some(_) => whole /= 2,
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let leads_to = fs::canonicalize(world.dir.join("nix/var/nix/profiles")).unwrap();
        let link = fs::read_link(leads_to.join(world.profile("system").unwrap())).unwrap();
        let link = link.display().to_string();
        assert!(link == current.toplevel || link == next.toplevel, "at {part}: {link}");
        world.env.run(["verify", text(&world.dir)]).ok();
        assert_eq!(
            real_nix::closure(&world.dir, &link),
            real_nix::closure(&world.first.root, &link),
            "killed at {part}"
        );
        world.deploy(&next, &["--keep", "1"]).ok();
        assert_same_to_nix(&world, &[&next]);
        current = next;
    }
}

#[test]
fn what_a_killed_run_left_is_checked_again() {
    let world = World::new();
    let second = world.system(2);
    let only = fs::read_link(in_root(&second.root, &second.toplevel).join("only")).unwrap();
    // One object that is right, one that is not, one that is half removed, and one that nobody needs.
    let etc = fs::read_link(in_root(&second.root, &second.toplevel).join("etc")).unwrap();
    let store = world.dir.join("nix/store");
    let here = |path: &Path| in_root(&second.root, text(path));
    tool("cp", &["-a", text(&here(etc.parent().unwrap())), text(&store)]);
    tool("cp", &["-a", text(&here(&only)), text(&store)]);
    fs::write(in_root(&world.dir, text(&only)).join("3"), "half").unwrap();
    fs::create_dir(store.join(".install-via-staging")).unwrap();
    let stale = store.join(format!("{}-nobody-needs-it", "0".repeat(32)));
    fs::create_dir(&stale).unwrap();
    // Of a valid path, the files are gone.
    let odd = fs::read_link(in_root(&world.dir, &world.first.toplevel).join("odd")).unwrap();
    world.deploy(&second, &[]).ok();
    world.assert_current(2, &second);
    fs::remove_dir_all(in_root(&world.dir, text(&odd))).unwrap();
    world.deploy(&world.first, &[]).ok().stderr_has("Copy and check 1 of 6 store paths");
    world.assert_current(3, &world.first);
    assert!(stale.exists());
    world.deploy(&world.first, &["--keep", "2"]).ok();
    assert!(!stale.exists());
    assert_same_to_nix(&world, &[&world.first, &second]);
}

/// Deploys within a file system of a few MiB that already holds the first system.
fn in_small_filesystem(fill: &str, first: &System, second: &System, env: &TestEnv) -> Ran {
    let image = env.image("small.img", 24);
    fs::create_dir(env.path("mnt")).unwrap();
    let script = r#"
        binary=$1; image=$2; source=$3; first=$4; second=$5; fill=$6
        mke2fs -q -F -t ext4 -m 0 -N 600 "$image"; mount -o loop "$image" mnt
        "$binary" install-to-dir --yes --from "$source" --system "$first" mnt/target >/dev/null 2>&1
        eval "$fill"
        status=0; "$binary" deploy-to-dir --yes --from "$source" --system "$second" mnt/target || status=$?
        rm -rf mnt/filler*
        "$binary" verify mnt/target >verified 2>&1
        readlink mnt/target/nix/var/nix/profiles/system >profile
        "$binary" deploy-to-dir --yes --from "$source" --system "$second" mnt/target >again 2>&1
        "$binary" verify mnt/target >verified 2>&1
        readlink mnt/target/nix/var/nix/profiles/system >completed
        exit $status"#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-euc", script, "sh", BINARY])
        .args([&image, &first.root])
        .args([&first.toplevel, &second.toplevel, fill])
        .current_dir(env.path(""))
        .output()
        .unwrap();
    Ran::new(format!("deploy-to-dir with {fill}"), output)
}

#[test]
fn a_full_disk_is_told_before_or_leaves_the_old_system() {
    for (fill, told) in [
        (
            "fallocate -l $(($(df --output=avail -B1 mnt | tail -1) - 1000000)) mnt/filler",
            "free and what is missing",
        ),
        // Room for every byte, and for few names.
        (
            "mkdir mnt/filler; i=0; while [ $(df --output=iavail mnt | tail -1) -gt 8 ]; do i=$((i+1)); : >mnt/filler/$i; done",
            "No space left",
        ),
    ] {
        let env = TestEnv::new();
        let first = small_system(env.path("source"));
        let second = later_system(&first, 2, None, PLATFORM);
        let ran = in_small_filesystem(fill, &first, &second, &env);
        assert!(matches!(ran.code(), Some(1 | 3)), "{ran}");
        ran.says_a_sentence().stderr_has(told);
        assert_eq!(fs::read_to_string(env.path("profile")).unwrap(), "system-1-link\n");
        assert_eq!(fs::read_to_string(env.path("completed")).unwrap(), "system-2-link\n");
    }
}
