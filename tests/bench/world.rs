//! Where is measured: a new file system for each way, and what a way costs.
//!
//! It is new each time because one that has just lost its files makes the next ones slowly. An ext4 is in a
//! loop device that writes past the page cache, as a disk does; a tmpfs shows what is left without any disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

// Root without build users, and nothing from the network.
const NIX_CONFIG: &str = "build-users-group =\nexperimental-features = nix-command\nsubstituters =";

#[derive(Clone, Copy, Default)]
pub struct Cost {
    pub wall: f64,
    pub cpu: f64,
    /// Of the largest process.
    pub memory_mib: f64,
}

/// What a target consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Medium {
    Disk,
    Memory,
}

pub struct World {
    pub target: PathBuf,
    /// The loop device of a target that is on a disk.
    device: Option<String>,
    /// What all scripts find in their environment.
    variables: Vec<(&'static str, String)>,
}

impl World {
    pub fn new(dir: &Path, medium: Medium, variables: Vec<(&'static str, String)>) -> World {
        let target = dir.join("target");
        sh(r#"mkdir -p "$1"; umount "$1" 2>/dev/null || true"#, &[&target]);
        let script = r#"rm -f "$1.img"; fallocate --length 6G "$1.img"
            losetup --find --show --direct-io=on "$1.img" 2>/dev/null || losetup --find --show "$1.img""#;
        let device = (medium == Medium::Disk).then(|| sh(script, &[&target]));
        World { target, device, variables }
    }

    pub fn clear(&self) {
        let Some(device) = &self.device else {
            let script = r#"umount "$1" 2>/dev/null || true; mount -t tmpfs -o size=6G,mode=755 tmpfs "$1""#;
            sh(script, &[&self.target]);
            return;
        };
        // A namespace that has just lost its last process keeps its mounts for a moment. As many inodes as small
        // files need.
        let script = r#"umount "$1" 2>/dev/null || true
            for try in $(seq 100); do
                mkfs.ext4 -q -F -i 8192 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$2" && break || sleep 0.1
            done
            mount "$2" "$1"; sync"#;
        sh(script, &[&self.target, Path::new(device)]);
    }

    /// Runs one way and returns what it cost, a sync included: a child of ours waits for all of its own.
    pub fn run(&self, script: &str, variables: &[(&'static str, String)]) -> Cost {
        let report = self.target.with_extension("time");
        let begin = Instant::now();
        let mut command = Command::new("/usr/bin/time");
        command.args(["--quiet", "--format", "%U %S %M", "--output"]).arg(&report);
        command.args(["sh", "-ec", &format!("{script}\nsync --file-system \"$TARGET\"")]);
        command.envs(self.variables.iter().chain(variables).cloned()).env("TARGET", &self.target);
        command.env("LC_ALL", "C").env("NIX_REMOTE", "").env("NIX_CONFIG", NIX_CONFIG);
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
        sh(r#"umount "$1" 2>/dev/null || true; rm -r "$1""#, &[&self.target]);
        if let Some(device) = &self.device {
            sh(r#"losetup --detach "$2"; rm "$1.img""#, &[&self.target, Path::new(device)]);
        }
    }
}

/// Returns the middle one of some numbers, or of the two in the middle the larger.
pub fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

pub fn sh(script: &str, arguments: &[&Path]) -> String {
    let output =
        Command::new("sh").args(["-euc", script, "sh"]).args(arguments).output().expect("there is a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
