//! What a disk was when it was shown: written is that one, or none.
//!
//! Between the look and the first write a person thinks about the question, and meanwhile a cable may be pulled, a stick
//! put in its place, or another installation begin. The disk is looked at once more when nobody else can claim it.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::{fs, io};

use anyhow::{Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::failure::refused;
use crate::size::Bytes;
use crate::sys::ioctl;

// Tables and what says whose they are lie at the ends.
const EDGE: usize = 1 << 20;

/// By what one disk or image is told from another, and from itself after somebody wrote to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The number of a block device, or the device and the inode of a file.
    number: (u64, u64),
    /// Which of all disks this is that the kernel has seen since it started, from Linux 5.15 on.
    sequence: Option<u64>,
    size: Bytes,
    /// What the first and the last MiB hold.
    edges: u64,
}

impl Seen {
    /// Looks at an open disk or image.
    pub fn of(file: &File) -> io::Result<Seen> {
        let meta = file.metadata()?;
        let is_device = meta.file_type().is_block_device();
        let (number, size) = match is_device {
            true => ((meta.rdev(), 0), ioctl::device_size(file)?),
            false => ((meta.dev(), meta.ino()), Bytes(meta.len())),
        };
        let mut hasher = DefaultHasher::new();
        let mut block = vec![0; EDGE.min(size.0 as usize)];
        for start in [0, size.0 - block.len() as u64] {
            file.read_exact_at(&mut block, start)?;
            hasher.write(&block);
        }
        let sequence = is_device.then(|| sequence(meta.rdev())).flatten();
        Ok(Seen { number, sequence, size, edges: hasher.finish() })
    }

    /// Fails unless the open disk or image is the one that was seen, as it was.
    pub fn check(&self, file: &File, shown: &str) -> Result<()> {
        let now = Seen::of(file).with_context(|| format!("looking at {shown} once more"))?;
        let what = match () {
            _ if now == *self => return Ok(()),
            _ if (now.number, now.sequence, now.size) == (self.number, self.sequence, self.size) => {
                "somebody has written to it"
            }
            _ => "another one is in its place",
        };
        Err(refused(format!(
            "{shown} is not as it was when it was shown: {what}; nothing was written, so look again and start over"
        )))
    }
}

fn sequence(number: u64) -> Option<u64> {
    let path = format!("/sys/dev/block/{}:{}/diskseq", libc::major(number), libc::minor(number));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_exchanged_or_written_meanwhile_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for path in [&one, &other] {
            File::create(path).unwrap().set_len(4 << 20).unwrap();
        }
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        let seen = Seen::of(&open(&one)).unwrap();
        seen.check(&open(&one), "x").unwrap();
        let said = |file: &File| seen.check(file, "x.img").unwrap_err().to_string();
        assert!(said(&open(&other)).contains("x.img is not as it was when it was shown: another one"));
        let file = open(&one);
        // What is in the middle is nobody's sign.
        file.write_all_at(b"x", 2 << 20).unwrap();
        seen.check(&file, "x").unwrap();
        file.write_all_at(b"x", (4 << 20) - 1).unwrap();
        assert!(said(&file).contains("somebody has written to it"));
        file.set_len(5 << 20).unwrap();
        assert!(said(&file).contains("another one is in its place"));
        // Smaller than what is looked at.
        let small = dir.path().join("small");
        fs::write(&small, "x").unwrap();
        Seen::of(&open(&small)).unwrap();
    }
}
