//! `make bench`: what install-to-dir and deploy-via-ssh cost, with the tools beside them that one would
//! use instead.
//!
//! ONLY=local or ONLY=ssh makes one table alone, and ROUNDS=1 a quick one. SLOW=1 runs also what takes a
//! quarter of an hour each: other tools over a slow link, and one that compresses.

#[allow(dead_code)] // the tests use the rest
#[path = "../it/link.rs"]
mod link;
mod local;
mod machine;
mod ssh;
mod systems;
mod world;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

const ROUNDS: usize = 3;

fn main() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Another file system than the build's can be measured too.
    let dir = env::var_os("BENCH_DIR").map_or_else(|| project.join("build/bench"), PathBuf::from);
    let made = Command::new(project.join("tests/bench/store.sh")).arg(&dir).status();
    assert!(made.is_ok_and(|status| status.success()), "tests/bench/store.sh failed");
    let system = fs::read_to_string(dir.join("toplevel")).expect("store.sh leaves it").trim().to_owned();
    let binary = project.join("build/nixos-install-via");
    // Nobody else sees what is mounted here: a namespace made meanwhile would keep the target busy.
    unshare(CloneFlags::CLONE_NEWNS).expect("root makes namespaces");
    world::sh("mount --make-rprivate /", &[]);
    let only = env::var("ONLY").unwrap_or_default();
    let rounds = env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    if only != "ssh" {
        local::measure(&dir, &binary, &system, rounds);
    }
    if only != "local" {
        ssh::measure(&dir, &binary, rounds, env::var_os("SLOW").is_some_and(|slow| !slow.is_empty()));
    }
}
