//! `make bench`: install-to-dir against the tools that one would use instead, in one table.
//!
//! Each way copies the same store, from a warm cache, to a new ext4, and ends with a sync that is
//! timed too. The ways take turns, and of each the median counts. The file system is new each time
//! because one that has just lost its files makes the next ones slowly; it is in a loop device that
//! writes past the page cache, as a disk does.

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
    device: String,
}

fn main() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Another file system than the build's can be measured too.
    let dir = std::env::var_os("BENCH_DIR").map_or_else(|| project.join("build/bench"), PathBuf::from);
    let made = Command::new(project.join("tests/bench/store.sh")).arg(&dir).status();
    assert!(made.is_ok_and(|status| status.success()), "tests/bench/store.sh failed");
    let system = fs::read_to_string(dir.join("toplevel")).expect("store.sh leaves it").trim().to_owned();
    let binary = project.join("build/nixos-install-via");
    let world = World::new(binary, &dir, system);

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
    print_table(&costs);
}

impl World {
    fn new(binary: PathBuf, dir: &Path, system: String) -> World {
        let target = dir.join("target");
        let script = r#"mkdir -p "$1"; rm -f "$1.img"; fallocate --length 8G "$1.img"
            losetup --find --show --direct-io=on "$1.img" 2>/dev/null || losetup --find --show "$1.img""#;
        let device = sh(script, &[&target]);
        World { binary, root: dir.join("root"), system, target, device }
    }

    fn clear(&self) {
        let script = r#"umount "$1" 2>/dev/null || true
            mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$2"; mount "$2" "$1"; sync"#;
        sh(script, &[&self.target, Path::new(&self.device)]);
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

impl Drop for World {
    fn drop(&mut self) {
        let script = r#"umount "$1" 2>/dev/null || true; losetup --detach "$2"; rm -r "$1" "$1.img""#;
        sh(script, &[&self.target, Path::new(&self.device)]);
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
        "\nMedians of {ROUNDS} rounds in turn, warm cache, to a new ext4 each, a sync of it inside the time.\n\
         (1) of the largest process. install-to-dir hashes every byte; cp, rsync and tar check nothing."
    );
}

fn describe(root: &Path) -> String {
    let script = r#"cd "$1/nix/store"
        echo "$(ls | wc -l) store paths, $(find . | wc -l) entries, $(du -s --block-size=MB . | cut -f 1)," \
            "on $(nproc) cores and $(findmnt --noheadings --output FSTYPE --target .)""#;
    sh(script, &[root])
}

fn sh(script: &str, arguments: &[&Path]) -> String {
    let output =
        Command::new("sh").args(["-euc", script, "sh"]).args(arguments).output().expect("there is a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
