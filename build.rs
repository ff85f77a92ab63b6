//! How the program is linked, as far as cargo has no word for it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Cargo speaks to build scripts through variables.
    let is = |name: &str, value: &str| std::env::var_os(name).is_some_and(|found| found == value);
    // Relocations as a bit map: five kilobytes instead of four hundred, in the file and in the memory of both processes of a
    // node. Needs glibc 2.36 where the program runs: Debian bookworm and later.
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
