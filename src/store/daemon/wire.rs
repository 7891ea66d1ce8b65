//! Numbers, strings and lists as the daemon's protocol writes them.
//!
//! A number is a little-endian u64. A string is its length, its bytes and zeros up to a multiple
//! of 8. A list is the number of its strings, then the strings. What is read is not trusted: each
//! length is bounded before it is believed.

use crate::size::Bytes;
use crate::store::PathInfo;
use crate::store::path::StorePath;

// The longest store path is /nix/store/, 32 characters, a dash and a name of 211; other texts are short too.
const TEXT_LIMIT: u64 = 4 << 10;
// The largest systems have some ten thousand paths in all.
const REFERENCES_LIMIT: u64 = 100_000;
const SIGNATURES_LIMIT: u64 = 1000;

/// Why nothing could be read.
#[derive(Debug, PartialEq)]
pub enum Stop {
    /// More must come before it can be told what this is.
    Short,
    /// This is nothing a daemon says.
    Garbled(&'static str),
}

/// A request being written.
#[derive(Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn operation(code: u64) -> Self {
        Encoder::default().number(code)
    }

    pub fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub fn string(self, text: &str) -> Self {
        let mut this = self.number(text.len() as u64);
        this.0.extend_from_slice(text.as_bytes());
        this.0.extend_from_slice(&[0; 8][..padding(text.len())]);
        this
    }

    pub fn strings(self, texts: impl ExactSizeIterator<Item = impl AsRef<str>>) -> Self {
        let this = self.number(texts.len() as u64);
        texts.fold(this, |this, text| this.string(text.as_ref()))
    }

    /// Writes what is known of a path, and the path before it, as version 1.16 began to.
    pub fn info(self, info: &PathInfo) -> Self {
        let mut signatures: Vec<&str> = info.signatures.iter().flat_map(|s| s.split_whitespace()).collect();
        signatures.sort_unstable();
        signatures.dedup();
        let hash = info.nar_hash.to_string();
        self.string(&info.path.to_string())
            .string(info.deriver.as_deref().unwrap_or_default())
            .string(hash.strip_prefix("sha256:").unwrap_or(&hash))
            .strings(info.references.iter().map(StorePath::to_string))
            .number(info.registration_time.cast_unsigned())
            .number(info.nar_size.0)
            .number(info.ultimate.into())
            .strings(signatures.into_iter())
            .string(info.content_address.as_deref().unwrap_or_default())
    }
}

/// What has come and was not read yet.
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Decoder { bytes, at: 0 }
    }

    /// Returns how many bytes were read.
    pub fn consumed(&self) -> usize {
        self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let taken = self.bytes[self.at..].get(..count).ok_or(Stop::Short)?;
        self.at += count;
        Ok(taken)
    }

    pub fn number(&mut self) -> Result<u64, Stop> {
        let bytes = self.take(8)?.try_into().expect("eight bytes were taken");
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a number of things that follow.
    pub fn count(&mut self, limit: u64) -> Result<u64, Stop> {
        Some(self.number()?).filter(|&count| count <= limit).ok_or(Stop::Garbled("a list has no end"))
    }

    pub fn string(&mut self, limit: u64) -> Result<&'a [u8], Stop> {
        let length = self.number()?;
        if length > limit {
            return Err(Stop::Garbled("a text has no end"));
        }
        let length = usize::try_from(length).map_err(|_| Stop::Garbled("a text has no end"))?;
        let text = self.take(length)?;
        if self.take(padding(length))?.iter().any(|&byte| byte != 0) {
            return Err(Stop::Garbled("a text is not followed by zeros"));
        }
        Ok(text)
    }

    pub fn text(&mut self) -> Result<&'a str, Stop> {
        str::from_utf8(self.string(TEXT_LIMIT)?).map_err(|_| Stop::Garbled("a text is not UTF-8"))
    }

    pub fn path(&mut self) -> Result<StorePath, Stop> {
        StorePath::parse(self.text()?).map_err(|_| Stop::Garbled("a store path is none"))
    }

    /// Reads what [`Encoder::info`] writes after the path.
    pub fn info(&mut self, path: &StorePath) -> Result<PathInfo, Stop> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let deriver = some(self.text()?);
        let nar_hash = self.text()?.parse().map_err(|_| Stop::Garbled("a NAR hash is none"))?;
        let mut references =
            (0..self.count(REFERENCES_LIMIT)?).map(|_| self.path()).collect::<Result<Vec<_>, _>>()?;
        references.sort();
        let registration_time = self.number()?.cast_signed();
        let nar_size = Bytes(self.number()?);
        let ultimate = self.number()? != 0;
        let signatures =
            (0..self.count(SIGNATURES_LIMIT)?).map(|_| self.text()).collect::<Result<Vec<_>, _>>()?;
        Ok(PathInfo {
            path: path.clone(),
            nar_hash,
            nar_size,
            references,
            deriver,
            registration_time,
            ultimate,
            signatures: some(&signatures.join(" ")),
            content_address: some(self.text()?),
            outputs: Vec::new(),
        })
    }
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_are_what_nix_writes() {
        let request = Encoder::operation(31).string("seven77").strings(["eight888", ""].iter()).number(1);
        let expected = [
            &b"\x1f\0\0\0\0\0\0\0"[..],
            b"\x07\0\0\0\0\0\0\0seven77\0",
            b"\x02\0\0\0\0\0\0\0",
            b"\x08\0\0\0\0\0\0\0eight888",
            b"\0\0\0\0\0\0\0\0",
            b"\x01\0\0\0\0\0\0\0",
        ];
        assert_eq!(request.0, expected.concat());
    }

    #[test]
    fn what_is_known_of_a_path_comes_back_and_no_part_of_it_is_enough() {
        let path = |letter: &str| StorePath::from_base_name(&format!("{}-x", letter.repeat(32))).unwrap();
        let info = PathInfo {
            path: path("a"),
            nar_hash: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            nar_size: Bytes(120),
            references: vec![path("a"), path("b")],
            deriver: Some(format!("{}.drv", path("d"))),
            registration_time: 7,
            ultimate: true,
            signatures: Some("key:c2ln other:c2ln".into()),
            content_address: Some("text:sha256:0c5m".into()),
            outputs: Vec::new(),
        };
        let bare = PathInfo { deriver: None, signatures: None, content_address: None, ..info.clone() };
        for info in [info, bare] {
            let bytes = Encoder::default().info(&info).0;
            let mut decoder = Decoder::new(&bytes);
            let path = decoder.path().unwrap();
            assert_eq!(decoder.info(&path).unwrap(), info);
            assert_eq!(decoder.consumed(), bytes.len());
            for end in 0..bytes.len() {
                let mut decoder = Decoder::new(&bytes[..end]);
                let read = decoder.path().and_then(|path| decoder.info(&path));
                assert_eq!(read, Err(Stop::Short), "{end} bytes");
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_not_believed() {
        let long = u64::MAX.to_le_bytes();
        assert!(matches!(Decoder::new(&long).string(1 << 20), Err(Stop::Garbled(_))));
        assert!(matches!(Decoder::new(&long).count(1000), Err(Stop::Garbled(_))));
        assert!(matches!(Decoder::new(&long).path(), Err(Stop::Garbled(_))));
        let unpadded = b"\x01\0\0\0\0\0\0\0x\0\0\0\0\0\0y";
        assert!(matches!(Decoder::new(unpadded).string(8), Err(Stop::Garbled(_))));
    }
}
