//! `make bench`: install-to-dir against the tools that one would use instead, in one table.
//!
//! Each way copies the same store to the same file system, reads it from a warm cache, and ends
//! with a sync that is timed too. The ways take turns, and of each the median counts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 3;
const OURS: &str = "install-to-dir";

// What `cp -a` and its like copy is the store; what Nix and install-to-dir make is a root with a database.
const WAYS: [(&str, &str); 5] = [
    (OURS, r#""$BINARY" install-to-dir --yes --progress none --from "$ROOT" --system "$SYSTEM" "$TARGET""#),
    ("cp -a", r#"cp -a "$ROOT/nix" "$TARGET""#),
    ("rsync -a", r#"rsync -a "$ROOT/nix" "$TARGET""#),
    ("tar | tar", r#"tar -C "$ROOT" -cf - nix | tar -C "$TARGET" -xpf -"#),
    ("nix copy", r#"nix copy --no-check-sigs --from "local?root=$ROOT" --to "local?root=$TARGET" "$SYSTEM""#),
];

#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    memory_mib: f64,
}

struct World {
    binary: PathBuf,
    root: PathBuf,
    system: String,
    target: PathBuf,
}

fn main() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = project.join("build/bench");
    let made = Command::new(project.join("tests/bench/store.sh")).arg(&dir).status();
    assert!(made.is_ok_and(|status| status.success()), "tests/bench/store.sh failed");
    let system = fs::read_to_string(dir.join("toplevel")).expect("store.sh leaves it").trim().to_owned();
    let binary = project.join("build/nixos-install-via");
    let world = World { binary, root: dir.join("root"), system, target: dir.join("target") };

    println!("{}", describe(&world.root));
    let mut costs: BTreeMap<&str, Vec<Cost>> = BTreeMap::new();
    // One round that does not count warms the cache.
    for round in 0..=ROUNDS {
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
    world.clear();
    print_table(&costs);
}

impl World {
    fn clear(&self) {
        sh(r#"rm -rf "$1"; mkdir "$1"; sync"#, &self.target);
    }

    /// Runs one way and returns what it cost: a child of ours waits for all of its own.
    fn run(&self, script: &str) -> Cost {
        let report = self.target.with_extension("time");
        let begin = Instant::now();
        let mut command = Command::new("/usr/bin/time");
        command.args(["--quiet", "--format", "%U %S %M", "--output"]).arg(&report);
        command.args(["sh", "-ec", &format!("{script}\nsync --file-system \"$TARGET\"")]);
        command.env("BINARY", &self.binary).env("ROOT", &self.root).env("SYSTEM", &self.system);
        command.env("TARGET", &self.target).env("LC_ALL", "C").env("NIX_REMOTE", "");
        command.env("NIX_CONFIG", "build-users-group =\nexperimental-features = nix-command\nsubstituters =");
        let output = command.stdin(Stdio::null()).output().expect("GNU time is installed");
        let wall = begin.elapsed().as_secs_f64();
        assert!(output.status.success(), "`{script}` failed: {}", String::from_utf8_lossy(&output.stderr));
        let report = fs::read_to_string(&report).expect("time reports");
        let numbers: Vec<f64> =
            report.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        Cost { wall, cpu: numbers[0] + numbers[1], memory_mib: numbers[2] / 1024.0 }
    }
}

fn print_table(costs: &BTreeMap<&str, Vec<Cost>>) {
    let median = |name: &str| {
        let of = |number: fn(&Cost) -> f64| {
            let mut numbers: Vec<f64> = costs[name].iter().map(number).collect();
            numbers.sort_by(f64::total_cmp);
            numbers[numbers.len() / 2]
        };
        Cost { wall: of(|cost| cost.wall), cpu: of(|cost| cost.cpu), memory_mib: of(|cost| cost.memory_mib) }
    };
    println!(
        "\n{:<16}{:>9}{:>9}{:>14}{:>12}{:>14}",
        "", "wall s", "CPU s", "peak MiB (1)", "to cp -a", "to nix copy"
    );
    let (cp, nix) = (median("cp -a").wall, median("nix copy").wall);
    for name in WAYS.iter().map(|(name, _)| *name).chain(["verify"]) {
        let Cost { wall, cpu, memory_mib } = median(name);
        println!("{name:<16}{wall:>9.2}{cpu:>9.2}{memory_mib:>14.1}{:>12.2}{:>14.2}", wall / cp, wall / nix);
    }
    println!(
        "\nMedians of {ROUNDS} rounds in turn, warm cache, one file system, a sync of it inside the time.\n\
         (1) of the largest process. install-to-dir hashes every byte; cp, rsync and tar check nothing."
    );
}

fn describe(root: &Path) -> String {
    let script = r#"cd "$1/nix/store"
        echo "$(ls | wc -l) store paths, $(find . | wc -l) entries, $(du -s --block-size=MB . | cut -f 1)," \
            "on $(nproc) cores and $(findmnt --noheadings --output FSTYPE --target .)""#;
    sh(script, root)
}

fn sh(script: &str, argument: &Path) -> String {
    let output =
        Command::new("sh").args(["-euc", script, "sh"]).arg(argument).output().expect("there is a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
