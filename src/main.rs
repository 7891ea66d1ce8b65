//! See the library, `nixos_install_via`.

fn main() {
    std::process::exit(nixos_install_via::cli::main())
}
