#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // That it is refused is what should become of most.
    let _ = nixos_install_via_fuzz::nar(bytes);
});
