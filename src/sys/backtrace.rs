//! Backtraces, which only a binary with unwind tables can take.

/// Keeps errors and panics from taking a backtrace where there are no unwind tables, whatever the environment asks for.
///
/// `build.rs` leaves them out of a release. The unwinder ends the process when it finds none, before anybody has read
/// the error. Programs that are started from here are not asked for a backtrace either.
///
/// `main` calls this first.
pub fn disable_without_tables() {
    if !cfg!(no_unwind_tables) {
        return;
    }
    for variable in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: no other thread reads the environment, for `main` has started none yet.
        unsafe { std::env::remove_var(variable) };
    }
}
