//! deploy-via-ssh against the tools that one would use instead, in one table.
//!
//! Each way brings a system into a root at the other end of a real SSH connection: everything, what a
//! mass rebuild changes, what one changed package changes, and nothing; at full speed and over slower links.

use std::path::Path;
use std::time::Duration;

use crate::remote::{Cost, NIX, OURS, Remote, Shape, There, Way, middle};
use crate::systems::{self, Systems};
use crate::world::sh;

const SLOW: Shape = Shape { round_trip: Duration::from_millis(50), bits_per_second: 20_000_000 };
// Two sites with good links.
const FASTER: [Shape; 2] = [
    Shape { round_trip: Duration::from_millis(10), bits_per_second: 1_000_000_000 },
    Shape { round_trip: Duration::from_millis(10), bits_per_second: 200_000_000 },
];

const NIX_COMPRESSING: Way = Way {
    name: "nix copy, compress",
    script: r#"nix copy --no-check-sigs --from "local?root=$ROOT" --to "ssh://root@127.0.0.1?$STORE&compress=true" "$SYSTEM""#,
    often: false,
};
// These make no database, and do not know which paths a system consists of.
const RSYNC: Way = Way {
    name: "rsync -a",
    script: r#"rsync -a -e "ssh $NIX_SSHOPTS" --files-from="$LIST" -r "$ROOT/" "root@127.0.0.1:$TARGET""#,
    often: true,
};
const TAR: Way = Way {
    name: "tar | ssh tar",
    script: r#"tar -C "$ROOT" --files-from="$LIST" -cf - | ssh $NIX_SSHOPTS root@127.0.0.1 tar -C "$TARGET" -xpf -"#,
    often: true,
};

struct Case {
    what: &'static str,
    there: There,
    system: fn(&Systems) -> &str,
    full: &'static [Way],
}

const CASES: [Case; 4] = [
    Case {
        what: "everything, into an empty root",
        there: There::Nothing,
        system: |systems| &systems.first,
        full: &[OURS, NIX, TAR, RSYNC, NIX_COMPRESSING],
    },
    Case {
        what: "a mass rebuild: new hashes everywhere",
        there: There::First,
        system: |systems| &systems.rebuilt,
        full: &[OURS, NIX],
    },
    Case {
        what: "one changed package and its dependents",
        there: There::First,
        system: |systems| &systems.changed,
        full: &[OURS, NIX],
    },
    Case { what: "nothing to do", there: There::First, system: |systems| &systems.first, full: &[OURS, NIX] },
];

/// Measures with systems made of the store in `dir`, and prints the table.
pub fn measure(dir: &Path, binary: &Path, rounds: usize, slow_peers: bool) {
    let systems = systems::make(dir, binary);
    let bench = Bench { remote: Remote::new(dir, binary, &systems.root), systems };
    println!("\n{}\n", bench.systems.description);
    println!(
        "{:<42}{:>8}{:>8}{:>8}{:>10}{:>9}{:>9}{:>9}{:>9}",
        "", "wall s", "CPU s", "far CPU", "MiB sent", "peak MiB", "far peak", "wall to", "bytes to"
    );
    let nix: Vec<Cost> = CASES.iter().map(|case| bench.at_full_speed(case, rounds, slow_peers)).collect();
    for shape in FASTER {
        announce(shape);
        for case in &CASES {
            bench.beside_nix(case, shape);
        }
    }
    announce(SLOW);
    // What is short first.
    for (case, nix) in CASES.iter().zip(&nix).rev() {
        match slow_peers {
            true => bench.beside_nix(case, SLOW),
            false => bench.alone(case, SLOW, nix),
        }
    }
    println!(
        "\nMedians of {rounds} rounds in turn, (1) once; warm cache, to an ext4, a sync of it inside the time. Bytes in\n\
         both directions; peaks are of the largest process; the last two columns are in parts of nix copy. On the\n\
         slowest link these are nix copy's bytes at full speed, unless SLOW=1 has it wait for them."
    );
}

fn announce(shape: Shape) {
    println!(
        "\nover {} ms of round trip and {} Mbit/s, once; alone the link carries {:.0} Mbit/s",
        shape.round_trip.as_millis(),
        shape.bits_per_second / 1_000_000,
        shape.carries() / 1e6
    );
}

struct Bench {
    remote: Remote,
    systems: Systems,
}

impl Bench {
    /// Prints what all ways cost, and returns what nix copy does.
    fn at_full_speed(&self, case: &Case, rounds: usize, slow_peers: bool) -> Cost {
        let system = self.begin(case);
        let ways = case.full.iter().filter(|way| way.often || slow_peers);
        let mut rows: Vec<(&Way, Vec<Cost>)> = ways.map(|way| (way, Vec::new())).collect();
        for round in 0..rounds {
            for (way, costs) in rows.iter_mut().filter(|(way, _)| way.often || round == 0) {
                self.remote.reset(case.there);
                costs.push(self.remote.run(way, system, "", None));
            }
        }
        let nix = rows.iter().find(|(way, _)| way.name == NIX.name).map(|(_, costs)| middle(costs));
        let nix = nix.expect("nix copy is among the ways of each case");
        for (way, costs) in &rows {
            print_row(way.name, if way.often { "" } else { " (1)" }, &middle(costs), &nix, true);
        }
        nix
    }

    fn alone(&self, case: &Case, shape: Shape, nix: &Cost) {
        let system = self.begin(case);
        print_row(OURS.name, "", &self.remote.run(&OURS, system, "", Some(shape)), nix, false);
    }

    fn beside_nix(&self, case: &Case, shape: Shape) {
        let system = self.begin(case);
        let cost = self.remote.run(&OURS, system, "", Some(shape));
        self.remote.reset(case.there);
        let nix = self.remote.run(&NIX, system, "", Some(shape));
        print_row(OURS.name, "", &cost, &nix, true);
        print_row(NIX.name, "", &nix, &nix, true);
    }

    /// Makes the target what it is before the case, and returns the system that is to come into it.
    fn begin(&self, case: &Case) -> &str {
        println!("{}", case.what);
        let system = (case.system)(&self.systems);
        let list = self.remote.world.target.with_file_name("list");
        let script = r#"nix-store --store "local?root=$1" --query --requisites "$2" 2>/dev/null |
            sed 's|^/||' >"$3""#;
        sh(script, &[&self.systems.root, Path::new(system), &list]);
        self.remote.prepare(case.there, &self.systems.first);
        system
    }
}

fn print_row(name: &str, remark: &str, cost: &Cost, nix: &Cost, timed: bool) {
    let Cost { wall, near_cpu, far_cpu, near_mib, far_mib, bytes } = *cost;
    let sent = bytes / f64::from(1 << 20);
    let wall_part = if timed { format!("{:.2}", wall / nix.wall) } else { String::new() };
    let bytes_part = bytes / nix.bytes;
    println!(
        "{:<42}{wall:>8.2}{near_cpu:>8.2}{far_cpu:>8.2}{sent:>10.3}{near_mib:>9.1}{far_mib:>9.1}{wall_part:>9}{bytes_part:>9.4}",
        format!("  {name}{remark}")
    );
}
