//! From a delta back to an archive.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};

use super::view::View;
use super::{AGAIN, Base, COPY, DeltaError, END, KEEP, NEXT, PACKED, RAW, REACH, SLICE, VERSION};
use crate::sys::pack;

// What is copied at once.
const CHUNK: u64 = 256 << 10;

/// Writes the archive of `size` bytes that the delta in `input`, to its very end, makes of `base`.
///
/// What comes more than once is kept in a file that `scratch` makes, never longer than the archive. The
/// input is taken for hostile: it can make a wrong archive, but no other harm.
pub fn decode(
    input: &mut dyn Read,
    base: Option<&Base>,
    size: u64,
    scratch: &dyn Fn() -> io::Result<File>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut decoder = Decoder {
        input: BufReader::new(input),
        base: base.map(|base| View::new(base.archive, Some(base.rewriting))),
        out: Exactly { out, size, left: size, kept: Kept { scratch, file: None, length: 0, coming: 0 } },
        bytes: Vec::new(),
        prefix: Vec::new(),
        last: Vec::new(),
    };
    match decoder.byte()? {
        VERSION => decoder.parts(),
        other => bail!(DeltaError::Version(other)),
    }
}

struct Decoder<'a, R> {
    input: BufReader<R>,
    base: Option<View<'a>>,
    out: Exactly<'a>,
    bytes: Vec<u8>,
    prefix: Vec<u8>,
    // What the last part held, if it was packed.
    last: Vec<u8>,
}

impl<R: Read> Decoder<'_, R> {
    fn parts(mut self) -> Result<()> {
        loop {
            let kind = self.byte()?;
            if !matches!(kind, PACKED | NEXT) {
                self.last.clear();
            }
            match kind {
                END => break,
                COPY => self.copy()?,
                RAW => self.raw()?,
                PACKED => self.packed()?,
                NEXT => self.next()?,
                KEEP => self.keep()?,
                AGAIN => self.again()?,
                _ => bail!(DeltaError::Bad("a part has an unknown kind")),
            }
        }
        nothing_left(&mut self.input)?;
        self.out.finish()
    }

    fn copy(&mut self) -> Result<()> {
        let (mut left, mut from) = (self.length()?, self.number()?);
        let base = view(&mut self.base, from, left)?;
        while left > 0 {
            let count = left.min(CHUNK);
            self.out.write(base.bytes(from..from + count)?)?;
            (from, left) = (from + count, left - count);
        }
        Ok(())
    }

    fn raw(&mut self) -> Result<()> {
        let length = self.length()?;
        self.fill(length)?;
        self.out.write(&self.bytes)
    }

    fn packed(&mut self) -> Result<()> {
        let (length, from, reach, size) = (self.length()?, self.number()?, self.number()?, self.number()?);
        if reach > REACH {
            bail!(DeltaError::Bad("a prefix is too long"));
        }
        self.fill(size)?;
        let prefix = match reach {
            0 => 0..0,
            _ => view(&mut self.base, from, reach)?.load(from..from + reach, &mut self.prefix)?,
        };
        self.unpack(length, |decoder| &decoder.prefix[prefix])
    }

    fn next(&mut self) -> Result<()> {
        let (length, reach, size) = (self.length()?, self.number()?, self.number()?);
        if reach > self.last.len() as u64 {
            bail!(DeltaError::Bad("a prefix is longer than what stands before it"));
        }
        self.fill(size)?;
        self.unpack(length, |decoder| &decoder.last[decoder.last.len() - reach as usize..])
    }

    fn unpack(&mut self, length: u64, prefix: impl FnOnce(&Self) -> &[u8]) -> Result<()> {
        if length > SLICE {
            bail!(DeltaError::Bad("a packed part is too long"));
        }
        let bytes = pack::unpack(&self.bytes, prefix(self), length as usize)?;
        self.last = bytes.context(DeltaError::Bad("a packed part is damaged"))?;
        self.out.write(&self.last)
    }

    fn keep(&mut self) -> Result<()> {
        let length = self.length()?;
        if self.out.kept.coming > 0 {
            bail!(DeltaError::Bad("more is kept before what is kept has come"));
        }
        self.out.kept.coming = length;
        Ok(())
    }

    fn again(&mut self) -> Result<()> {
        let (mut left, mut from) = (self.length()?, self.number()?);
        while left > 0 {
            let count = left.min(CHUNK);
            self.bytes.resize(count as usize, 0);
            self.out.kept.read(from, &mut self.bytes)?;
            self.out.write(&self.bytes)?;
            (from, left) = (from + count, left - count);
        }
        Ok(())
    }

    // Reads so many bytes. Memory is taken as they come, for the number may be a lie.
    fn fill(&mut self, length: u64) -> Result<()> {
        if length > SLICE {
            bail!(DeltaError::Bad("a part is too long"));
        }
        self.bytes.clear();
        let count =
            self.input.by_ref().take(length).read_to_end(&mut self.bytes).context("reading a delta")?;
        if (count as u64) < length {
            bail!(DeltaError::Truncated);
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        match self.input.read_exact(&mut byte) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => bail!(DeltaError::Truncated),
            other => other.context("reading a delta")?,
        }
        Ok(byte[0])
    }

    // Reads how much a part makes. A delta of parts that make nothing would never come to an end.
    fn length(&mut self) -> Result<u64> {
        let length = self.number()?;
        if length == 0 {
            bail!(DeltaError::Bad("a part is empty"));
        }
        self.out.expect(length)?;
        Ok(length)
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        bail!(DeltaError::Bad("a number is too large"))
    }
}

fn view<'b, 'a>(base: &'b mut Option<View<'a>>, from: u64, length: u64) -> Result<&'b mut View<'a>> {
    let Some(base) = base else { bail!(DeltaError::NoBase) };
    if from.checked_add(length).is_none_or(|end| end > base.size()) {
        bail!(DeltaError::Bad("a part lies outside its base"));
    }
    Ok(base)
}

fn nothing_left(input: &mut impl BufRead) -> Result<()> {
    if !input.fill_buf().context("reading a delta")?.is_empty() {
        bail!(DeltaError::Bad("something follows its end"));
    }
    Ok(())
}

/// Takes as many bytes as there should be.
struct Exactly<'a> {
    out: &'a mut dyn Write,
    size: u64,
    left: u64,
    kept: Kept<'a>,
}

impl Exactly<'_> {
    fn expect(&self, length: u64) -> Result<()> {
        if length > self.left {
            bail!(DeltaError::Size(self.size));
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.expect(bytes.len() as u64)?;
        self.left -= bytes.len() as u64;
        self.kept.take(bytes)?;
        // Who takes them may keep several pieces in mind.
        for piece in bytes.chunks(CHUNK as usize) {
            self.out.write_all(piece).context("passing on what a delta makes")?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        if self.left > 0 {
            bail!(DeltaError::Size(self.size));
        }
        Ok(())
    }
}

/// What comes again.
struct Kept<'a> {
    scratch: &'a dyn Fn() -> io::Result<File>,
    file: Option<File>,
    length: u64,
    /// How much of what is made next is to be kept.
    coming: u64,
}

impl Kept<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let count = self.coming.min(bytes.len() as u64);
        if count == 0 {
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some((self.scratch)().context("making a temporary file")?);
        }
        let file = self.file.as_ref().expect("it was made above");
        file.write_all_at(&bytes[..count as usize], self.length).context("writing a temporary file")?;
        (self.coming, self.length) = (self.coming - count, self.length + count);
        Ok(())
    }

    fn read(&self, from: u64, buffer: &mut [u8]) -> Result<()> {
        let end = from.checked_add(buffer.len() as u64);
        match &self.file {
            Some(file) if end.is_some_and(|end| end <= self.length) => {
                file.read_exact_at(buffer, from).context("reading a temporary file")
            }
            _ => bail!(DeltaError::Bad("a part comes again that was not kept")),
        }
    }
}
