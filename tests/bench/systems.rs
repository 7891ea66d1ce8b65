//! Systems to deploy: what distribution packages become when they are built by Nix, and rebuilt.
//!
//! The *first* system is the store that `store.sh` made, with references: each ELF file carries the
//! store paths of its libraries (patchelf), and scripts name their interpreter and their own path.
//! The *rebuilt* one has a new hash everywhere and no other change. In the *changed* one a
//! package has other contents, and all that depends on it new hashes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nixos_install_via::size::Bytes;
use nixos_install_via::store::db::Database;
use nixos_install_via::store::hash::{Hashing, NarHash};
use nixos_install_via::store::nar::{NarStream, Nothing};
use nixos_install_via::store::path::{HASH_LENGTH, NIX32, STORE_DIR, StorePath};
use nixos_install_via::store::{PathInfo, copy};
use sha2::{Digest, Sha256};

use crate::real_nix;
use crate::world::sh;

// Has many dependents; what is not a hundred paths is not much of a test.
const CHANGED: &str = "libssl3";
// A rebuild from changed sources: this many bytes of each stretch differ.
const STRETCH: usize = 4096;
const DIFFERENT: usize = 8;
const PREFIX: &[u8] = b"/nix/store/";
// Larger ones are data, whatever they look like.
const TEXT_LIMIT: u64 = 256 << 10;

pub struct Systems {
    pub root: PathBuf,
    pub first: String,
    pub rebuilt: String,
    pub changed: String,
    /// What it is about, in a line.
    pub description: String,
}

type Hashes = HashMap<[u8; HASH_LENGTH], StorePath>;

/// Makes the three systems in `dir`, each with `binary` in it; of packages only what is not there yet.
pub fn make(dir: &Path, binary: &Path) -> Systems {
    let root = dir.join("deploy");
    let maker = Maker { root: root.clone() };
    let made = root.join("packages");
    if !made.exists() {
        if root.exists() {
            fs::remove_dir_all(&root).expect("it is ours");
        }
        fs::create_dir_all(root.join("nix/store")).expect("the directory can be written");
        let first = maker.first(dir);
        let all: BTreeSet<StorePath> = first.iter().map(|info| info.path.clone()).collect();
        maker.rebuild(&first, &all, "rebuilt", None);
        let changed = first.iter().find(|info| info.path.name().split('_').next() == Some(CHANGED));
        let changed = changed.expect("store.sh brings it").path.clone();
        maker.rebuild(&first, &dependents(&first, &changed), "changed", Some(&changed));
        let names: Vec<&str> = first.iter().map(|info| info.path.name()).collect();
        fs::write(made.with_extension("part"), names.join("\n")).expect("the directory can be written");
        fs::rename(made.with_extension("part"), &made).expect("the directory can be written");
    }
    let names = fs::read_to_string(&made).expect("it is there");
    let names: Vec<&str> = names.lines().collect();
    let database = Database::open(&root).unwrap().expect("packages are registered");
    let valid: BTreeSet<StorePath> = database.all().unwrap().into_iter().collect();
    // What only the changed system has anew is there under its own hash.
    let of = |state: &str, name: &str| {
        let path = path_of(state, name);
        if valid.contains(&path) { path } else { path_of("first", name) }
    };
    let system = |state: &str| {
        let tool = maker.tool(state, binary, &valid);
        maker.system(state, names.iter().map(|name| of(state, name)), &tool, &valid)
    };
    let changed = names.iter().filter(|name| valid.contains(&path_of("changed", name))).count();
    Systems {
        first: system("first"),
        rebuilt: system("rebuilt"),
        changed: system("changed"),
        description: format!(
            "{} packages; {CHANGED} and what depends on it are {changed} of them",
            names.len()
        ),
        root,
    }
}

/// Makes objects in the store of a root.
pub struct Maker {
    pub root: PathBuf,
}

impl Maker {
    pub fn place(&self, path: &StorePath) -> PathBuf {
        path.in_root(&self.root)
    }

    fn first(&self, dir: &Path) -> Vec<PathInfo> {
        eprintln!("bench: giving packages references");
        let source = dir.join("root");
        let database = Database::open(&source).unwrap().expect("store.sh made it");
        let infos = database.infos().unwrap();
        let system = infos.iter().max_by_key(|info| info.references.len()).expect("there is a system");
        let packages: Vec<Package> =
            system.references.iter().map(|path| Package::of(path, &path.in_root(&source))).collect();
        let needs = needs(&packages);
        let next = Mutex::new(0..packages.len());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(number) = take(&next) {
                        let package = &packages[number];
                        let place = self.place(&package.path);
                        tool("cp", &["-a", text(&package.source), text(&place)]);
                        let needed: Vec<&Package> =
                            needs[number].iter().map(|&need| &packages[need]).collect();
                        set_library_path(&package.elf(&place), &package.libraries(&needed));
                        refer_in_scripts(package, &place, &needed);
                    }
                });
            }
        });
        self.register(packages.iter().map(|package| package.path.clone()))
    }

    /// Gives `paths` new hashes, in all that mentions them.
    fn rebuild(
        &self,
        first: &[PathInfo],
        paths: &BTreeSet<StorePath>,
        state: &str,
        changed: Option<&StorePath>,
    ) {
        eprintln!("bench: making the {state} packages");
        let new: Hashes = paths.iter().map(|path| (hash_part(path), path_of(state, path.name()))).collect();
        let old: Vec<&StorePath> =
            first.iter().map(|info| &info.path).filter(|path| paths.contains(path)).collect();
        let next = Mutex::new(0..old.len());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(number) = take(&next) {
                        let path = old[number];
                        let to = self.place(&new[&hash_part(path)]);
                        rewrite_tree(&self.place(path), &to, &new, changed == Some(path));
                    }
                });
            }
        });
        self.register(new.into_values());
    }

    /// Adds the program.
    pub fn tool(&self, state: &str, binary: &Path, valid: &BTreeSet<StorePath>) -> StorePath {
        let program = fs::read(binary).expect("make has built it");
        // The program changes while it is worked on, and so must what has it in it.
        let mark = format!("{state} {}", hex(&Sha256::digest(&program)));
        let path = path_of(&mark, "nixos-install-via-0.1.0");
        if !valid.contains(&path) {
            let bin = self.place(&path).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join("nixos-install-via"), program).unwrap();
            fs::set_permissions(bin.join("nixos-install-via"), fs::Permissions::from_mode(0o755)).unwrap();
            self.register([path.clone()].into_iter());
        }
        path
    }

    /// Adds a system that refers to packages and the program.
    pub fn system(
        &self,
        state: &str,
        packages: impl Iterator<Item = StorePath>,
        tool: &StorePath,
        valid: &BTreeSet<StorePath>,
    ) -> String {
        let path = path_of(&format!("{state} {}", tool.hash_part()), "nixos-system-bench-26.05");
        if valid.contains(&path) {
            return path.to_string();
        }
        let out = self.place(&path);
        fs::create_dir_all(out.join("specialisation")).unwrap();
        fs::create_dir_all(out.join("etc")).unwrap();
        let lines: Vec<String> = packages.chain([tool.clone()]).map(|path| path.to_string()).collect();
        for (name, contents) in [
            ("paths", lines.join("\n").as_str()),
            ("init", "#!/bin/sh\n"),
            ("nixos-version", "26.05"),
            ("system", "x86_64-linux"),
            ("etc/fstab", "/dev/disk/by-label/nixos / ext4 x-initrd.mount 0 1\n"),
        ] {
            fs::write(out.join(name), contents).unwrap();
        }
        self.register([path.clone()].into_iter());
        path.to_string()
    }

    /// Registers what lies in the store, with the references that are found in it.
    pub fn register(&self, paths: impl Iterator<Item = StorePath>) -> Vec<PathInfo> {
        let paths: Vec<StorePath> = paths.collect();
        let places: Vec<PathBuf> = paths.iter().map(|path| self.place(path)).collect();
        canonicalise(&places);
        let store = fs::read_dir(self.root.join("nix/store")).unwrap();
        let names = store.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let known: Hashes = names
            .filter_map(|name| StorePath::from_base_name(&name).ok())
            .map(|path| (hash_part(&path), path))
            .collect();
        let next = Mutex::new(0..paths.len());
        let infos = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(number) = take(&next) {
                        let info = self.info(&paths[number], &known);
                        infos.lock().unwrap().push(info);
                    }
                });
            }
        });
        let mut infos = infos.into_inner().unwrap();
        infos.sort_by(|a, b| a.path.cmp(&b.path));
        let registrations: String = infos.iter().map(registration).collect();
        real_nix::load(&self.root, &registrations);
        infos
    }

    fn info(&self, path: &StorePath, known: &Hashes) -> PathInfo {
        let mut references = BTreeSet::new();
        for (file, kind) in walk(&self.place(path)) {
            let contents = match kind {
                Kind::File => fs::read(&file).unwrap(),
                Kind::Symlink => fs::read_link(&file).unwrap().into_os_string().into_vec(),
                Kind::Directory => continue,
            };
            references.extend(
                mentions(&contents).filter_map(|at| known.get(&contents[at..][..HASH_LENGTH])).cloned(),
            );
        }
        let store = copy::open_store(&self.root).expect("there is a store");
        let mut nar = NarStream::new(store, OsStr::new(path.base_name()), Nothing);
        let mut hashing = Hashing::new(std::io::sink());
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = nar.pull(&mut buffer).expect("what was just made can be read");
            hashing.write_all(&buffer[..count]).expect("a sink takes everything");
            if count < buffer.len() {
                break;
            }
        }
        let (nar_hash, size): (NarHash, u64) = hashing.finish();
        PathInfo {
            path: path.clone(),
            nar_hash,
            nar_size: Bytes(size),
            references: references.into_iter().collect(),
            deriver: None,
            registration_time: 1,
            ultimate: false,
            signatures: None,
            content_address: None,
            outputs: Vec::new(),
        }
    }
}

/// A distribution's package on its way to be a store path.
struct Package {
    path: StorePath,
    source: PathBuf,
    /// ELF files, relative, and the libraries that they all need.
    elf: Vec<PathBuf>,
    needed: BTreeSet<String>,
    /// Shared libraries by name, and where they are.
    provides: BTreeMap<String, PathBuf>,
    programs: Vec<String>,
    /// What its scripts are run by.
    interpreters: BTreeSet<String>,
}

impl Package {
    fn of(path: &StorePath, source: &Path) -> Package {
        let (mut elf, mut provides, mut programs) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut interpreters = BTreeSet::new();
        for (file, kind) in walk(source) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let inside = file.strip_prefix(source).expect("it was found there").to_owned();
            let above = inside.parent().unwrap_or(Path::new("")).to_owned();
            if kind != Kind::Directory && name.contains(".so") {
                provides.insert(name.clone(), above.clone());
            }
            if kind != Kind::Directory && above.ends_with("bin") {
                programs.push(name);
            }
            if kind == Kind::File && begins_with(&file, b"#!") {
                let line = fs::read(&file).unwrap();
                interpreters.extend(interpreter(&String::from_utf8_lossy(&line)).map(String::from));
            }
            // A kernel module needs no library.
            if kind == Kind::File
                && inside.extension() != Some(OsStr::new("ko"))
                && begins_with(&file, b"\x7fELF")
            {
                elf.push(inside);
            }
        }
        let mut needed = BTreeSet::new();
        for files in elf.chunks(200) {
            let mut readelf = Command::new("readelf");
            readelf.arg("-d").args(files.iter().map(|file| source.join(file))).stderr(Stdio::null());
            let said = readelf.output().expect("binutils are installed").stdout;
            let said = String::from_utf8_lossy(&said);
            let names = said.lines().filter(|line| line.contains("(NEEDED)"));
            needed.extend(names.filter_map(|line| Some(line.split(['[', ']']).nth(1)?.to_owned())));
        }
        let new = path_of("first", path.name());
        Package { path: new, source: source.to_owned(), elf, needed, provides, programs, interpreters }
    }

    fn elf(&self, place: &Path) -> Vec<PathBuf> {
        self.elf.iter().map(|file| place.join(file)).collect()
    }

    /// Returns where the libraries are that it needs.
    fn libraries(&self, others: &[&Package]) -> Vec<String> {
        let mut places = BTreeSet::new();
        for other in others {
            let found = self.needed.iter().filter_map(|name| other.provides.get(name));
            places.extend(found.map(|dir| format!("{}/{}", other.path, dir.display())));
        }
        places.into_iter().collect()
    }
}

/// Returns for each package those whose libraries and interpreters it needs, without circles.
fn needs(packages: &[Package]) -> Vec<Vec<usize>> {
    let mut providers: HashMap<&str, usize> = HashMap::new();
    for (number, package) in packages.iter().enumerate() {
        for name in package.provides.keys().chain(&package.programs) {
            providers.entry(name).or_insert(number);
        }
    }
    let all: Vec<BTreeSet<usize>> = packages
        .iter()
        .enumerate()
        .map(|(number, package)| {
            let names = package.needed.iter().chain(&package.interpreters);
            let found = names.filter_map(|name| providers.get(name.as_str()).copied());
            found.filter(|&other| other != number).collect()
        })
        .collect();
    let mut search = Search { all: &all, kept: vec![Vec::new(); all.len()], state: vec![0; all.len()] };
    for number in 0..all.len() {
        search.visit(number);
    }
    search.kept
}

struct Search<'a> {
    all: &'a [BTreeSet<usize>],
    kept: Vec<Vec<usize>>,
    // 0: not seen, 1: being visited, 2: done.
    state: Vec<u8>,
}

impl Search<'_> {
    fn visit(&mut self, number: usize) {
        if self.state[number] != 0 {
            return;
        }
        self.state[number] = 1;
        for &other in &self.all[number] {
            self.visit(other);
            if self.state[other] == 2 {
                self.kept[number].push(other);
            }
        }
        self.state[number] = 2;
    }
}

fn set_library_path(files: &[PathBuf], libraries: &[String]) {
    if libraries.is_empty() {
        return;
    }
    for file in files {
        // Object files and static programs take none, and stay as they are.
        let mut patchelf = Command::new("patchelf");
        patchelf.args(["--set-rpath", &libraries.join(":")]).arg(file);
        patchelf.stdout(Stdio::null()).stderr(Stdio::null());
        patchelf.status().expect("patchelf is installed");
    }
}

/// Names interpreters and the own path as packages of Nix do.
fn refer_in_scripts(package: &Package, place: &Path, needed: &[&Package]) {
    for (file, kind) in walk(place) {
        if kind != Kind::File || fs::metadata(&file).unwrap().len() > TEXT_LIMIT {
            continue;
        }
        let Ok(text) = String::from_utf8(fs::read(&file).unwrap()) else { continue };
        if text.contains('\0') {
            continue;
        }
        let mut new = text.replace("=/usr/", &format!("={}/usr/", package.path));
        if let Some(name) = interpreter(&text) {
            let mut others = needed.iter().copied().chain([package]);
            if let Some(other) = others.find(|other| other.programs.iter().any(|program| program == name)) {
                let rest = new.split_once('\n').map_or("", |(_, rest)| rest);
                new = format!("#!{}/usr/bin/{name}\n{rest}", other.path);
            }
        }
        if new != text {
            fs::write(&file, new).unwrap();
        }
    }
}

fn interpreter(script: &str) -> Option<&str> {
    let words = script.lines().next()?.strip_prefix("#!")?;
    words.split_whitespace().next()?.rsplit('/').next()
}

/// Returns `path` and all that depends on it.
fn dependents(infos: &[PathInfo], path: &StorePath) -> BTreeSet<StorePath> {
    let mut found = BTreeSet::from([path.clone()]);
    loop {
        let before = found.len();
        for info in infos {
            if info.references.iter().any(|reference| found.contains(reference)) {
                found.insert(info.path.clone());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

fn rewrite_tree(from: &Path, to: &Path, new: &Hashes, change: bool) {
    for (file, kind) in walk(from) {
        let inside = file.strip_prefix(from).expect("it was found there");
        let place = if inside.as_os_str().is_empty() { to.to_owned() } else { to.join(inside) };
        match kind {
            Kind::Directory => fs::create_dir(&place).unwrap(),
            Kind::Symlink => {
                let mut target = fs::read_link(&file).unwrap().into_os_string().into_vec();
                rewrite(&mut target, new);
                symlink(OsStr::from_bytes(&target), &place).unwrap();
            }
            Kind::File => {
                let mut contents = fs::read(&file).unwrap();
                rewrite(&mut contents, new);
                if change {
                    for stretch in contents.chunks_mut(STRETCH) {
                        let middle = stretch.len() / 2;
                        stretch[middle..].iter_mut().take(DIFFERENT).for_each(|byte| *byte ^= 0x55);
                    }
                }
                let mode = fs::metadata(&file).unwrap().permissions();
                fs::write(&place, contents).unwrap();
                fs::set_permissions(&place, mode).unwrap();
            }
        }
    }
}

fn rewrite(contents: &mut [u8], new: &Hashes) {
    let places: Vec<usize> = mentions(contents).collect();
    for at in places {
        if let Some(path) = new.get(&contents[at..at + HASH_LENGTH]) {
            contents[at..at + HASH_LENGTH].copy_from_slice(path.hash_part().as_bytes());
        }
    }
}

/// Returns where hashes stand behind the name of the store.
fn mentions(contents: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let slashes = contents.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    slashes
        .filter(|&at| contents[at..].starts_with(PREFIX))
        .map(|at| at + PREFIX.len())
        .filter(|&at| at + HASH_LENGTH <= contents.len())
}

/// Returns the path that an object has in one state of the distribution.
pub fn path_of(state: &str, name: &str) -> StorePath {
    let digest = Sha256::digest(format!("{state} {name}"));
    let hash: String = digest.iter().map(|byte| char::from(NIX32[usize::from(byte & 31)])).collect();
    StorePath::parse(&format!("{STORE_DIR}/{hash}-{name}")).expect("the name was one of a store path")
}

/// Returns what `nix-store --load-db` reads about a path.
fn registration(info: &PathInfo) -> String {
    let references: String = info.references.iter().map(|reference| format!("{reference}\n")).collect();
    let (hash, size, count) = (hex(&info.nar_hash.0), info.nar_size.0, info.references.len());
    format!("{}\n{hash}\n{size}\n\n{count}\n{references}", info.path)
}

fn hash_part(path: &StorePath) -> [u8; HASH_LENGTH] {
    path.hash_part().as_bytes().try_into().expect("a hash part has its length")
}

fn canonicalise(places: &[PathBuf]) {
    let script = r#"
        find "$@" -type d -exec chmod 555 {} +
        find "$@" -type f -perm /100 -exec chmod 555 {} +
        find "$@" -type f ! -perm /100 -exec chmod 444 {} +
        find "$@" -depth -exec touch --no-dereference --date=@1 {} +"#;
    let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
    sh(script, &places);
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Directory,
    File,
    Symlink,
}

/// Returns all of a tree, each directory before what is in it.
fn walk(root: &Path) -> Vec<(PathBuf, Kind)> {
    let kind = fs::symlink_metadata(root).unwrap().file_type();
    let kind = match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => Kind::Symlink,
        () => Kind::File,
    };
    let mut found = vec![(root.to_owned(), kind)];
    if kind == Kind::Directory {
        for entry in fs::read_dir(root).unwrap() {
            found.extend(walk(&entry.unwrap().path()));
        }
    }
    found
}

fn begins_with(file: &Path, magic: &[u8]) -> bool {
    use std::io::Read;
    let mut start = vec![0; magic.len()];
    File::open(file).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && start == magic
}

pub fn take(next: &Mutex<std::ops::Range<usize>>) -> Option<usize> {
    next.lock().unwrap().next()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the bench's paths are plain")
}

fn tool(program: &str, words: &[&str]) {
    let status = Command::new(program).args(words).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {words:?} failed");
}
