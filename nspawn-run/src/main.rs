//! `nspawn-run`: a command in a machine, as if it ran here.

#[cfg(not(target_feature = "crt-static"))]
compile_error!(
    "the agent must be static, to run in any image: build from within the repository and without RUSTFLAGS"
);

fn main() -> std::process::ExitCode {
    nspawn_run::main()
}
