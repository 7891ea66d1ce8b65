//! An archive as the other end of a delta sees it: rewritten, and read through a window.

use std::ops::Range;

use anyhow::Result;

use super::archive::{Archive, Reader};
use super::rewriting::{MARGIN, Rewriting};

// Reads ahead by this much, so that small pieces cost no system call each.
const AHEAD: u64 = 512 << 10;

/// An archive after a rewriting.
pub(super) struct View<'a> {
    reader: Reader<'a>,
    rewriting: Option<&'a Rewriting>,
    window: Vec<u8>,
    start: u64,
}

impl<'a> View<'a> {
    pub fn new(archive: &'a Archive, rewriting: Option<&'a Rewriting>) -> Self {
        View { reader: archive.reader(), rewriting, window: Vec::new(), start: 0 }
    }

    pub fn size(&self) -> u64 {
        self.reader.archive().size()
    }

    /// Reads `range` into `buffer`, and tells where in the buffer it is.
    pub fn load(&mut self, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<Range<usize>> {
        let margin = if self.rewriting.is_some() { MARGIN as u64 } else { 0 };
        let from = range.start.saturating_sub(margin);
        let to = range.end.saturating_add(margin).min(self.size());
        buffer.clear();
        buffer.resize((to - from) as usize, 0);
        if !buffer.is_empty() {
            self.reader.read(from, buffer)?;
        }
        if let Some(rewriting) = self.rewriting {
            rewriting.apply(buffer);
        }
        Ok((range.start - from) as usize..(range.end - from) as usize)
    }

    /// Returns the bytes of a short range; cheap if asked for in order.
    pub fn bytes(&mut self, range: Range<u64>) -> Result<&[u8]> {
        if range.start < self.start || range.end > self.start + self.window.len() as u64 {
            let ahead = range.end.max(range.start.saturating_add(AHEAD)).min(self.size());
            let mut window = std::mem::take(&mut self.window);
            let loaded = self.load(range.start..ahead, &mut window)?;
            window.truncate(loaded.end);
            window.drain(..loaded.start);
            (self.window, self.start) = (window, range.start);
        }
        let from = (range.start - self.start) as usize;
        Ok(&self.window[from..from + (range.end - range.start) as usize])
    }
}
