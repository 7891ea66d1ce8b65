//! install-to-dir against the tools that one would use instead, and against what the target can take, in one table.
//!
//! Each way copies the same store, from a warm cache, to a new ext4, and ends with a sync that is
//! timed too; then all of them do so to memory. The ways take turns, and of each the median counts.
//! The least that any of them could take is shown by the same bytes as one file.

use std::collections::BTreeMap;
use std::path::Path;

use crate::world::{Cost, Medium, World, median, sh};

/// A name and a script.
pub type Way = (&'static str, &'static str);

// What `cp -a` and its like copy is the store; what Nix and install-to-dir make is a root with a database.
pub const OURS: Way = (
    "install-to-dir",
    r#""$BINARY" install-to-dir --yes --progress none --from "$ROOT" --system "$SYSTEM" "$TARGET""#,
);
pub const CP: Way = ("cp -a", r#"cp -a "$ROOT/nix" "$TARGET""#);
const RSYNC: Way = ("rsync -a", r#"rsync -a "$ROOT/nix" "$TARGET""#);
const TAR: Way = ("tar | tar", r#"tar -C "$ROOT" -cf - nix | tar -C "$TARGET" -xpf -"#);
pub const NIX: Way =
    ("nix copy", r#"nix copy --no-check-sigs --from "local?root=$ROOT" --to "local?root=$TARGET" "$SYSTEM""#);
const ONE_FILE: Way = ("one file (dd)", r#"dd if="$BYTES" of="$TARGET/bytes" bs=4M status=none"#);
const WAYS: [Way; 6] = [OURS, CP, RSYNC, TAR, NIX, ONE_FILE];

/// Measures with the store in `dir`, and prints a table for each kind of target.
pub fn measure(dir: &Path, binary: &Path, system: &str, rounds: usize) {
    let root = dir.join("root");
    let bytes = dir.join("bytes");
    // Read to the last byte, which warms the cache for all.
    sh(r#"find "$1/nix/store" -type f -print0 | sort -z | xargs -0 cat >"$2""#, &[&root, &bytes]);
    let variables = [
        ("BINARY", binary.display().to_string()),
        ("ROOT", root.display().to_string()),
        ("SYSTEM", system.to_owned()),
        ("BYTES", bytes.display().to_string()),
    ];
    println!("{}", describe(&root));
    for (medium, what) in [(Medium::Disk, "to a new ext4"), (Medium::Memory, "to memory, a new tmpfs")] {
        let world = World::new(dir, medium, variables.clone().into());
        print_table(what, &measure_in(&world, rounds));
    }
    println!(
        "\nMedians of {rounds} rounds in turn, warm cache, a sync inside the time. (1) of the largest process.\n\
         install-to-dir hashes every byte; cp, rsync and tar check nothing. One file holds the bytes of all files."
    );
    sh(r#"rm "$1""#, &[&bytes]);
}

fn measure_in(world: &World, rounds: usize) -> BTreeMap<&'static str, Vec<Cost>> {
    let mut costs: BTreeMap<&str, Vec<Cost>> = BTreeMap::new();
    // One round that does not count warms the cache.
    for round in 0..=rounds {
        for (name, script) in WAYS {
            world.clear();
            let cost = world.run(script, &[]);
            if round > 0 {
                costs.entry(name).or_default().push(cost);
            }
            if name == OURS.0 && round > 0 {
                costs
                    .entry("verify")
                    .or_default()
                    .push(world.run(r#""$BINARY" verify --progress none "$TARGET""#, &[]));
            }
        }
    }
    costs
}

fn print_table(what: &str, costs: &BTreeMap<&str, Vec<Cost>>) {
    let of = |name: &str| {
        let of = |number: fn(&Cost) -> f64| median(costs[name].iter().map(number));
        Cost { wall: of(|cost| cost.wall), cpu: of(|cost| cost.cpu), memory_mib: of(|cost| cost.memory_mib) }
    };
    println!(
        "\n{what:<24}{:>9}{:>9}{:>14}{:>13}{:>12}{:>14}",
        "wall s", "CPU s", "peak MiB (1)", "to one file", "to cp -a", "to nix copy"
    );
    let (one_file, cp, nix) = (of(ONE_FILE.0).wall, of(CP.0).wall, of(NIX.0).wall);
    for name in WAYS.iter().map(|(name, _)| *name).chain(["verify"]) {
        let Cost { wall, cpu, memory_mib } = of(name);
        println!(
            "  {name:<22}{wall:>9.2}{cpu:>9.2}{memory_mib:>14.1}{:>13.2}{:>12.2}{:>14.2}",
            wall / one_file,
            wall / cp,
            wall / nix
        );
    }
}

fn describe(root: &Path) -> String {
    let script = r#"cd "$1/nix/store"
        echo "$(ls | wc -l) store paths, $(find . | wc -l) entries, $(du -s --block-size=MB . | cut -f 1)," \
            "on $(nproc) cores and $(findmnt --noheadings --output FSTYPE --target .)""#;
    sh(script, &[root])
}
