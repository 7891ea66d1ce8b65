//! What ten times as many store paths cost: ten times the time, or more, and how much more memory.
//!
//! Each operation is measured with two synthetic stores, in rounds, and has a line with both and what the larger one is
//! to the smaller.

use std::path::Path;

use crate::local;
use crate::remote::{self, Remote, There};
use crate::synthetic::{self, FILES};
use crate::world::{median, sh};

const SIZES: [usize; 2] = [1_000, 10_000];
const DRY_RUN: &str =
    r#""$BINARY" install-to-dir --dry-run --progress none --from "$ROOT" --system "$SYSTEM" "$TARGET/new""#;

/// What an operation has cost in each round.
#[derive(Default)]
struct Costs {
    name: String,
    wall: Vec<f64>,
    mib: Vec<f64>,
    /// Where there is another end.
    far_mib: Vec<f64>,
}

/// Measures with stores in `dir`, which are made first if they are not there, and prints the table.
pub fn measure(dir: &Path, binary: &Path, rounds: usize) {
    let [few, many] = SIZES.map(|paths| with(dir, binary, paths, rounds));
    println!(
        "\n{:<36}{:>25}{:>36}{:>28}",
        format!("{FILES} files a path"),
        "seconds",
        "peak MiB (1)",
        "at the far end"
    );
    print!("{:<36}", "");
    for what in ["to", "KiB a path", "KiB a path"] {
        print!("{:>8}{:>9}{what:>11}", SIZES[0], SIZES[1]);
    }
    println!();
    for (few, many) in few.iter().zip(&many) {
        let (small, large) = (middle(&few.wall), middle(&many.wall));
        print!("{:<36}{small:>8.2}{large:>9.2}{:>11.1}", few.name, large / small);
        for (few, many) in [(&few.mib, &many.mib), (&few.far_mib, &many.far_mib)] {
            if !few.is_empty() {
                let (small, large) = (middle(few), middle(many));
                let growth = (large - small) * 1024.0 / (SIZES[1] - SIZES[0]) as f64;
                print!("{small:>8.1}{large:>9.1}{growth:>11.2}");
            }
        }
        println!();
    }
    println!(
        "\nMedians of {rounds} rounds, warm cache, to an ext4, a sync of it inside the time. (1) of the largest process, and\n\
         what it grows with each path."
    );
}

/// Measures all operations with one store.
fn with(dir: &Path, binary: &Path, paths: usize, rounds: usize) -> Vec<Costs> {
    let store = synthetic::make(dir, paths, binary);
    let remote = Remote::new(dir, binary, &store.root);
    let size = sh(r#"du -s --block-size=MB "$1" | cut -f 1"#, &[&store.root.join("nix/store")]);
    println!("{paths} store paths, {} files, {size}", paths * FILES);
    let mut all: Vec<Costs> = Vec::new();
    for _ in 0..rounds {
        let mut next = 0;
        let mut note = |name: &str, wall: f64, mib: f64, far_mib: Option<f64>| {
            if next == all.len() {
                all.push(Costs { name: name.to_owned(), ..Costs::default() });
            }
            let costs = &mut all[next];
            costs.wall.push(wall);
            costs.mib.push(mib);
            costs.far_mib.extend(far_mib);
            next += 1;
        };
        let mut here = |name: &str, script: &str| {
            let cost = remote.world.run(script, &[("SYSTEM", store.first.clone())]);
            eprintln!("bench: {name} took {:.1} s", cost.wall);
            note(name, cost.wall, cost.memory_mib, None);
        };
        for (name, script) in [local::CP, local::NIX, local::OURS] {
            remote.world.clear();
            here(name, script);
        }
        here("install-to-dir --dry-run", DRY_RUN);
        // What is there now is what the others begin with.
        remote.remember();
        for (what, system, options, ways) in [
            ("nothing to do", &store.first, "", &[remote::OURS, remote::NIX][..]),
            ("one path, --dry-run", &store.changed, "--dry-run", &[remote::OURS]),
            ("one path", &store.changed, "", &[remote::OURS, remote::NIX]),
        ] {
            for way in ways {
                let cost = remote.run(way, system, options, None);
                note(&format!("{}, {what}", way.name), cost.wall, cost.near_mib, Some(cost.far_mib));
                remote.reset(There::First);
            }
        }
        remote.reset(There::Nothing);
        let cost = remote.run(&remote::OURS, &store.first, "", None);
        note("deploy-via-ssh, all paths", cost.wall, cost.near_mib, Some(cost.far_mib));
    }
    all
}

fn middle(numbers: &[f64]) -> f64 {
    median(numbers.iter().copied())
}
