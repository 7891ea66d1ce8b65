//! How much memory a passphrase may cost: the more it takes to try one, the dearer it is to guess.
//!
//! Decides only: what the kernel tells of the machine's memory in, a bound out. cryptsetup takes 1 GiB or half of all
//! memory, whichever is less, and some versions take it whether it is free or not.

use crate::size::Bytes;

// What cryptsetup takes where there is enough.
const MOST: Bytes = Bytes::gib(1);
/// What cryptsetup still calls a cost.
pub const LEAST: Bytes = Bytes::mib(64);
/// What is left for cryptsetup itself, for this program and for the kernel.
pub const REST: Bytes = Bytes::mib(64);

/// Returns the most that cryptsetup may take, unless there is enough for all that it would take by itself.
///
/// `meminfo` is the text of `/proc/meminfo`. What can be swapped out counts as free.
pub fn bound(meminfo: &str) -> Option<Bytes> {
    let kib = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse().ok().map(Bytes::kib)
    };
    let all = kib("MemTotal")?;
    // The oldest kernels do not say.
    let free = kib("MemAvailable")? + kib("SwapFree").unwrap_or_default();
    let (wanted, bound) = (MOST.min(Bytes(all.0 / 2)), LEAST.max(free - REST));
    (bound < wanted).then_some(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_with_too_little_memory_is_bounded() {
        for (all, available, swap, expected) in [
            // As much as it may be, and as little as it may be.
            (65_536, 60_000, 0, None),
            (65_536, 1088, 0, None),
            (2048, 1088, 0, None),
            (2048, 1087, 0, Some(1023)),
            // Half of it is free.
            (1024, 576, 0, None),
            (1024, 575, 0, Some(511)),
            // Rescues, with their tools in memory.
            (474, 360, 0, None),
            (474, 250, 0, Some(186)),
            (346, 180, 0, Some(116)),
            (218, 140, 0, Some(76)),
            // Less than that protects nothing.
            (218, 128, 0, Some(64)),
            (218, 60, 0, Some(64)),
            (100, 10, 0, None),
            // What is in use can be swapped out.
            (1024, 200, 376, None),
            (1024, 200, 300, Some(436)),
        ] {
            let kib = |mib: u64| mib << 10;
            let text = format!(
                "MemTotal: {:>15} kB\nMemFree:  1 kB\nMemAvailable:   {} kB\nSwapTotal: 1 kB\nSwapFree: {} kB\n",
                kib(all),
                kib(available),
                kib(swap)
            );
            assert_eq!(bound(&text), expected.map(Bytes::mib), "{text}");
        }
        for unknown in ["", "MemTotal: 1000 kB\nMemFree: 10 kB\n", "MemTotal: x\nMemAvailable: 1 kB\n"] {
            assert_eq!(bound(unknown), None);
        }
    }
}
