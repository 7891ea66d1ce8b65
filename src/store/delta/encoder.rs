//! From two archives to a delta.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;

use anyhow::{Context, Result};

use super::archive::{Archive, Kind};
use super::mates::mates;
use super::repeats::{Repeat, repeats};
use super::view::View;
use super::{AGAIN, Base, COPY, END, KEEP, NEXT, PACKED, RAW, REACH, SLICE, VERSION};
use crate::sys::pack;

// What is compared at once.
const CHUNK: u64 = 64 << 10;
// Amid what is fresh a shorter copy is left to zstd: each part between copies costs a frame and a prefix of its own.
const COPY_FROM: u64 = 16 << 10;
// From this level of zstd's on, what was sent last is worth the time that it takes to search it.
const LEANING: i32 = 3;
// A shorter part does not get smaller.
const PACK_FROM: u64 = 32;
// Where bytes are no longer equal, this many that are again begin a new run.
const EQUAL_AGAIN: usize = 16;
// How far around the place it should be in a part may come from: so far, or this many times its length.
const NEARBY: u64 = 64 << 10;
const NEARBY_TIMES: u64 = 2;

/// Writes the delta from `base` to `new`, or `new` compressed where there is no base, at a level of zstd's up to 9.
pub fn encode(new: &Archive, base: Option<&Base>, level: i32, out: &mut dyn Write) -> Result<()> {
    let mates = match base {
        Some(base) => mates(new, base.archive, base.rewriting),
        None => vec![None; new.pieces().len()],
    };
    // What has a mate comes from the base.
    let alone = (0..new.pieces().len() as u32).filter(|&piece| mates[piece as usize].is_none());
    let repeats = repeats(new, alone)?;
    let mut encoder = Encoder {
        new: View::new(new, None),
        base: base.map(|base| View::new(base.archive, Some(base.rewriting))),
        level,
        out,
        run: Run::default(),
        fresh: Fresh::default(),
        bytes: Vec::new(),
        prefix: Vec::new(),
        last: Vec::new(),
        kept: HashMap::new(),
        kept_length: 0,
    };
    encoder.out.write_all(&[VERSION]).context("writing a delta")?;
    for (piece, mate) in (0..).zip(mates) {
        match (base, mate, repeats.get(&piece)) {
            (Some(base), Some(mate), _) => encoder.piece(new, base.archive, piece, mate)?,
            (_, _, Some(repeat)) => encoder.repeat(new, piece, *repeat)?,
            _ => encoder.fresh(new.pieces()[piece as usize].at..new.end(piece), None)?,
        }
    }
    encoder.settle()?;
    encoder.flush()?;
    encoder.out.write_all(&[END]).context("writing a delta")
}

struct Encoder<'a> {
    new: View<'a>,
    base: Option<View<'a>>,
    level: i32,
    out: &'a mut dyn Write,
    // What was found last follows what is fresh.
    run: Run,
    fresh: Fresh,
    bytes: Vec<u8>,
    prefix: Vec<u8>,
    // What the last part holds, if it is packed.
    last: Vec<u8>,
    // Where in what the other end keeps a file's contents begin, and how long that is by now.
    kept: HashMap<u32, u64>,
    kept_length: u64,
}

/// Bytes that are the same in both.
#[derive(Clone, Copy, Default)]
struct Run {
    at: u64,
    length: u64,
    from: u64,
}

/// Bytes to be packed, and where in the base they may come from.
#[derive(Clone, Default)]
struct Fresh {
    at: u64,
    length: u64,
    from: Option<Range<u64>>,
}

impl Encoder<'_> {
    fn piece(&mut self, new: &Archive, base: &Archive, piece: u32, mate: u32) -> Result<()> {
        let range = new.pieces()[piece as usize].at..new.end(piece);
        let other = base.pieces()[mate as usize].at..base.end(mate);
        // Contents lie side by side, and framing as far as it is as long.
        let (contents, others) = (new.contents(piece), base.contents(mate));
        let before = (contents - range.start).min(others - other.start);
        let behind = (range.end - contents).min(other.end - others);
        let place = Place { range: range.clone(), other };
        self.fresh(range.start..contents - before, Some(&place))?;
        self.compare(contents - before, others - before, before + behind, &place)?;
        self.fresh(contents + behind..range.end, Some(&place))
    }

    // Contents that there are more than once.
    fn repeat(&mut self, new: &Archive, piece: u32, repeat: Repeat) -> Result<()> {
        let Kind::File { size, .. } = new.pieces()[piece as usize].kind else {
            unreachable!("only files repeat")
        };
        let contents = new.contents(piece);
        self.fresh(new.pieces()[piece as usize].at..contents, None)?;
        self.settle()?;
        self.flush()?;
        match repeat {
            Repeat::First => {
                self.part(KEEP, &[size])?;
                self.kept.insert(piece, self.kept_length);
                self.kept_length += size;
                self.fresh(contents..contents + size, None)?;
            }
            Repeat::Again(first) => self.part(AGAIN, &[size, self.kept[&first]])?,
        }
        self.fresh(contents + size..new.end(piece), None)
    }

    fn compare(&mut self, mut at: u64, mut from: u64, mut left: u64, place: &Place) -> Result<()> {
        while left > 0 {
            let count = left.min(CHUNK);
            let base = self.base.as_mut().expect("there are mates only in a base");
            let spans = spans(self.new.bytes(at..at + count)?, base.bytes(from..from + count)?);
            for (length, equal) in spans {
                match equal {
                    true => self.equal(at, from, length)?,
                    false => self.fresh(at..at + length, Some(place))?,
                }
                (at, from) = (at + length, from + length);
            }
            left -= count;
        }
        Ok(())
    }

    fn equal(&mut self, at: u64, from: u64, length: u64) -> Result<()> {
        if self.run.length > 0 && self.run.from + self.run.length == from {
            self.run.length += length;
            return Ok(());
        }
        self.settle()?;
        self.run = Run { at, length, from };
        Ok(())
    }

    // Decides what becomes of the last run. Where nothing fresh would be cut in two, a copy is cheap.
    fn settle(&mut self) -> Result<()> {
        let Run { at, length, from } = std::mem::take(&mut self.run);
        if length >= COPY_FROM || (length >= PACK_FROM && self.fresh.length == 0) {
            self.flush()?;
            self.part(COPY, &[length, from])
        } else {
            self.join(at..at + length, Some(from..from + length))
        }
    }

    fn fresh(&mut self, range: Range<u64>, place: Option<&Place>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.settle()?;
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + SLICE);
            self.join(at..end, place.map(|place| place.of(at..end)))?;
            at = end;
        }
        Ok(())
    }

    // Adds to what is fresh, or begins anew where it would become too much.
    fn join(&mut self, range: Range<u64>, from: Option<Range<u64>>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let both = match (&self.fresh.from, &from) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.clone().or(b.clone()),
        };
        let length = range.end - range.start;
        let fits = both.as_ref().is_none_or(|both| both.end - both.start <= REACH);
        if self.fresh.length > 0 && (!fits || self.fresh.length + length > SLICE) {
            self.flush()?;
            self.fresh = Fresh { at: range.start, length, from };
        } else {
            let at = if self.fresh.length > 0 { self.fresh.at } else { range.start };
            self.fresh = Fresh { at, length: self.fresh.length + length, from: both };
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Fresh { at, length, from } = std::mem::take(&mut self.fresh);
        if length == 0 {
            return Ok(());
        }
        self.new.load(at..at + length, &mut self.bytes)?;
        if length >= PACK_FROM {
            let (kind, numbers, frame) = self.packed(length, from)?;
            if (frame.len() as u64) < length {
                let numbers: Vec<u64> = numbers.into_iter().chain([frame.len() as u64]).collect();
                self.part(kind, &numbers)?;
                if self.level >= LEANING {
                    std::mem::swap(&mut self.last, &mut self.bytes);
                }
                return self.out.write_all(&frame).context("writing a delta");
            }
        }
        self.part(RAW, &[length])?;
        self.out.write_all(&self.bytes).context("writing a delta")
    }

    // Packs what was loaded: the part's kind, its numbers but for the last, and the frame.
    fn packed(&mut self, length: u64, from: Option<Range<u64>>) -> Result<(u8, Vec<u64>, Vec<u8>)> {
        match (&mut self.base, from) {
            (Some(base), Some(from)) => {
                let from = around(from, length, base.size());
                let prefix = base.load(from.clone(), &mut self.prefix)?;
                let frame = pack::pack(&self.bytes, &self.prefix[prefix], self.level)?;
                Ok((PACKED, vec![length, from.start, from.end - from.start], frame))
            }
            _ if !self.last.is_empty() => {
                let frame = pack::pack(&self.bytes, &self.last, self.level)?;
                Ok((NEXT, vec![length, self.last.len() as u64], frame))
            }
            _ => Ok((PACKED, vec![length, 0, 0], pack::pack(&self.bytes, &[], self.level)?)),
        }
    }

    fn part(&mut self, kind: u8, numbers: &[u64]) -> Result<()> {
        self.last.clear();
        self.out.write_all(&[kind]).context("writing a delta")?;
        numbers.iter().try_for_each(|&number| self.number(number))
    }

    fn number(&mut self, mut number: u64) -> Result<()> {
        while number >= 0x80 {
            self.out.write_all(&[number as u8 | 0x80]).context("writing a delta")?;
            number >>= 7;
        }
        self.out.write_all(&[number as u8]).context("writing a delta")
    }
}

/// A piece and its mate.
struct Place {
    range: Range<u64>,
    other: Range<u64>,
}

impl Place {
    // Where in the mate a part of the piece should be, if what came or went did so evenly.
    fn of(&self, part: Range<u64>) -> Range<u64> {
        let (length, other) = (self.range.end - self.range.start, self.other.end - self.other.start);
        let scale = |at: u64| u128::from(at - self.range.start) * u128::from(other) / u128::from(length);
        let reach = |at: u64| self.other.start + scale(at) as u64;
        let (start, end) = (reach(part.start), reach(part.end));
        start..end.min(start + REACH)
    }
}

/// Widens where bytes should come from to where they may come from.
fn around(from: Range<u64>, length: u64, size: u64) -> Range<u64> {
    let spare = REACH - (from.end - from.start).min(REACH);
    let margin = NEARBY.max(length.saturating_mul(NEARBY_TIMES)).min(spare / 2);
    from.start.saturating_sub(margin)..(from.end + margin).min(size)
}

/// Cuts two equally long pieces where they begin or cease to be equal: lengths, and whether they are.
fn spans(new: &[u8], base: &[u8]) -> Vec<(u64, bool)> {
    let mut spans = Vec::new();
    let mut at = 0;
    while at < new.len() {
        let equal = common(&new[at..], &base[at..]);
        if equal > 0 {
            spans.push((equal as u64, true));
        }
        at += equal;
        let differ = until_again(&new[at..], &base[at..]);
        if differ > 0 {
            spans.push((differ as u64, false));
        }
        at += differ;
    }
    spans
}

fn common(new: &[u8], base: &[u8]) -> usize {
    const STEP: usize = 256;
    let mut at = 0;
    while at + STEP <= new.len() && new[at..at + STEP] == base[at..at + STEP] {
        at += STEP;
    }
    at + new[at..].iter().zip(&base[at..]).take_while(|(a, b)| a == b).count()
}

// Returns after how many bytes some are equal again, or that all differ.
fn until_again(new: &[u8], base: &[u8]) -> usize {
    let mut run = 0;
    for (at, (a, b)) in new.iter().zip(base).enumerate() {
        run = if a == b { run + 1 } else { 0 };
        if run == EQUAL_AGAIN {
            return at + 1 - EQUAL_AGAIN;
        }
    }
    new.len()
}
