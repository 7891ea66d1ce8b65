//! See the library, `nixos_install_via`.

use nixos_install_via::{cli, sys::backtrace};

fn main() {
    backtrace::disable_without_tables();
    std::process::exit(cli::main())
}
