//! `nspawn-run` runs a command in a machine as if it ran on the host.

#[cfg(not(target_feature = "crt-static"))]
compile_error!(
    "can't build a dynamic agent, because it must run in any image; build within the repository and without RUSTFLAGS"
);

fn main() -> std::process::ExitCode {
    nspawn_run::main()
}
