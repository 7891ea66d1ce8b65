//! Where in some bytes a hash part may stand.

use super::path::{HASH_LENGTH, NIX32};

/// Calls `look` with each position that begins as many nix32 digits as a hash part has.
pub fn each_candidate(bytes: &[u8], mut look: impl FnMut(usize)) {
    // Up to here, digits are known to be digits.
    let (mut start, mut known) = (0, 0);
    while start + HASH_LENGTH <= bytes.len() {
        // From the end: one foreign byte rules out every window it is in.
        let from = known.max(start);
        match bytes[from..start + HASH_LENGTH].iter().rposition(|byte| !IS_NIX32[usize::from(*byte)]) {
            Some(foreign) => {
                known = start + HASH_LENGTH;
                start = from + foreign + 1;
            }
            None => {
                known = start + HASH_LENGTH;
                look(start);
                start += 1;
            }
        }
    }
}

const IS_NIX32: [bool; 256] = {
    let mut table = [false; 256];
    let mut index = 0;
    while index < NIX32.len() {
        table[NIX32[index] as usize] = true;
        index += 1;
    }
    table
};
