//! deploy-via-ssh against the tools that one would use instead, in one table.
//!
//! Each way brings a system into a root at the other end of a real SSH connection: everything, what a
//! mass rebuild changes, what one changed package changes, and nothing. At full speed the connection
//! is alone on the loopback interface of a network namespace, where it is counted without cost; the
//! slow link is a proxy with a delay and a rate.

use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::link::Link;
use crate::machine::{Keys, Machine, bytes_on_loopback};
use crate::systems::{self, Systems};
use crate::world::{Medium, World, median, sh};

// There and back, and each way.
const ROUND_TRIP: Duration = Duration::from_millis(50);
const BITS_PER_SECOND: u64 = 20_000_000;

const NIX: Way = Way {
    name: "nix copy",
    script: r#"nix copy --no-check-sigs --from "local?root=$ROOT" --to "ssh://root@127.0.0.1?$STORE" "$SYSTEM""#,
    often: true,
};
const OURS: Way = Way {
    name: "deploy-via-ssh",
    script: r#""$BINARY" deploy-via-ssh --progress none --copy-only --root "$TARGET" \
        --from "$ROOT" --system "$SYSTEM" -p $PORT -i "$KEY" --ssh-option UserKnownHostsFile="$KNOWN" \
        --ssh-option GlobalKnownHostsFile=/etc/ssh/none --ssh-option BatchMode=yes root@127.0.0.1"#,
    often: true,
};
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

struct Way {
    name: &'static str,
    script: &'static str,
    /// Whether it is short enough for a median.
    often: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum There {
    Nothing,
    First,
}

#[derive(Clone, Copy, PartialEq)]
enum Speed {
    Full,
    Slow,
}

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

#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    near_cpu: f64,
    far_cpu: f64,
    near_mib: f64,
    far_mib: f64,
    bytes: f64,
}

/// Measures with systems made of the store in `dir`, and prints the table.
pub fn measure(dir: &Path, binary: &Path, rounds: usize, slow_peers: bool) {
    let systems = systems::make(dir, binary);
    unshare(CloneFlags::CLONE_NEWNET).expect("root makes namespaces");
    sh("ip link set lo up", &[]);
    let keys = Keys::new(dir);
    let variables = vec![
        ("BINARY", binary.display().to_string()),
        ("ROOT", systems.root.display().to_string()),
        ("KEY", keys.identity().display().to_string()),
        ("KNOWN", keys.known(0).display().to_string()),
        ("LIST", dir.join("list").display().to_string()),
    ];
    let mut bench = Bench { world: World::new(dir, Medium::Disk, variables), keys, systems };
    bench.warm();
    println!("\n{}\n", bench.systems.description);
    println!(
        "{:<42}{:>8}{:>8}{:>8}{:>10}{:>9}{:>9}{:>9}{:>9}",
        "", "wall s", "CPU s", "far CPU", "MiB sent", "peak MiB", "far peak", "wall to", "bytes to"
    );
    let nix: Vec<Cost> = CASES.iter().map(|case| bench.at_full_speed(case, rounds, slow_peers)).collect();
    println!(
        "\nover {} ms of round trip and {} Mbit/s, once",
        ROUND_TRIP.as_millis(),
        BITS_PER_SECOND / 1_000_000
    );
    // What is short first.
    for (case, nix) in CASES.iter().zip(&nix).rev() {
        bench.slowly(case, nix, slow_peers);
    }
    println!(
        "\nMedians of {rounds} rounds in turn, (1) once; warm cache, to an ext4, a sync of it inside the time. Bytes in\n\
         both directions; peaks are of the largest process; the last two columns are in parts of nix copy. On the\n\
         slow link these are nix copy's bytes at full speed, unless SLOW=1 has it wait for them."
    );
}

struct Bench {
    world: World,
    keys: Keys,
    systems: Systems,
}

impl Bench {
    fn warm(&self) {
        sh(r#"find "$1/nix/store" -type f -print0 | xargs -0 cat >/dev/null"#, &[&self.systems.root]);
    }

    /// Prints what all ways cost, and returns what nix copy does.
    fn at_full_speed(&mut self, case: &Case, rounds: usize, slow_peers: bool) -> Cost {
        let system = self.begin(case);
        let ways = case.full.iter().filter(|way| way.often || slow_peers);
        let mut rows: Vec<(&Way, Vec<Cost>)> = ways.map(|way| (way, Vec::new())).collect();
        for round in 0..rounds {
            for (way, costs) in rows.iter_mut().filter(|(way, _)| way.often || round == 0) {
                self.reset(case.there);
                costs.push(self.run(way, &system, Speed::Full));
            }
        }
        let nix = rows.iter().find(|(way, _)| way.name == NIX.name).map(|(_, costs)| middle(costs));
        let nix = nix.expect("nix copy is among the ways of each case");
        for (way, costs) in &rows {
            print_row(way.name, if way.often { "" } else { " (1)" }, &middle(costs), &nix, true);
        }
        nix
    }

    fn slowly(&mut self, case: &Case, nix: &Cost, peers: bool) {
        let system = self.begin(case);
        let cost = self.run(&OURS, &system, Speed::Slow);
        if !peers {
            return print_row(OURS.name, "", &cost, nix, false);
        }
        self.reset(case.there);
        let nix = self.run(&NIX, &system, Speed::Slow);
        print_row(OURS.name, "", &cost, &nix, true);
        print_row(NIX.name, "", &nix, &nix, true);
    }

    fn begin(&self, case: &Case) -> String {
        println!("{}", case.what);
        let system = (case.system)(&self.systems).to_owned();
        let list = self.world.target.with_file_name("list");
        let script = r#"nix-store --store "local?root=$1" --query --requisites "$2" 2>/dev/null |
            sed 's|^/||' >"$3""#;
        sh(script, &[&self.systems.root, Path::new(&system), &list]);
        self.prepare(case.there);
        system
    }

    /// Makes a target that has the first system, and remembers what is in it.
    fn prepare(&self, there: There) {
        self.world.clear();
        if there == There::First {
            let script = format!(
                r#""$BINARY" install-to-dir --yes --progress none --from "$ROOT" --system "{}" "$TARGET"
                ls -A "$TARGET/nix/store" >"$TARGET.first"
                rm -rf "$TARGET.db"; cp -a "$TARGET/nix/var/nix/db" "$TARGET.db""#,
                self.systems.first
            );
            self.world.run(&script, &[]);
        }
    }

    /// Makes the target what it was.
    fn reset(&self, there: There) {
        match there {
            There::Nothing => self.world.clear(),
            There::First => {
                let script = r#"cd "$1/nix/store"
                    ls -A | grep -vxFf "$1.first" | xargs -r rm -rf
                    rm -rf "$1/nix/var/nix/db"; cp -a "$1.db" "$1/nix/var/nix/db"; sync"#;
                sh(script, &[&self.world.target]);
            }
        }
    }

    fn run(&mut self, way: &Way, system: &str, speed: Speed) -> Cost {
        let machine = Machine::start(&self.keys, &self.world.target);
        let link = (speed == Speed::Slow).then(|| Link::to_port(machine.port));
        if let Some(link) = &link {
            link.shape(ROUND_TRIP / 2, Some(BITS_PER_SECOND / 8));
        }
        let port = link.as_ref().map_or(machine.port, Link::port);
        let known = self.keys.known(port).display().to_string();
        let key = self.keys.identity().display().to_string();
        let options = format!(
            "-F none -p {port} -i {key} -o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null -o BatchMode=yes"
        );
        let store = format!("remote-store=local%3Froot%3D{}", self.world.target.display());
        let fixed = self.world.variables.len();
        self.world.variables.extend([
            ("SYSTEM", system.to_owned()),
            ("PORT", port.to_string()),
            ("NIX_SSHOPTS", options),
            ("STORE", store),
        ]);
        let before = bytes_on_loopback();
        let near = self.world.run(way.script, &[]);
        let bytes = match &link {
            None => bytes_on_loopback() - before,
            Some(link) => link.bytes().0 + link.bytes().1,
        };
        self.world.variables.truncate(fixed);
        let (far_cpu, far_mib) = machine.costs();
        // A table that takes half an hour shows that it is alive.
        eprintln!(
            "bench: {} took {:.1} s and {:.1} MiB",
            way.name,
            near.wall,
            bytes as f64 / f64::from(1 << 20)
        );
        Cost {
            wall: near.wall,
            near_cpu: near.cpu,
            far_cpu,
            near_mib: near.memory_mib,
            far_mib,
            bytes: bytes as f64,
        }
    }
}

fn middle(costs: &[Cost]) -> Cost {
    let of = |number: fn(&Cost) -> f64| median(costs.iter().map(number));
    Cost {
        wall: of(|cost| cost.wall),
        near_cpu: of(|cost| cost.near_cpu),
        far_cpu: of(|cost| cost.far_cpu),
        near_mib: of(|cost| cost.near_mib),
        far_mib: of(|cost| cost.far_mib),
        bytes: of(|cost| cost.bytes),
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
