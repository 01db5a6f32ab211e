//! `nspawn-cleanup`: machines taken away without a trace.

fn main() -> std::process::ExitCode {
    nspawn_cleanup::main()
}
