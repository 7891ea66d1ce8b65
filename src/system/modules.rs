//! The module tree of a kernel: which drivers it has, and what they need.
//!
//! Decides only: the texts that depmod left beside the modules come in. A driver may be built into the
//! kernel; then it needs no loading, and drives what its aliases say just the same.

use std::collections::{BTreeMap, BTreeSet};

mod order;
mod pattern;
#[cfg(test)]
pub mod testing;

pub use order::ModuleError;

/// What depmod and the kernel's build left in a directory of modules, file by file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Texts<'a> {
    /// `modules.dep`.
    pub dep: &'a str,
    /// `modules.alias`.
    pub alias: &'a str,
    /// `modules.softdep`.
    pub softdep: &'a str,
    /// `modules.builtin`.
    pub builtin: &'a str,
    /// `modules.builtin.modinfo`, which kernels have since 5.2.
    pub builtin_modinfo: &'a [u8],
}

/// All drivers of one kernel. Names are compared as modprobe does: `-` and `_` are the same.
#[derive(Debug, Default)]
pub struct Tree {
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    // Patterns and whom they lead to, in the order of the texts.
    aliases: Vec<(String, String)>,
    softdeps: BTreeMap<String, Softdeps>,
}

#[derive(Debug)]
struct Module {
    /// Relative to the directory of the tree.
    path: String,
    /// The names of all it needs, and they, in the order of loading.
    needs: Vec<String>,
}

/// What a module would like to have loaded before and after it.
#[derive(Debug, Default)]
struct Softdeps {
    before: Vec<String>,
    after: Vec<String>,
}

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the kernel.
    Builtin,
    /// In a file of its own.
    Module,
}

/// The drivers that match an alias, each once, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    pub builtin: BTreeSet<String>,
    pub modules: BTreeSet<String>,
}

impl Matches {
    pub fn is_empty(&self) -> bool {
        self.builtin.is_empty() && self.modules.is_empty()
    }
}

impl Tree {
    /// Reads a tree. Lines that say nothing to us are passed over, as modprobe does.
    pub fn parse(texts: Texts) -> Tree {
        let mut tree = Tree::default();
        for line in words(texts.dep) {
            let (path, needs) = line.split_once(':').unwrap_or((line, ""));
            // The farthest stands last.
            let needs = needs.split_whitespace().rev().map(name_of).collect();
            tree.modules.insert(name_of(path), Module { path: path.trim().to_owned(), needs });
        }
        for line in words(texts.alias) {
            let alias = line.strip_prefix("alias ").and_then(|rest| rest.trim().rsplit_once(' '));
            if let Some((alias, name)) = alias {
                tree.aliases.push((pattern::normal(alias.trim()), pattern::normal(name)));
            }
        }
        for line in words(texts.softdep) {
            tree.add_softdep(line);
        }
        tree.builtin = words(texts.builtin).map(name_of).collect();
        for record in texts.builtin_modinfo.split(|&byte| byte == 0) {
            tree.add_builtin(&String::from_utf8_lossy(record));
        }
        tree
    }

    /// Reads `softdep NAME pre: A B post: C`. Words without a place count for nothing, as in modprobe.
    fn add_softdep(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { return };
        let softdeps = self.softdeps.entry(pattern::normal(name)).or_default();
        let mut place = None;
        for word in words {
            match word {
                "pre:" => place = Some(&mut softdeps.before),
                "post:" => place = Some(&mut softdeps.after),
                name => place.iter_mut().for_each(|list| list.push(pattern::normal(name))),
            }
        }
    }

    /// Reads `NAME.alias=PATTERN`, and learns of the driver from every other record.
    fn add_builtin(&mut self, record: &str) {
        let Some((key, value)) = record.split_once('=') else { return };
        let Some((name, field)) = key.split_once('.') else { return };
        let name = pattern::normal(name);
        if field == "alias" {
            self.aliases.push((pattern::normal(value), name.clone()));
        }
        self.builtin.insert(name);
    }

    /// Tells where the driver called `name` is, if there is one.
    pub fn home_of(&self, name: &str) -> Option<Home> {
        let name = pattern::normal(name);
        match () {
            _ if self.builtin.contains(&name) => Some(Home::Builtin),
            _ if self.modules.contains_key(&name) => Some(Home::Module),
            _ => None,
        }
    }

    /// Returns the drivers for a device, or for anything else that has an alias, such as `fs-ext4`.
    pub fn drivers_of(&self, modalias: &str) -> Matches {
        let modalias = pattern::normal(modalias);
        let mut drivers = Matches::default();
        for (_, name) in self.aliases.iter().filter(|(alias, _)| pattern::matches(alias, &modalias)) {
            match self.home_of(name) {
                Some(Home::Builtin) => drivers.builtin.insert(name.clone()),
                Some(Home::Module) => drivers.modules.insert(name.clone()),
                None => false,
            };
        }
        drivers
    }

    /// Returns the drivers that a name stands for: the module that is called so or, as an alias, others.
    pub fn find(&self, name: &str) -> Matches {
        let name = pattern::normal(name);
        if self.home_of(&name) == Some(Home::Module) {
            return Matches { modules: BTreeSet::from([name]), ..Matches::default() };
        }
        // A part of the kernel, such as crc32, may have an alias of modules for its name.
        let mut matches = self.drivers_of(&name);
        matches.builtin.extend(self.builtin.get(&name).cloned());
        matches
    }
}

/// Returns the lines of a text that are no comments.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Returns the name of the module in a file, compressed or not.
fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    pattern::normal(file.split(".ko").next().unwrap_or_default())
}

#[cfg(test)]
mod tests;
