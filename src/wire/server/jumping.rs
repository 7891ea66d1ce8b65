//! A machine that jumps: it loads a kernel and an initrd, says so, and is no more what it was.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread::sleep;

use anyhow::{Context, Result, bail};

use super::{FAREWELL, Server};
use crate::boot::kexec;
use crate::sys::cpio::Archive;
use crate::sys::file;
use crate::system::host_keys;
use crate::system::rescue;
use crate::wire::frame::{Incoming, WireError};
use crate::wire::message::Answer;

// What a kernel and an initrd may have, each; those of distributions have less than a fifth.
const LIMIT: u64 = 512 << 20;
const CONSOLE: (u32, u32) = (5, 1);

impl<R: Read, W: Write + Send> Server<'_, R, W> {
    /// Loads what comes and starts it. Returns only if that fails.
    pub(super) fn jump(&mut self, command_line: &str) -> Result<()> {
        let kernel = self.keep("the kernel")?;
        let mut initrd = self.keep("the initrd")?;
        initrd.seek(SeekFrom::End(0)).context("writing the initrd")?;
        add_own_part(&mut initrd).context("writing the initrd")?;
        // The kernel takes no file that is open for writing.
        let kernel = read_only(kernel).context("reading the kernel")?;
        let initrd = read_only(initrd).context("reading the initrd")?;
        kexec::load(&kernel, &initrd, command_line)?;
        self.output.message(&Answer::Jumping)?;
        // The near end hangs up. If it does not, the jump is what ends the connection.
        sleep(FAREWELL);
        match kexec::jump()? {}
    }

    /// Keeps what comes in a file without a name, on a disk if there is one.
    fn keep(&mut self, what: &str) -> Result<File> {
        let mut kept = file::spool().with_context(|| format!("making a file for {what}"))?;
        let mut data = Incoming::new(&mut self.input);
        let count = io::copy(&mut (&mut data).take(LIMIT + 1), &mut kept)
            .with_context(|| format!("keeping {what}; is the disk full there?"))?;
        if count > LIMIT {
            bail!(WireError::Garbled("a kernel or an initrd is too long"));
        }
        data.finish()?;
        Ok(kept)
    }
}

/// Adds to an initrd what is of this machine: this program, as its first, and the host keys.
fn add_own_part(initrd: &mut File) -> Result<()> {
    let mut archive = Archive::new(initrd);
    for dir in ["dev", "proc", "sys", "run", "tmp"] {
        archive.dir(dir, 0o755)?;
    }
    archive.device("dev/console", 0o600, CONSOLE.0, CONSOLE.1)?;
    let program = File::open("/proc/self/exe")?;
    let length = program.metadata()?.len();
    archive.file("init", 0o755, length, program)?;
    for key in host_keys::read(Path::new("/"))? {
        let path = format!("{}/{}", rescue::HOST_KEYS, key.name);
        let bytes = key.private.bytes();
        archive.file(&path, 0o600, bytes.len() as u64, bytes)?;
        if let Some(public) = &key.public {
            archive.file(format!("{path}.pub"), 0o644, public.len() as u64, public.as_bytes())?;
        }
    }
    archive.finish().map(drop)
}

fn read_only(file: File) -> io::Result<File> {
    file.sync_all()?;
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    drop(file);
    again
}
