//! Paths on their way to a far end, one behind the other without a pause.

use std::collections::VecDeque;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::answers::Answers;
use super::frame::{DATA_LIMIT, WireError, Writer};
use super::message::{Answer, Ask};
use super::parcels::{Parcel, Parcels};
use crate::progress::{Event, Progress};
use crate::store::PathInfo;

// How much is packed ahead of the link, by what it is unpacked: enough for all cores to be busy.
const AHEAD: u64 = 64 << 20;
// How often the packing is adapted to the link.
const BALANCE: Duration = Duration::from_millis(250);

/// A path to be sent, and what the far end has that it may be made from.
#[derive(Clone, Debug)]
pub struct Item {
    pub info: PathInfo,
    pub base: Option<PathInfo>,
}

/// Sends paths and returns when the far end has them all, valid.
pub fn send<W: Write>(
    mut items: Vec<Item>,
    parcels: &Parcels,
    writer: &mut Writer<W>,
    answers: &Answers,
    progress: &dyn Progress,
) -> Result<()> {
    let mut sending = Sending { parcels, writer, waited: Waited::new(), buffer: vec![0; DATA_LIMIT] };
    let mut next = 0;
    loop {
        match sending.all(&items, next, answers, progress)? {
            None => return Ok(()),
            Some((unusable, from)) => {
                progress.event(Event::Warning {
                    text: format!(
                        "what the other machine has of {} differs from what its database says; sending {} whole",
                        items[unusable].base.as_ref().map_or(String::new(), |base| base.path.to_string()),
                        items[unusable].info.path
                    ),
                });
                items[unusable].base = None;
                sending.writer.message(&Ask::Again)?;
                next = from;
            }
        }
    }
}

struct Sending<'a, W> {
    parcels: &'a Parcels,
    writer: &'a mut Writer<W>,
    waited: Waited,
    buffer: Vec<u8>,
}

impl<W: Write> Sending<'_, W> {
    /// Sends items from one on. Returns the one whose delta was of no use, if it comes to that, and
    /// from which one on to begin again.
    fn all(
        &mut self,
        items: &[Item],
        first: usize,
        answers: &Answers,
        progress: &dyn Progress,
    ) -> Result<Option<(usize, usize)>> {
        let mut ahead: VecDeque<Arc<Parcel>> = VecDeque::new();
        let (mut ordered, mut bytes) = (first, 0);
        for (number, item) in items.iter().enumerate().skip(first) {
            while ordered < items.len() && (ahead.len() < 2 || bytes < AHEAD) {
                let Item { info, base } = &items[ordered];
                ahead.push_back(self.parcels.order(info, base.as_ref())?);
                bytes += info.nar_size.0;
                ordered += 1;
            }
            let parcel = ahead.pop_front().expect("there is one ahead for each item that is left");
            let base = item.base.as_ref().map(|base| base.path.clone());
            self.writer.message(&Ask::Nar { index: number as u32, base })?;
            self.parcel(&parcel)?;
            bytes -= item.info.nar_size.0;
            progress.advance(item.info.nar_size.0);
            while let Some(answer) = answers.there()? {
                if let Some(unusable) = heard(answer, items, first..number + 1, progress)? {
                    return Ok(Some(unusable));
                }
            }
        }
        self.writer.message(&Ask::End)?;
        loop {
            match answers.wait()? {
                Answer::Received => return Ok(None),
                answer => {
                    if let Some(unusable) = heard(answer, items, first..items.len(), progress)? {
                        return Ok(Some(unusable));
                    }
                }
            }
        }
    }

    fn parcel(&mut self, parcel: &Parcel) -> Result<()> {
        let mut at = 0;
        loop {
            let begin = Instant::now();
            let count = parcel.read_at(at, &mut self.buffer)?;
            let read = Instant::now();
            if count == 0 {
                return self.writer.end();
            }
            self.writer.data(&self.buffer[..count])?;
            at += count as u64;
            self.waited.add(read - begin, read.elapsed(), count, self.parcels);
        }
    }
}

/// Hears an answer while items are sent, of which those in `sent` may be complained of.
fn heard(
    answer: Answer,
    items: &[Item],
    sent: Range<usize>,
    progress: &dyn Progress,
) -> Result<Option<(usize, usize)>> {
    match answer {
        Answer::Unusable { index, from } => {
            let (index, from) = (index as usize, from as usize);
            // What was valid before stays so; to begin before it would never come to an end.
            if !sent.contains(&index) || !(sent.start..=index).contains(&from) || items[index].base.is_none()
            {
                bail!(WireError::Garbled("it complains of a delta that it never got"));
            }
            Ok(Some((index, from)))
        }
        answer => super::answers::overhear(answer, progress).map(|()| None),
    }
}

/// What a connection has waited for since the packing was last adapted.
struct Waited {
    since: Instant,
    starved: Duration,
    blocked: Duration,
    bytes: u64,
}

impl Waited {
    fn new() -> Self {
        Waited { since: Instant::now(), starved: Duration::ZERO, blocked: Duration::ZERO, bytes: 0 }
    }

    fn add(&mut self, starved: Duration, blocked: Duration, bytes: usize, parcels: &Parcels) {
        self.starved += starved;
        self.blocked += blocked;
        self.bytes += bytes as u64;
        let time = self.since.elapsed();
        if time >= BALANCE {
            parcels.balance(self.starved, self.blocked, self.bytes as f64 / time.as_secs_f64());
            *self = Waited::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::size::Bytes;
    use crate::store::hash::NarHash;
    use crate::store::path::StorePath;

    fn item(letter: char, based: bool) -> Item {
        let info = |name: &str| PathInfo {
            path: StorePath::from_base_name(&format!("{}-{name}", letter.to_string().repeat(32))).unwrap(),
            nar_hash: NarHash([0; 32]),
            nar_size: Bytes(100),
            references: Vec::new(),
            deriver: None,
            registration_time: 0,
            ultimate: false,
            signatures: None,
            content_address: None,
            outputs: Vec::new(),
        };
        Item { info: info("new"), base: based.then(|| info("old")) }
    }

    #[test]
    fn only_a_delta_that_was_sent_is_sent_again() {
        let items = [item('a', true), item('b', false), item('c', true), item('d', true)];
        let complaint = |index, from| {
            heard(Answer::Unusable { index, from }, &items, 1..3, &Silent).map(|again| again.unwrap()).ok()
        };
        for (index, from, expected) in [
            (2, 2, Some((2, 2))),
            (2, 1, Some((2, 1))),
            (2, 0, None),
            (0, 0, None),
            (1, 1, None),
            (2, 3, None),
            (3, 3, None),
            (4, 1, None),
            (u32::MAX, 1, None),
        ] {
            assert_eq!(complaint(index, from), expected, "{index} from {from}");
        }
        for odd in [Answer::Received, Answer::Restarting, Answer::Started { token: "00".into() }] {
            assert!(heard(odd, &items, 0..4, &Silent).is_err());
        }
    }
}
