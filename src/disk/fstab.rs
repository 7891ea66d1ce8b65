//! fstab: what a system mounts, and by which names it finds it.
//!
//! Parses only. The names are what a clone must carry so that the unchanged system boots from it.

/// One line of fstab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As written, but with `\040` and the like undone.
    pub device: String,
    /// `none` for swap.
    pub mountpoint: String,
    pub kind: String,
    pub options: Vec<String>,
}

/// What a device is called in fstab or on the kernel command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Label(String),
    Uuid(String),
    PartLabel(String),
    PartUuid(String),
    /// Anything else: a device node, a file, a network address, or a word such as `tmpfs`.
    Other(String),
}

impl Entry {
    pub fn name(&self) -> Name {
        Name::parse(&self.device)
    }

    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|have| have == option)
    }

    /// Returns the value of an option such as `subvol=@home`.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.options.iter().find_map(|have| have.strip_prefix(option)?.strip_prefix('='))
    }

    pub fn is_swap(&self) -> bool {
        self.kind == "swap"
    }

    pub fn is_bind(&self) -> bool {
        self.has("bind") || self.has("rbind")
    }

    /// Returns the name in `/dev/mapper` that is mounted.
    pub fn mapper(&self) -> Option<&str> {
        self.device.strip_prefix("/dev/mapper/")
    }

    /// Returns what a swap lies on that gets a new key at each boot: NixOS's `randomEncryption` calls it by the
    /// path of its device as systemd-escape(1) writes that, without the backslashes.
    pub fn random_key(&self) -> Option<Name> {
        let escaped = self.mapper().filter(|name| self.is_swap() && name.starts_with("dev-"))?;
        let mut path = String::from("/");
        let mut rest = escaped;
        while let Some(c) = rest.chars().next() {
            let code = rest.strip_prefix('x').and_then(|rest| u8::from_str_radix(rest.get(..2)?, 16).ok());
            let (decoded, length) = match code.filter(|code| is_escaped(*code)) {
                Some(code) => (char::from(code), 3),
                None => (if c == '-' { '/' } else { c }, c.len_utf8()),
            };
            path.push(decoded);
            rest = &rest[length..];
        }
        Some(Name::parse(&path))
    }
}

/// Tells what systemd escapes of a path's characters, as far as a device's path may have them.
fn is_escaped(byte: u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric() && !b":_.".contains(&byte)
}

impl Name {
    pub fn parse(device: &str) -> Name {
        type Make = fn(String) -> Name;
        let forms: [(&str, &str, Make); 4] = [
            ("LABEL=", "/dev/disk/by-label/", Name::Label),
            ("UUID=", "/dev/disk/by-uuid/", Name::Uuid),
            ("PARTLABEL=", "/dev/disk/by-partlabel/", Name::PartLabel),
            ("PARTUUID=", "/dev/disk/by-partuuid/", Name::PartUuid),
        ];
        for (tag, directory, make) in forms {
            if let Some(value) = device.strip_prefix(tag) {
                let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                return make(quoted.unwrap_or(value).to_owned());
            }
            if let Some(file) = device.strip_prefix(directory) {
                return make(undo_udev(file));
            }
        }
        Name::Other(device.to_owned())
    }
}

/// Parses fstab. Lines without a type are skipped, as libmount skips them.
pub fn parse(text: &str) -> Vec<Entry> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (device, mountpoint, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let options = fields.next().unwrap_or("defaults");
        Some(Entry {
            device: undo_octal(device),
            mountpoint: undo_octal(mountpoint),
            kind: kind.to_owned(),
            options: options.split(',').filter(|option| !option.is_empty()).map(undo_octal).collect(),
        })
    };
    text.lines().filter(|text| !text.trim_start().starts_with('#')).filter_map(line).collect()
}

/// Undoes the `\040` of fstab and of `/proc/self/mountinfo`.
pub fn undo_octal(text: &str) -> String {
    undo(text, |rest| {
        let digits = rest.get(..3).filter(|digits| digits.iter().all(|b| (b'0'..=b'7').contains(b)))?;
        let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
        Some((u8::try_from(value).ok()?, 3))
    })
}

/// Undoes the `\x20` of names below `/dev/disk`.
pub fn undo_udev(text: &str) -> String {
    undo(text, |rest| {
        let digits = rest.strip_prefix(b"x")?.get(..2)?;
        let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        Some((value, 3))
    })
}

fn undo(text: &str, escape: impl Fn(&[u8]) -> Option<(u8, usize)>) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match (first, escape(after)) {
            (b'\\', Some((byte, length))) => (byte, &after[length..]),
            _ => (first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_all_their_forms() {
        for (device, name) in [
            ("/dev/disk/by-label/nixos", Name::Label("nixos".into())),
            (r"/dev/disk/by-label/my\x20disk\x2f", Name::Label("my disk/".into())),
            ("LABEL=nixos", Name::Label("nixos".into())),
            ("LABEL=\"my disk\"", Name::Label("my disk".into())),
            ("UUID=ABCD-1234", Name::Uuid("ABCD-1234".into())),
            ("/dev/disk/by-partlabel/disk-main-root", Name::PartLabel("disk-main-root".into())),
            (
                "PARTUUID=6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
                Name::PartUuid("6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80".into()),
            ),
            ("/dev/disk/by-id/ata-x-part1", Name::Other("/dev/disk/by-id/ata-x-part1".into())),
            (r"/dev/disk/by-label/x\xzz", Name::Label(r"x\xzz".into())),
        ] {
            assert_eq!(Name::parse(device), name);
        }
    }

    #[test]
    fn swap_with_a_random_key_names_what_it_lies_on() {
        let label = |name: &str| Some(Name::PartLabel(name.to_owned()));
        for (device, expected) in [
            ("/dev/mapper/dev-disk-byx2dpartlabel-diskx2dmainx2dswap", label("disk-main-swap")),
            (r"/dev/mapper/dev-disk-byx2dpartlabel-myx5cx20swap", label("my swap")),
            ("/dev/mapper/dev-disk-byx2dpartlabel-x", label("x")),
            ("/dev/mapper/dev-sda2", Some(Name::Other("/dev/sda2".into()))),
            ("/dev/mapper/swap", None),
            ("/dev/disk/by-partlabel/swap", None),
        ] {
            let entry = &parse(&format!("{device} none swap defaults"))[0];
            assert_eq!(entry.random_key(), expected, "{device}");
        }
        assert_eq!(parse("/dev/mapper/dev-sda2 / ext4 -")[0].random_key(), None);
    }

    #[test]
    fn lines_are_split_and_unescaped() {
        let text = "# made by NixOS\n\n/dev/disk/by-label/a\\040b  /mnt/x\\011y\text4 ro,subvol=@\\040z 0 2\nshort line\nproc /proc proc\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].name(), Name::Label("a b".into()));
        assert_eq!(entries[0].mountpoint, "/mnt/x\ty");
        assert_eq!(entries[0].value("subvol"), Some("@ z"));
        assert!(entries[0].has("ro"));
        assert_eq!(entries[1].options, ["defaults"]);
    }
}
