//! Every fuzz target for a bounded time: real input and what a small, seeded mutator makes of it.
//!
//! Nothing may panic, and nothing may take more memory than it is granted. A program of its own, for it
//! counts each allocation of its process, and limits what C code may take besides.

mod corpus;
mod floods;
mod memory;
mod mutator;
#[path = "../../fuzz/targets.rs"]
mod targets;
#[path = "../it/wait.rs"]
mod wait;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use memory::alone;
use mutator::Mutator;

type Target = fn(&[u8]) -> Result<()>;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Runs a target on each seed, and on so many inputs made from them; it is granted so much memory.
#[track_caller]
fn run(name: &str, target: Target, rounds: u64, granted: usize) {
    let (alone, seeds) = (alone(), corpus::seeds(name));
    let attempt = |input: &[u8]| {
        let (end, peak) = alone.measured(|| catch_unwind(AssertUnwindSafe(|| target(input))));
        let hex = || input.iter().take(4000).map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(peak <= granted, "{name} took {} KiB of memory for the input {}", peak / KIB, hex());
        end.unwrap_or_else(|_| panic!("{name} panicked; the input was {}", hex()))
    };
    for (file, seed) in &seeds {
        attempt(seed).unwrap_or_else(|error| panic!("{name} refuses its seed {file}: {error:#}"));
    }
    let mut mutator = Mutator::new(rounds);
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let taken = (0..rounds).filter(|_| attempt(&mutator.next(&seeds)).is_ok()).count();
    // Else the mutator would not be gentle enough to come far, or the target believe everything.
    assert!(taken > 0 && (taken as u64) < rounds, "{name} takes {taken} of {rounds}");
}

#[test]
fn frames_of_any_kind_are_read_or_refused() {
    // A packed message may claim the longest length there is.
    run("frames", targets::frames, 50_000, 36 * MIB);
}

#[test]
fn messages_of_any_kind_are_read_or_refused() {
    run("messages", targets::messages, 200_000, 2 * MIB);
}

#[test]
fn archives_of_any_kind_are_restored_or_refused() {
    run("nar", targets::nar, 10_000, MIB);
}

#[test]
fn manifests_of_any_kind_are_read_or_refused() {
    run("manifest", targets::manifest, 100_000, MIB);
}

#[test]
fn deltas_of_any_kind_are_applied_or_refused() {
    // A part, what it is packed against, and what is read ahead.
    run("delta", targets::delta, 30_000, 34 * MIB);
}

#[test]
fn daemons_of_any_kind_are_heard_or_refused() {
    run("daemon", targets::daemon, 2_000, 6 * MIB);
}
