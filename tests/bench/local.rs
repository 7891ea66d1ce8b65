//! install-to-dir against the tools that one would use instead, in one table.
//!
//! Each way copies the same store, from a warm cache, to a new ext4, and ends with a sync that is
//! timed too. The ways take turns, and of each the median counts.

use std::collections::BTreeMap;
use std::path::Path;

use crate::world::{Cost, World, median, sh};

const OURS: &str = "install-to-dir";

// What `cp -a` and its like copy is the store; what Nix and install-to-dir make is a root with a database.
const WAYS: [(&str, &str); 5] = [
    (OURS, r#""$BINARY" install-to-dir --yes --progress none --from "$ROOT" --system "$SYSTEM" "$TARGET""#),
    ("cp -a", r#"cp -a "$ROOT/nix" "$TARGET""#),
    ("rsync -a", r#"rsync -a "$ROOT/nix" "$TARGET""#),
    ("tar | tar", r#"tar -C "$ROOT" -cf - nix | tar -C "$TARGET" -xpf -"#),
    ("nix copy", r#"nix copy --no-check-sigs --from "local?root=$ROOT" --to "local?root=$TARGET" "$SYSTEM""#),
];

/// Measures with the store in `dir`, and prints the table.
pub fn measure(dir: &Path, binary: &Path, system: &str, rounds: usize) {
    let root = dir.join("root");
    let variables = [
        ("BINARY", binary.display().to_string()),
        ("ROOT", root.display().to_string()),
        ("SYSTEM", system.to_owned()),
    ];
    let world = World::new(dir, variables.into());
    println!("{}", describe(&root));
    let mut costs: BTreeMap<&str, Vec<Cost>> = BTreeMap::new();
    // One round that does not count warms the cache.
    for round in 0..=rounds {
        for (name, script) in WAYS {
            world.clear();
            let cost = world.run(script);
            if round > 0 {
                costs.entry(name).or_default().push(cost);
            }
            if name == OURS && round > 0 {
                costs
                    .entry("verify")
                    .or_default()
                    .push(world.run(r#""$BINARY" verify --progress none "$TARGET""#));
            }
        }
    }
    print_table(&costs, rounds);
}

fn print_table(costs: &BTreeMap<&str, Vec<Cost>>, rounds: usize) {
    let of = |name: &str| {
        let of = |number: fn(&Cost) -> f64| median(costs[name].iter().map(number));
        Cost { wall: of(|cost| cost.wall), cpu: of(|cost| cost.cpu), memory_mib: of(|cost| cost.memory_mib) }
    };
    println!(
        "\n{:<16}{:>9}{:>9}{:>14}{:>12}{:>14}",
        "", "wall s", "CPU s", "peak MiB (1)", "to cp -a", "to nix copy"
    );
    let (cp, nix) = (of("cp -a").wall, of("nix copy").wall);
    for name in WAYS.iter().map(|(name, _)| *name).chain(["verify"]) {
        let Cost { wall, cpu, memory_mib } = of(name);
        println!("{name:<16}{wall:>9.2}{cpu:>9.2}{memory_mib:>14.1}{:>12.2}{:>14.2}", wall / cp, wall / nix);
    }
    println!(
        "\nMedians of {rounds} rounds in turn, warm cache, to a new ext4 each, a sync of it inside the time.\n\
         (1) of the largest process. install-to-dir hashes every byte; cp, rsync and tar check nothing."
    );
}

fn describe(root: &Path) -> String {
    let script = r#"cd "$1/nix/store"
        echo "$(ls | wc -l) store paths, $(find . | wc -l) entries, $(du -s --block-size=MB . | cut -f 1)," \
            "on $(nproc) cores and $(findmnt --noheadings --output FSTYPE --target .)""#;
    sh(script, &[root])
}
