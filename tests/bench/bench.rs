//! `make bench`: what install-to-dir and deploy-via-ssh cost, with the tools beside them that one would
//! use instead, what both cost with ten times as much, and what install-via-ssh needs of a machine.
//!
//! ONLY=local, ONLY=ssh, ONLY=scale or ONLY=install makes one table alone, and ROUNDS=1 a quick one. SLOW=1 runs also
//! what takes a quarter of an hour each: other tools over a slow link, and one that compresses.

#[allow(dead_code)] // the tests use the rest, as of those below
#[path = "../it/debian.rs"]
mod debian;
#[allow(dead_code)]
#[path = "../it/env.rs"]
mod env;
mod install;
#[allow(dead_code)]
#[path = "../it/link.rs"]
mod link;
mod local;
#[allow(dead_code)]
#[path = "../it/login.rs"]
mod login;
mod machine;
#[allow(dead_code)]
#[path = "../it/real_nix.rs"]
mod real_nix;
mod remote;
mod scale;
mod ssh;
mod synthetic;
mod systems;
#[allow(dead_code)]
#[path = "../it/vm.rs"]
mod vm;
mod world;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, unshare};

const ROUNDS: usize = 3;

fn main() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = project.join("build/nixos-install-via");
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |table: &str| only.is_empty() || only == table;
    if wanted("install") {
        install::measure(&binary);
    }
    if !["local", "ssh", "scale"].iter().any(|table| wanted(table)) {
        return;
    }
    // Another file system than the build's can be measured too.
    let dir = std::env::var_os("BENCH_DIR").map_or_else(|| project.join("build/bench"), PathBuf::from);
    fs::create_dir_all(&dir).expect("the directory can be made");
    let lock = Flock::lock(File::open(&dir).expect("it was just made"), FlockArg::LockExclusiveNonblock);
    let _lock = lock.map_err(|(_, error)| error).expect("no other bench is under way in this directory");
    // Nobody else sees what is mounted here: a namespace made meanwhile would keep the target busy.
    unshare(CloneFlags::CLONE_NEWNS).expect("root makes namespaces");
    world::sh("mount --make-rprivate /", &[]);
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    if wanted("local") || wanted("ssh") {
        let made = Command::new(project.join("tests/bench/store.sh")).arg(&dir).status();
        assert!(made.is_ok_and(|status| status.success()), "tests/bench/store.sh failed");
    }
    if wanted("local") {
        let system = fs::read_to_string(dir.join("toplevel")).expect("store.sh leaves it").trim().to_owned();
        local::measure(&dir, &binary, &system, rounds);
    }
    if wanted("ssh") {
        ssh::measure(&dir, &binary, rounds, std::env::var_os("SLOW").is_some_and(|slow| !slow.is_empty()));
    }
    if wanted("scale") {
        scale::measure(&dir, &binary, rounds);
    }
}
