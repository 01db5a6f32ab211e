//! `nspawn-prepare`: creates a machine from an image.

fn main() -> std::process::ExitCode {
    nspawn_prepare::main()
}
