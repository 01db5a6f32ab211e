//! `nspawn-prepare`: a fresh machine from an image, ready for commands.

fn main() -> std::process::ExitCode {
    nspawn_prepare::main()
}
