//! zstd: pieces packed with what the other end has in mind, and archives.

use std::io::{BufRead, Read, Write};

use anyhow::{Context, Result};
use zstd::zstd_safe::{CCtx, CParameter, DCtx, get_error_name};

// Below this zstd's own search sees all of a prefix; the long-distance one would only cost time.
const FAR: usize = 1 << 20;
// zstd's tables grow with its levels: what is above would take more than 64 MiB with all else.
const LEVEL: i32 = 9;
// A window is memory at both ends; zstd knows none smaller than the first.
const WINDOW_LOG: std::ops::RangeInclusive<u32> = 10..=25;

/// Packs `bytes` for somebody who has `prefix`.
pub fn pack(bytes: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>> {
    let mut context = CCtx::create();
    let reach = bytes.len() + prefix.len();
    let window = (usize::BITS - reach.leading_zeros()).clamp(*WINDOW_LOG.start(), *WINDOW_LOG.end());
    let mut set = |parameter| context.set_parameter(parameter).map_err(told);
    set(CParameter::CompressionLevel(level.min(LEVEL)))?;
    set(CParameter::WindowLog(window))?;
    set(CParameter::ContentSizeFlag(false))?;
    if !prefix.is_empty() && reach >= FAR {
        set(CParameter::EnableLongDistanceMatching(true))?;
    }
    context.ref_prefix(prefix).map_err(told)?;
    let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(bytes.len()));
    context.compress2(&mut frame, bytes).map_err(told)?;
    Ok(frame)
}

/// Unpacks what [`pack`] made of `length` bytes. None if it is damaged.
pub fn unpack(frame: &[u8], prefix: &[u8], length: usize) -> Result<Option<Vec<u8>>> {
    let mut context = DCtx::create();
    context.ref_prefix(prefix).map_err(told)?;
    let mut bytes = Vec::with_capacity(length);
    match context.decompress(&mut bytes, frame) {
        Ok(_) if bytes.len() == length => Ok(Some(bytes)),
        _ => Ok(None),
    }
}

fn told(code: usize) -> anyhow::Error {
    anyhow::anyhow!("compressing: {}", get_error_name(code))
}

// What the `zstd` program takes unless it is told otherwise.
const ARCHIVE_LEVEL: i32 = 3;
// Each has a few MiB of its own.
const WORKERS: u32 = 16;

/// A stream that is being packed.
pub type Packer<W> = zstd::Encoder<'static, W>;

/// Packs a whole archive on all cores, in a form that does not tell how many these are.
pub fn archive<W: Write>(out: W) -> Result<Packer<W>> {
    let mut encoder = zstd::Encoder::new(out, ARCHIVE_LEVEL).context("compressing")?;
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    encoder.multithread(cores.min(WORKERS)).context("compressing on all cores")?;
    encoder.include_checksum(true).context("compressing")?;
    Ok(encoder)
}

// What `zstd --ultra -22` asks of its reader: memory, by the power of two.
const READ_WINDOW_LOG: u32 = 27;

/// Unpacks what zstd made of anything, as it is read.
pub fn unpacking(packed: impl BufRead) -> Result<impl Read> {
    let mut decoder = zstd::Decoder::with_buffer(packed).context("unpacking")?;
    decoder.window_log_max(READ_WINDOW_LOG).context("unpacking")?;
    Ok(decoder)
}
