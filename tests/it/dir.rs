//! `install-to-dir`, `verify` and `enter`, judged by the real Nix.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use crate::env::{BINARY, Ran, System, TestEnv, fixture, in_root, small_system, text};
use crate::real_nix;

fn link(path: &Path) -> String {
    fs::read_link(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).display().to_string()
}

/// No system is there to boot or to keep.
#[track_caller]
fn assert_no_profile(root: &Path) {
    assert!(fs::symlink_metadata(root.join("nix/var/nix/profiles/system")).is_err(), "there is a profile");
}

/// Looks at the directory without Nix, which makes files of its own when it opens a store.
#[track_caller]
fn assert_a_good_root(root: &Path, system: &System) {
    let profiles = root.join("nix/var/nix/profiles");
    assert_eq!(link(&profiles.join("system")), "system-1-link");
    assert_eq!(link(&profiles.join("system-1-link")), system.toplevel);
    assert!(root.join("etc/NIXOS").exists());
    assert_eq!(fs::read_to_string(root.join("nix/var/nix/db/schema")).unwrap(), "10");
    for absent in
        ["etc/machine-id", "etc/ssh/ssh_host_ed25519_key", "var/lib/systemd/random-seed", "nix/store/.links"]
    {
        assert!(!root.join(absent).exists(), "{absent} is there");
    }
    let store = fs::metadata(root.join("nix/store")).unwrap();
    assert_eq!((store.mode() & 0o7777, store.uid(), store.gid()), (0o1775, 0, 30000));
    assert_eq!(fs::metadata(root.join("nix/var/nix/db/db.sqlite")).unwrap().mode() & 0o777, 0o644);
    assert_eq!(fs::metadata(root.join("tmp")).map(|tmp| tmp.mode() & 0o7777).unwrap_or(0o1777), 0o1777);
    assert_canonical(&root.join("nix/store"));
}

/// Every object is root's, of one time and one of two modes.
#[track_caller]
fn assert_canonical(store: &Path) {
    let wrong = Command::new("find")
        .arg(store)
        .args(["-mindepth", "1", "("])
        .args(["!", "-uid", "0", "-o", "!", "-gid", "0", "-o", "-newermt", "@1", "-o", "!", "-newermt", "@0"])
        .args(["-o", "-type", "d", "!", "-perm", "555"])
        .args(["-o", "-type", "f", "!", "-perm", "444", "!", "-perm", "555", ")"])
        .output()
        .unwrap();
    assert!(wrong.status.success(), "{}", String::from_utf8_lossy(&wrong.stderr));
    assert_eq!(String::from_utf8_lossy(&wrong.stdout), "", "these are not as Nix has them");
}

/// Files that share their contents in the source do so in the copy.
#[track_caller]
fn assert_same_sharing(root: &Path, system: &System) {
    let [here, there] = [root, &system.root].map(|root| hard_links(&root.join("nix/store")));
    let other = here.iter().find(|group| !there.contains(group));
    let other = other.or_else(|| there.iter().find(|group| !here.contains(group)));
    assert!(other.is_none(), "hard links differ: {other:?}");
}

/// The groups of names that share a file. Empty files have nothing to share.
fn hard_links(store: &Path) -> Vec<Vec<String>> {
    let mut find = Command::new("find");
    find.current_dir(store).args([".", "-type", "f", "-size", "+0", "-links", "+1", "-printf", "%i %P\\0"]);
    let found = find.output().unwrap().stdout;
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&found).split_terminator('\0') {
        let (inode, name) = line.split_once(' ').expect("as find was told");
        groups.entry(inode.to_owned()).or_default().push(name.to_owned());
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.iter_mut().for_each(|group| group.sort());
    groups.sort();
    groups
}

#[track_caller]
fn assert_same_to_nix(root: &Path, system: &System) {
    let closure = real_nix::closure(&system.root, &system.toplevel);
    assert_eq!(real_nix::objects(root), closure, "the store directory");
    assert_eq!(real_nix::closure(root, &system.toplevel), closure, "nix-store -qR");
    let (here, there) = (&system.root, root);
    assert_eq!(
        real_nix::registration(there, &system.toplevel),
        real_nix::registration(here, &system.toplevel),
        "the database"
    );
    real_nix::assert_clean(root);
    real_nix::collect_garbage(root);
    assert_eq!(real_nix::closure(root, &system.toplevel), closure, "after a garbage collection");
    assert_eq!(real_nix::objects(root), closure, "after a garbage collection");
}

#[test]
fn nobody_listening_is_no_reason_to_stop() {
    let env = TestEnv::new();
    let System { root, toplevel } = small_system(env.path("root"));
    let mut run = env.command(["install-to-dir", "--from", text(&root), "--system", &toplevel, "copy"]);
    let mut run = run.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop((run.stderr.take(), run.stdout.take()));
    assert_eq!(run.wait().unwrap().code(), Some(0));
    // And what is asked for on stdout has to get there.
    let object = fs::read_dir(env.path("copy/nix/store")).unwrap().map(|it| it.unwrap().path());
    let object = object.into_iter().find(|path| text(path).ends_with("-a-file")).unwrap();
    fs::write(object, "damaged").unwrap();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = env.command(["verify", "copy"]).stdout(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("listing what is damaged: No space left on device"), "{said}");
}

#[test]
fn a_small_system_arrives_as_nix_would_have_it() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    assert_a_good_root(&dir, &system);
    assert_same_sharing(&dir, &system);
    assert_same_to_nix(&dir, &system);
}

#[test]
fn a_real_system_arrives_as_nix_would_have_it() {
    let env = TestEnv::new();
    let (system, dir) = (fixture("uefi"), env.path("target"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    assert_a_good_root(&dir, &system);
    assert_same_sharing(&dir, &system);
    env.run(["verify", text(&dir)]).ok();
    assert_same_to_nix(&dir, &system);
}

#[test]
fn running_again_over_a_whole_directory_changes_nothing() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    let before = real_nix::registration(&dir, &system.toplevel);
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    assert_eq!(real_nix::registration(&dir, &system.toplevel), before);
    assert_eq!(link(&dir.join("nix/var/nix/profiles/system")), "system-1-link");
    real_nix::assert_clean(&dir);
}

#[test]
fn whatever_kills_a_run_the_next_one_completes_it() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    let begin = Instant::now();
    env.run(system.words("install-to-dir", &[text(&env.path("whole"))])).ok();
    let whole = begin.elapsed();
    fs::remove_dir_all(env.path("whole")).unwrap();
    for part in [1, 10, 30, 60, 80, 90, 97] {
        let dir = env.path(&format!("killed-at-{part}"));
        let mut child = env.start(system.words("install-to-dir", &[text(&dir)]));
        sleep(whole * part / 100);
        let finished = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if !finished && dir.join("nix/var/nix/db/db.sqlite").exists() {
            // What the database calls valid is there, whole.
            env.run(["verify", text(&dir)]).ok();
        }
        env.run(system.words("install-to-dir", &[text(&dir)])).ok();
        assert_a_good_root(&dir, &system);
        if part == 60 {
            assert_same_to_nix(&dir, &system);
        }
        env.run(["verify", text(&dir)]).ok();
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_half_copied_object_is_not_believed() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    let odd = link(&in_root(&dir, &format!("{}/odd", system.toplevel)));
    // As an interrupted run leaves it: ours, no profile, one object changed.
    fs::remove_file(dir.join("nix/var/nix/profiles/system")).unwrap();
    fs::write(in_root(&dir, &odd).join("two  words"), "other").unwrap();
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    real_nix::assert_clean(&dir);
}

#[test]
fn a_foreign_directory_is_refused_and_left_alone() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("home"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis"), "years of work").unwrap();
    env.run(system.words("install-to-dir", &[text(&dir)])).refused().says_a_sentence().stderr_has("home");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(dir.join("thesis")).unwrap(), "years of work");
}

#[test]
fn a_changed_byte_in_the_source_stops_the_copy_and_is_named() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    let odd = link(&in_root(&system.root, &format!("{}/odd", system.toplevel)));
    let zeros = in_root(&system.root, &odd).join("zeros");
    let mut contents = fs::read(&zeros).unwrap();
    contents[1 << 20] = 1;
    fs::write(&zeros, contents).unwrap();
    env.run(system.words("install-to-dir", &[text(&dir)])).failed().says_a_sentence().stderr_has(&odd);
    assert_no_profile(&dir);
    assert!(!real_nix::is_valid(&dir, &odd), "the damaged path is valid");
    assert!(!real_nix::is_valid(&dir, &system.toplevel), "the system is valid");
}

#[test]
fn a_path_missing_from_the_source_stops_the_copy_and_is_named() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    let odd = link(&in_root(&system.root, &format!("{}/odd", system.toplevel)));
    fs::remove_dir_all(in_root(&system.root, &odd)).unwrap();
    env.run(system.words("install-to-dir", &[text(&dir)])).failed().says_a_sentence().stderr_has(&odd);
    assert_no_profile(&dir);
}

/// Runs install-to-dir into a new file system made with `options`, mounted for that run only.
fn into_small_filesystem(env: &TestEnv, system: &System, mib: u64, options: &str) -> (Ran, bool) {
    let image = env.image("small.img", mib);
    fs::create_dir(env.path("mnt")).unwrap();
    let script = r#"
        mke2fs -q -F -t ext4 $1 "$2"; mount -o loop "$2" "$3"; shift 3
        status=0; "$@" || status=$?
        [ ! -L mnt/target/nix/var/nix/profiles/system ] || touch profile
        exit $status"#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-euc", script, "sh", options])
        .args([&image, &env.path("mnt")])
        .arg(BINARY)
        .args(system.words("install-to-dir", &["mnt/target"]))
        .current_dir(env.path(""))
        .output()
        .unwrap();
    (Ran::new(format!("install-to-dir into {mib} MiB"), output), env.path("profile").exists())
}

#[test]
fn a_directory_too_small_is_told_before_anything_is_written() {
    let env = TestEnv::new();
    let (ran, profile) = into_small_filesystem(&env, &fixture("uefi"), 64, "");
    assert!(!ran.stderr.contains("No space left"), "{ran}");
    assert!(ran.stderr.contains("MiB") || ran.stderr.contains("GiB"), "{ran}");
    assert!(!profile);
}

#[test]
fn a_disk_that_fills_up_half_way_fails_the_run_in_a_sentence() {
    let env = TestEnv::new();
    // Room for every byte, and for few names.
    let (ran, profile) = into_small_filesystem(&env, &fixture("uefi"), 2048, "-N 500");
    let ran = if ran.stderr.contains("No space left") { ran.failed() } else { ran };
    ran.says_a_sentence();
    assert!(!profile);
}

#[test]
fn a_dry_run_writes_nothing_and_its_json_is_json() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    env.run(system.words("install-to-dir", &["--dry-run", text(&dir)])).ok().stdout_has(text(&dir));
    let ran = env.run(system.words("install-to-dir", &["--plan", "json", text(&dir)])).ok();
    let plan: serde_json::Value = serde_json::from_str(&ran.stdout).expect("the plan is JSON");
    assert!(plan.is_object(), "{plan}");
    assert!(!dir.exists());
}

#[test]
fn extra_files_come_along_with_their_modes() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    let secret = env.path("extra/root/secret");
    fs::create_dir_all(secret.parent().unwrap()).unwrap();
    fs::write(&secret, "word").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let extra = env.path("extra");
    env.run(system.words("install-to-dir", &["--extra-files", text(&extra), text(&dir)])).ok();
    assert_eq!(fs::read_to_string(dir.join("root/secret")).unwrap(), "word");
    assert_eq!(fs::metadata(dir.join("root/secret")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn verify_lists_what_is_damaged_and_what_is_missing() {
    let env = TestEnv::new();
    let (system, dir) = (small_system(env.path("source")), env.path("target"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    env.run(["verify", text(&dir)]).ok();
    let odd = link(&in_root(&dir, &format!("{}/odd", system.toplevel)));
    let etc = link(&in_root(&dir, &format!("{}/etc", system.toplevel)));
    let etc = etc.trim_end_matches("/etc");
    fs::write(in_root(&dir, &odd).join("case"), "casf").unwrap();
    fs::remove_dir_all(in_root(&dir, etc)).unwrap();
    let ran = env.run(["verify", text(&dir)]).failed().stdout_has(&odd).stdout_has(etc);
    assert_eq!(ran.stdout.lines().count(), 2, "{ran}");
}

#[test]
fn enter_runs_a_command_of_the_system_and_gives_its_status() {
    let env = TestEnv::new();
    let (system, dir) = (fixture("uefi"), env.path("target"));
    env.run(system.words("install-to-dir", &[text(&dir)])).ok();
    let script = "readlink /run/current-system; ls /dev/null; echo $$; test -e /etc/os-release && exit 7";
    let ran = env.run(["enter", text(&dir), "--", "sh", "-c", script]).ended_with(7);
    ran.stdout_has(&system.toplevel).stdout_has("/dev/null");
    env.run(["enter", text(&dir), "--", "true"]).ok();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(text(&dir)), "something stayed mounted");
}
