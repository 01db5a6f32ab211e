//! `nspawn-run`: a command in a machine, as if it ran here.

fn main() -> std::process::ExitCode {
    nspawn_run::main()
}
