//! The form of netlink messages: headers and attributes, written and read.
//!
//! Names and numbers are those of `linux/netlink.h`. What is read is bounded by the bytes that are there: whatever
//! does not fit ends the reading, and nothing panics.

/// The bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The bytes of `struct nlattr`.
const ATTRIBUTE: usize = 4;
const ALIGNMENT: usize = 4;
// The other two bits of an attribute's type say how it is meant, not what it is.
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

pub const REQUEST: u16 = 0x001;
pub const ACKNOWLEDGE: u16 = 0x004;
pub const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;
/// What was dumped has changed meanwhile.
pub const INTERRUPTED: u16 = 0x010;

pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

/// A request that is being written.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// Begins a request with what always follows its header.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Request(bytes).padded()
    }

    /// Begins a list of attributes without a header.
    pub fn inner() -> Request {
        Request(Vec::new())
    }

    /// Returns the bytes of such a list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("attributes that we write are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.padded()
    }

    /// Adds a string, which the kernel wants with its NUL.
    pub fn with_text(self, kind: u16, text: &str) -> Request {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds those that `inner` adds.
    pub fn with_nested(self, kind: u16, inner: impl FnOnce(Request) -> Request) -> Request {
        self.with(NESTED | kind, &inner(Request::inner()).into_bytes())
    }

    /// Returns the bytes that are sent.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("requests that we write are short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }

    fn padded(mut self) -> Request {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }
}

/// One message of what was received.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// Splits what was received into its messages.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = usize::try_from(number::<4, u32>(header, 0, u32::from_ne_bytes)?).ok()?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(Message {
            kind: number(header, 4, u16::from_ne_bytes)?,
            flags: number(header, 6, u16::from_ne_bytes)?,
            sequence: number(header, 8, u32::from_ne_bytes)?,
            body,
        })
    })
}

/// Reads what the kernel answers, below [`ERROR`] or [`DONE`]: 0, or an errno.
pub fn errno(body: &[u8]) -> i32 {
    number(body, 0, i32::from_ne_bytes).unwrap_or(0).saturating_neg()
}

/// The attributes of a message, or of an attribute that holds some.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns all of them, in their order.
    pub fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(number(rest, 0, u16::from_ne_bytes)?);
            let kind = number(rest, 2, u16::from_ne_bytes)? & TYPE_MASK;
            let value = rest.get(ATTRIBUTE..length)?;
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find_map(|(have, value)| (have == kind).then_some(value))
    }

    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }

    pub fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    pub fn u16(self, kind: u16) -> Option<u16> {
        number(self.get(kind)?, 0, u16::from_ne_bytes)
    }

    pub fn u32(self, kind: u16) -> Option<u32> {
        number(self.get(kind)?, 0, u32::from_ne_bytes)
    }

    /// Returns a string without its NUL.
    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?.split(|&byte| byte == 0).next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Reads the number that lies at `offset`.
pub fn number<const N: usize, T>(bytes: &[u8], offset: usize, read: fn([u8; N]) -> T) -> Option<T> {
    let bytes = bytes.get(offset..offset.checked_add(N)?)?;
    bytes.try_into().ok().map(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let request = Request::new(16, DUMP, &[1, 2, 3, 4, 5])
            .with_text(3, "eth0")
            .with(4, &1500_u32.to_ne_bytes())
            .with_nested(18, |inner| inner.with_text(1, "vlan").with(7, &[9]));
        let bytes = [request.clone().finish(7), request.finish(8)].concat();
        let read: Vec<Message> = messages(&bytes).collect();
        assert_eq!(read.iter().map(|message| message.sequence).collect::<Vec<_>>(), [7, 8]);
        let Message { kind, flags, body, .. } = read[1];
        assert_eq!((kind, flags, &body[..5]), (16, REQUEST | DUMP, &[1, 2, 3, 4, 5][..]));
        let attributes = Attributes(&body[8..]);
        assert_eq!(attributes.text(3).as_deref(), Some("eth0"));
        assert_eq!((attributes.u32(4), attributes.u16(4), attributes.u8(5)), (Some(1500), Some(1500), None));
        let inner = attributes.nested(18);
        assert_eq!((inner.text(1).as_deref(), inner.u8(7), inner.u32(7)), (Some("vlan"), Some(9), None));
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        let good = Request::new(16, 0, &[]).with(1, &[1, 2, 3]).finish(1);
        for length in [0, 1, 15, 17, 25, 1 << 20, u32::MAX] {
            let mut bytes = good.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let read: Vec<Message> = messages(&bytes).collect();
            assert_eq!(read.len(), usize::from(length == 17), "{length}");
        }
        for length in [0, 1, 3, 9, 200, u16::MAX] {
            let mut bytes = good[HEADER..].to_vec();
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Attributes(&bytes).all().count(), 0, "{length}");
        }
        for end in 0..good.len() {
            assert_eq!(messages(&good[..end]).count(), 0, "{end}");
        }
    }
}
