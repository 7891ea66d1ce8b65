//! Boot entries: which of them systemd-boot starts.
//!
//! Decides only, as systemd-boot(7), loader.conf(5) and the Boot Loader Specification
//! (<https://uapi-group.org/specifications/specs/boot_loader_specification/>) have it: an entry's id is its file's name
//! without boot counters, `preferred` and `default` are patterns over ids, and the first entry in order counts.

use std::cmp::{Ordering, Reverse};

use super::version;

/// A file of `loader/entries`.
#[derive(Debug)]
pub struct Entry {
    /// The file's name, with counters.
    pub file: String,
    id: String,
    /// How often it may still be tried, where its boots are counted.
    tries_left: Option<u32>,
    tries_done: u32,
    text: String,
}

impl Entry {
    pub fn new(file: &str, text: String) -> Entry {
        let stem = file.strip_suffix(".conf").unwrap_or(file);
        let (name, tries_left, tries_done) = match stem.rsplit_once('+').and_then(|(name, counters)| {
            let (left, done) = counters.split_once('-').unwrap_or((counters, "0"));
            Some((name, number(left)?, number(done)?))
        }) {
            Some((name, left, done)) => (name, Some(left), done),
            None => (stem, None, 0),
        };
        let id = format!("{name}.conf").to_ascii_lowercase();
        Entry { file: file.to_owned(), id, tries_left, tries_done, text }
    }

    /// Returns the values of all lines with this name, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        settings(&self.text, name)
    }

    fn value<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        settings(&self.text, name).last()
    }

    fn is_used_up(&self) -> bool {
        self.tries_left == Some(0)
    }

    fn order(&self, other: &Entry) -> Ordering {
        let by_sort_key = |entry: &Entry| entry.value("sort-key").is_none();
        let used_up = self.is_used_up().cmp(&other.is_used_up());
        let keyed = by_sort_key(self).cmp(&by_sort_key(other));
        let by_key = || {
            let texts = |name: &str| self.value(name).cmp(&other.value(name));
            let versions = || {
                let version = |entry: &Entry| entry.value("version").unwrap_or_default().to_owned();
                version::compare(&version(other), &version(self))
            };
            texts("sort-key").then_with(|| texts("machine-id")).then_with(versions)
        };
        let by_id = || version::compare(&other.id, &self.id);
        let by_tries = || {
            let tries = |entry: &Entry| (Reverse(entry.tries_left), entry.tries_done);
            tries(self).cmp(&tries(other))
        };
        let by_key = if by_sort_key(self) { Ordering::Equal } else { by_key() };
        used_up.then(keyed).then(by_key).then_with(by_id).then_with(by_tries)
    }
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Returns the values of the lines with this name in `loader.conf` or an entry.
pub fn settings<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (word, rest) = line.trim().split_once(char::is_whitespace)?;
        (word == name).then(|| rest.trim())
    })
}

/// Finds the entry that is started where nobody chooses another: by the text of `loader.conf`, or the first of all.
pub fn chosen<'a>(conf: &str, entries: &'a [Entry]) -> Option<&'a Entry> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|one, other| one.order(other));
    let first = |pattern: &str, wants: fn(&Entry) -> bool| {
        let pattern = pattern.to_ascii_lowercase();
        sorted.iter().copied().find(|entry| wants(entry) && matches(&pattern, &entry.id))
    };
    let preferred = settings(conf, "preferred").last().and_then(|it| first(it, |entry| !entry.is_used_up()));
    let default = || settings(conf, "default").last().and_then(|it| first(it, |_| true));
    preferred.or_else(default).or_else(|| sorted.first().copied())
}

/// Tells whether a text is what a pattern of `*`, `?` and `[a-z]` says; a backslash takes a character as it is.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut done) = (0, 0);
    // Where the last star stands, and how much it has taken.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(at) {
            Some('*') => {
                star = Some((at, done));
                at += 1;
                continue;
            }
            Some(_) => text.get(done).and_then(|&c| one(&pattern[at..], c)),
            None if done == text.len() => return true,
            None => None,
        };
        match (step, &mut star) {
            (Some(length), _) => (at, done) = (at + length, done + 1),
            (None, Some((place, taken))) if *taken < text.len() => {
                *taken += 1;
                (at, done) = (*place + 1, *taken);
            }
            (None, _) => return false,
        }
    }
}

/// Returns how long the beginning of a pattern is that stands for one character, if it stands for this one.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', wanted, ..] => (*wanted == c).then_some(2),
        ['[', rest @ ..] => {
            // A bracket that comes first is one of the set.
            let end = 1 + rest.iter().skip(1).position(|&c| c == ']')?;
            let (mut set, mut found) = (&rest[..end], false);
            while let [low, tail @ ..] = set {
                let (high, tail) = match tail {
                    ['-', high, tail @ ..] => (high, tail),
                    tail => (low, tail),
                };
                found |= (low..=high).contains(&&c);
                set = tail;
            }
            found.then_some(end + 2)
        }
        [wanted, ..] => (*wanted == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_the_boot_loader() {
        for (pattern, text, expected) in [
            ("nixos-*", "nixos-ab.conf", true),
            ("nixos-*", "arch.conf", false),
            ("*", "", true),
            ("*.conf", "a.b.conf", true),
            ("*-1.conf", "nixos-11.conf", false),
            ("nixos-?.conf", "nixos-1.conf", true),
            ("nixos-?.conf", "nixos-.conf", false),
            ("nixos-[0-9a-f].conf", "nixos-c.conf", true),
            ("nixos-[0-9a-f].conf", "nixos-g.conf", false),
            ("[]x]", "]", true),
            ("[a", "a", false),
            (r"nixos-\*", "nixos-*", true),
            (r"nixos-\*", "nixos-x", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXbcd", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn the_entry_is_the_one_that_systemd_boot_starts() {
        let nixos = |version: &str| format!("version {version}\nsort-key nixos\n");
        let generations = [
            ("nixos-generation-9.conf", nixos("Generation 9")),
            ("nixos-generation-10.conf", nixos("Generation 10")),
        ];
        let by_hash =
            [("nixos-bbbb.conf", nixos("Generation 1")), ("nixos-aaaa+2-1.conf", nixos("Generation 2"))];
        let used_up =
            [("nixos-bbbb.conf", nixos("Generation 1")), ("nixos-aaaa+0-3.conf", nixos("Generation 2"))];
        let others =
            [("arch.conf", String::new()), ("Memtest.conf", String::new()), ("nixos-a.conf", nixos("1"))];
        let machines = [
            ("a.conf", "sort-key nixos\nmachine-id bb\nversion 9\n".to_owned()),
            ("b.conf", "sort-key nixos\nmachine-id aa\nversion 1\n".to_owned()),
        ];
        for (conf, entries, expected) in [
            ("default nixos-generation-9.conf\n", &generations[..], Some("nixos-generation-9.conf")),
            ("default nixos-*\n", &generations, Some("nixos-generation-10.conf")),
            ("timeout 5\n", &generations, Some("nixos-generation-10.conf")),
            ("default gone.conf\n", &generations, Some("nixos-generation-10.conf")),
            // The counters are no part of the id.
            ("default nixos-aaaa.conf\n", &by_hash, Some("nixos-aaaa+2-1.conf")),
            ("preferred nixos-aaaa.conf\ndefault nixos-*\n", &by_hash, Some("nixos-aaaa+2-1.conf")),
            ("preferred nixos-bbbb.conf\ndefault nixos-*\n", &by_hash, Some("nixos-bbbb.conf")),
            ("preferred nixos-aaaa.conf\ndefault nixos-*\n", &used_up, Some("nixos-bbbb.conf")),
            ("default nixos-aaaa.conf\n", &used_up, Some("nixos-aaaa+0-3.conf")),
            ("default nixos-*\n", &used_up, Some("nixos-bbbb.conf")),
            // What has a sort key comes first; the case of a name does not count.
            ("", &others, Some("nixos-a.conf")),
            ("default memtest.conf\n", &others, Some("Memtest.conf")),
            ("default MEM*\n", &others, Some("Memtest.conf")),
            ("", &machines, Some("b.conf")),
            // Of two lines the last one counts.
            ("default arch.conf\ndefault nixos-a.conf\n", &others, Some("nixos-a.conf")),
            ("default nixos-*\n", &[], None),
        ] {
            let entries: Vec<Entry> =
                entries.iter().map(|(file, text)| Entry::new(file, text.clone())).collect();
            assert_eq!(chosen(conf, &entries).map(|entry| entry.file.as_str()), expected, "{conf}");
        }
    }

    #[test]
    fn counters_are_read_from_the_name() {
        for (file, id, left, done) in [
            ("nixos-ab.conf", "nixos-ab.conf", None, 0),
            ("nixos-ab+3.conf", "nixos-ab.conf", Some(3), 0),
            ("nixos-ab+0-3.conf", "nixos-ab.conf", Some(0), 3),
            ("linux-6.1+deb13.conf", "linux-6.1+deb13.conf", None, 0),
            ("x+.conf", "x+.conf", None, 0),
        ] {
            let entry = Entry::new(file, String::new());
            assert_eq!((entry.id.as_str(), entry.tries_left, entry.tries_done), (id, left, done), "{file}");
        }
    }
}
