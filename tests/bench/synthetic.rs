//! A store of many small paths: as many as the largest systems have, and nothing in them that takes room.
//!
//! Each path holds the same number of files, each of a block or less, and refers to a few earlier ones, most of
//! them to the earliest: as packages refer to a libc. The same size gives the same store.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nixos_install_via::store::db::Database;
use nixos_install_via::store::path::StorePath;

use crate::systems::{Maker, path_of, take};

/// How many files a path has.
pub const FILES: usize = 50;
const DIRECTORIES: [&str; 5] = ["bin", "lib", "share/doc", "share/man/man1", "share/locale/de"];
const REFERENCES: usize = 8;
// The most that a file has, so that each takes a block.
const LENGTH: usize = 4000;
const WORDS: [&str; 16] = [
    "the", "store", "path", "holds", "few", "bytes", "of", "each", "package", "and", "more", "files", "than",
    "anybody", "counts", "once",
];

pub struct Synthetic {
    pub root: PathBuf,
    /// Refers to all paths, with what these refer to.
    pub first: String,
    /// The same but for one path: the system itself.
    pub changed: String,
}

/// Makes a store of so many paths below `dir`, if it is not there yet, and systems with `binary` in them.
pub fn make(dir: &Path, paths: usize, binary: &Path) -> Synthetic {
    let root = dir.join(format!("paths-{paths}"));
    let maker = Maker { root: root.clone() };
    let made = root.join("made");
    if !made.exists() {
        eprintln!("bench: making {paths} store paths of {FILES} files");
        if root.exists() {
            fs::remove_dir_all(&root).expect("it is ours");
        }
        fs::create_dir_all(root.join("nix/store")).expect("the directory can be written");
        let next = Mutex::new(0..paths);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(number) = take(&next) {
                        fill(&maker.place(&path(number)), number);
                    }
                });
            }
        });
        maker.register((0..paths).map(path));
        fs::write(&made, "").expect("the directory can be written");
    }
    let database = Database::open(&root).unwrap().expect("its paths are registered");
    let valid: BTreeSet<StorePath> = database.all().unwrap().into_iter().collect();
    let referred: BTreeSet<usize> = (0..paths).flat_map(references).collect();
    let tops: Vec<usize> = (0..paths).filter(|number| !referred.contains(number)).collect();
    let tool = maker.tool("many", binary, &valid);
    let system =
        |state: &str, tops: &[usize]| maker.system(state, tops.iter().copied().map(path), &tool, &valid);
    Synthetic { first: system("many", &tops), changed: system("many, changed", &tops[1..]), root }
}

fn path(number: usize) -> StorePath {
    path_of("many", &format!("package{number}-1.{}.{}", number % 13, number % 7))
}

/// Returns which paths one refers to.
fn references(number: usize) -> BTreeSet<usize> {
    let mut random = Random(number as u64);
    let one = |_| {
        let part = random.below(1 << 16);
        number * part / (1 << 16) * part / (1 << 16)
    };
    (0..REFERENCES.min(number)).map(one).collect()
}

fn fill(place: &Path, number: usize) {
    for directory in DIRECTORIES {
        fs::create_dir_all(place.join(directory)).unwrap();
    }
    let mut random = Random(!(number as u64));
    for file in 0..FILES {
        let mut text = String::new();
        // Some refer to themselves.
        let own = number.is_multiple_of(3).then_some(number);
        for reference in references(number).into_iter().chain(own).filter(|_| file == 0) {
            writeln!(text, "{}", path(reference)).expect("a text takes everything");
        }
        let length = 1 + random.below(LENGTH - text.len());
        while text.len() < length {
            text.push_str(WORDS[random.below(WORDS.len())]);
            text.push(if random.below(8) == 0 { '\n' } else { ' ' });
        }
        fs::write(place.join(DIRECTORIES[file % DIRECTORIES.len()]).join(format!("file-{file}")), text)
            .unwrap();
    }
}

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}
