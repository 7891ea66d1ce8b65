//! What a release binary is linked with, wherever it is built: by make, by cargo or by Nix.
//!
//! Not in `RUSTFLAGS` or `.cargo/config.toml`, for those of whoever builds would replace them there.

use std::path::PathBuf;
use std::{env, fs};

/// Linker script that discards what only an unwinder reads. A release binary aborts when it panics, and the compiler
/// cannot be told to make no tables: the standard library and the C code come with theirs.
///
/// Those of the C runtime's start files stay, a few bytes, for in a binary at a fixed address its code refers to them.
const NO_UNWIND_TABLES: &str = "\
SECTIONS
{
  /DISCARD/ :
  {
    *(EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .eh_frame)
    *(.eh_frame_hdr .gcc_except_table .gcc_except_table.*)
  }
}
INSERT AFTER .text;
";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(no_unwind_tables)");
    // Tests and debug builds unwind, and show backtraces.
    if variable("PROFILE") != "release" || variable("CARGO_CFG_TARGET_OS") != "linux" {
        return;
    }
    println!("cargo:rustc-cfg=no_unwind_tables");
    let script = PathBuf::from(variable("OUT_DIR")).join("no-unwind-tables.ld");
    fs::write(&script, NO_UNWIND_TABLES)
        .unwrap_or_else(|error| panic!("writing {}: {error}", script.display()));
    link("-Wl,--no-eh-frame-hdr");
    link(&format!("-T{}", script.display()));

    if variable("CARGO_CFG_TARGET_ENV") == "gnu" {
        // Relocations in a short form. glibc knows it since 2.36; a musl before 1.2.4 does not, and crashes.
        link("-Wl,-z,pack-relative-relocs");
        if !variable("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static") {
            let target = variable("TARGET");
            println!("cargo:warning=not static: `cargo static --target {target}` builds a binary that is");
        }
    }
}

/// Hands an option to the linker, through the C compiler, for the program and not for tests and examples.
fn link(option: &str) {
    println!("cargo:rustc-link-arg-bins={option}");
}

/// Returns a variable of cargo's, or nothing where there is none.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
