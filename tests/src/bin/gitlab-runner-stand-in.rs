//! The stand-in for gitlab-runner. See [`nspawn_tests::gitlab_runner::program`].

fn main() -> std::process::ExitCode {
    nspawn_tests::gitlab_runner::program::main()
}
