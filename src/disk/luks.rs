//! Encrypted partitions: LUKS2, made and opened by cryptsetup.
//!
//! A passphrase reaches cryptsetup on its stdin alone, never in its words. What is opened is closed by
//! the kernel when its last user is gone, so that nothing of ours leaves it open, `kill -9` included.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;

use super::device::kernel_name;
use super::layout::Luks;
use crate::size::Bytes;
use crate::sys::command;
use crate::sys::secret::Secret;

pub mod memory;

/// The tool's name.
pub const TOOL: &str = "cryptsetup";

/// Returns cryptsetup's words that encrypt a partition, without the device, which comes last.
pub fn format_words(luks: &Luks) -> Vec<String> {
    let mut words = vec!["luksFormat".to_owned(), "--batch-mode".to_owned(), "--type=luks2".to_owned()];
    words.extend(luks.label.iter().map(|label| format!("--label={label}")));
    words.extend(luks.uuid.iter().map(|uuid| format!("--uuid={}", uuid.to_ascii_lowercase())));
    words
}

/// Returns cryptsetup's word for the most memory that trying a passphrase is to take; it counts in KiB.
fn memory_word(bound: Bytes) -> String {
    format!("--pbkdf-memory={}", bound.0 >> 10)
}

/// Encrypts a partition: what was on it is lost.
pub fn format(cryptsetup: &Path, luks: &Luks, device: &Path, key: &Secret) -> Result<()> {
    let mut command = command::new(cryptsetup);
    // If the kernel does not tell, cryptsetup decides alone.
    let bound = memory::bound(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    command.args(format_words(luks)).args(bound.map(memory_word)).arg("--key-file=-").arg(device);
    command::output_with_input(&mut command, key.bytes())
        .map(drop)
        .with_context(|| format!("encrypting {}", device.display()))
}

// Whoever looks at new devices, such as udev, lets go of them sooner.
const PATIENCE: Duration = Duration::from_secs(30);

/// An encrypted partition that is open. Dropping it closes it.
#[derive(Debug)]
pub struct Opened {
    /// As the kernel calls it.
    path: PathBuf,
    /// As we call it, below `/dev`.
    name: String,
    /// Keeps it open: from the beginning it is to be closed by whoever closes it last.
    user: File,
}

impl Opened {
    /// Opens an encrypted partition under `name`, which nothing else here is called.
    pub fn open(cryptsetup: &Path, device: &Path, name: &str, key: &Secret) -> Result<Self> {
        let opening = || format!("opening the encrypted {}", device.display());
        let mut open = command::new(cryptsetup);
        open.args(["open", "--type=luks2", "--key-file=-"]).arg(device).arg(name);
        command::output_with_input(&mut open, key.bytes()).with_context(opening)?;
        let user = File::open(Path::new("/dev/mapper").join(name)).with_context(opening);
        let mut close = command::new(cryptsetup);
        close.args(["close", "--deferred", name]);
        let closed = command::output(&mut close).with_context(opening);
        let user = user?;
        closed?;
        // Where there is no udev, cryptsetup removes the node of what it closes, even if that is still in use.
        let number = user.metadata().with_context(opening)?.rdev();
        let path = Path::new("/dev").join(kernel_name(number)?);
        Ok(Opened { path, name: format!("mapper/{name}"), user })
    }

    /// Closes it, and waits until it is.
    pub fn finish(self) -> Result<()> {
        let closing = || format!("closing {}", self.path.display());
        let number = self.user.metadata().with_context(closing)?.rdev();
        drop(self.user);
        let device = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
        let begin = Instant::now();
        while Path::new(&device).exists() {
            ensure!(begin.elapsed() < PATIENCE, "{} is still in use", self.path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the other name that it has below `/dev`, where udev keeps it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::layout::{Content, Swap};

    #[test]
    fn the_tool_is_told_the_names_and_no_secret() {
        let mut luks = Luks {
            name: "root".into(),
            label: None,
            uuid: None,
            settings: Default::default(),
            content: Box::new(Content::Swap(Swap::default())),
        };
        assert_eq!(format_words(&luks).join(" "), "luksFormat --batch-mode --type=luks2");
        luks.label = Some("my root".into());
        luks.uuid = Some("6E0A3C5E-0f4a-4f5a-9f0b-0a4c5d6e7f80".into());
        let words = format_words(&luks);
        assert_eq!(memory_word(Bytes::mib(64)), "--pbkdf-memory=65536");
        assert_eq!(words[3..], ["--label=my root", "--uuid=6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80"]);
    }
}
