//! See [`nspawn_tests::stand_in`].

fn main() -> std::process::ExitCode {
    nspawn_tests::stand_in::main()
}
