//! See the library, `nixos_install_via`.

use mimalloc::MiMalloc;
use nixos_install_via::{cli, sys::backtrace};

// The same for every build. That of musl, which Nix builds with, has one lock for all threads and makes a copy a tenth
// slower; that of glibc is as fast. It asks for no huge pages (`no_thp`), for each thread would fill one. Code in C,
// SQLite and zstd, keeps to the allocator of its libc.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    backtrace::disable_without_tables();
    std::process::exit(cli::main())
}
