//! A root at the other end of a real SSH connection, and what it costs to bring a system into it.
//!
//! At full speed the connection is alone on the loopback interface of a network namespace, where it is
//! counted without cost; other links are a proxy with a delay and a rate.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::link::Link;
use crate::local;
use crate::machine::{Keys, Machine, bytes_on_loopback};
use crate::world::{Medium, World, median, sh};

pub const NIX: Way = Way {
    name: "nix copy",
    script: r#"nix copy --no-check-sigs --from "local?root=$ROOT" --to "ssh://root@127.0.0.1?$STORE" "$SYSTEM""#,
    often: true,
};
pub const OURS: Way = Way {
    name: "deploy-via-ssh",
    script: r#""$BINARY" deploy-via-ssh --progress none --copy-only $OPTIONS --root "$TARGET" \
        --from "$ROOT" --system "$SYSTEM" -p $PORT -i "$KEY" --ssh-option UserKnownHostsFile="$KNOWN" \
        --ssh-option GlobalKnownHostsFile=/etc/ssh/none --ssh-option BatchMode=yes root@127.0.0.1"#,
    often: true,
};

pub struct Way {
    pub name: &'static str,
    pub script: &'static str,
    /// Whether it is short enough for a median.
    pub often: bool,
}

/// What the target has before.
#[derive(Clone, Copy, PartialEq)]
pub enum There {
    Nothing,
    First,
}

/// What a connection takes in each direction.
#[derive(Clone, Copy)]
pub struct Shape {
    pub round_trip: Duration,
    pub bits_per_second: u64,
}

#[derive(Clone, Copy)]
pub struct Cost {
    pub wall: f64,
    pub near_cpu: f64,
    pub far_cpu: f64,
    pub near_mib: f64,
    pub far_mib: f64,
    pub bytes: f64,
}

pub struct Remote {
    pub world: World,
    keys: Keys,
}

impl Remote {
    /// Makes a target in `dir` that is to get systems of the root `root`, and warms the cache with that.
    pub fn new(dir: &Path, binary: &Path, root: &Path) -> Remote {
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes namespaces");
        sh("ip link set lo up", &[]);
        let keys = Keys::new(dir);
        let variables = vec![
            ("BINARY", binary.display().to_string()),
            ("ROOT", root.display().to_string()),
            ("KEY", keys.identity().display().to_string()),
            ("KNOWN", keys.known(0).display().to_string()),
            ("LIST", dir.join("list").display().to_string()),
        ];
        sh(r#"find "$1/nix/store" -type f -print0 | xargs -0 cat >/dev/null"#, &[root]);
        Remote { world: World::new(dir, Medium::Disk, variables), keys }
    }

    /// Makes a target that has `first`, or nothing.
    pub fn prepare(&self, there: There, first: &str) {
        self.world.clear();
        if there == There::First {
            self.world.run(local::OURS.1, &[("SYSTEM", first.to_owned())]);
            self.remember();
        }
    }

    /// Remembers what is in the target, for [`Remote::reset`].
    pub fn remember(&self) {
        let script = r#"ls -A "$1/nix/store" >"$1.first"; rm -rf "$1.db"; cp -a "$1/nix/var/nix/db" "$1.db""#;
        sh(script, &[&self.world.target]);
    }

    /// Makes the target what it was.
    pub fn reset(&self, there: There) {
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

    /// Brings a system to the target; with further options, if it is our way, and over a link, if it is not at full speed.
    pub fn run(&self, way: &Way, system: &str, options: &str, shape: Option<Shape>) -> Cost {
        let machine = Machine::start(&self.keys, &self.world.target);
        let link = shape.map(|shape| shape.link_to(machine.port));
        let port = link.as_ref().map_or(machine.port, Link::port);
        let known = self.keys.known(port).display().to_string();
        let key = self.keys.identity().display().to_string();
        let ssh_options = format!(
            "-F none -p {port} -i {key} -o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null -o BatchMode=yes"
        );
        let store = format!("remote-store=local%3Froot%3D{}", self.world.target.display());
        let variables = [
            ("SYSTEM", system.to_owned()),
            ("OPTIONS", options.to_owned()),
            ("PORT", port.to_string()),
            ("NIX_SSHOPTS", ssh_options),
            ("STORE", store),
        ];
        let before = bytes_on_loopback();
        let near = self.world.run(way.script, &variables);
        let bytes = match &link {
            None => bytes_on_loopback() - before,
            Some(link) => link.bytes().0 + link.bytes().1,
        };
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

impl Shape {
    fn link_to(self, port: u16) -> Link {
        let link = Link::to_port(port);
        link.shape(self.round_trip / 2, Some(self.bits_per_second / 8));
        link
    }

    /// Returns how many bits a second such a link carries while nothing else is done, by what goes through in
    /// a second.
    pub fn carries(self) -> f64 {
        let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let link = self.link_to(sink.local_addr().expect("it is bound").port());
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).expect("the link listens");
        let (mut far, _) = sink.accept().expect("the link connects");
        let bytes = self.bits_per_second / 8;
        let writing = thread::spawn(move || {
            let piece = [0; 64 << 10];
            let mut left = bytes as usize;
            while left > 0 {
                let count = left.min(piece.len());
                near.write_all(&piece[..count]).expect("the link takes it");
                left -= count;
            }
            near.shutdown(Shutdown::Write).expect("it is connected");
            near
        });
        let mut buffer = vec![0; 64 << 10];
        let first = far.read(&mut buffer).expect("the link brings it");
        let (begin, mut rest) = (Instant::now(), 0);
        while let count @ 1.. = far.read(&mut buffer).expect("the link brings it") {
            rest += count;
        }
        assert_eq!((first + rest) as u64, bytes, "the link loses bytes");
        let seconds = begin.elapsed().as_secs_f64();
        writing.join().expect("writing does not panic");
        rest as f64 * 8.0 / seconds
    }
}

pub fn middle(costs: &[Cost]) -> Cost {
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
