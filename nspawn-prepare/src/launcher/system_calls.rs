//! System calls by which the machine's processes would reach beyond the machine.
//!
//! All machines share the kernel's page cache and its modules. Protocols that no ordinary program
//! uses have had holes by which a job writes to pages of an image (CVE-2026-31431 by AF_ALG,
//! CVE-2026-43284 and CVE-2026-46300 by ESP), and some have no namespaces, such as AF_VSOCK, which
//! reaches the hypervisor. So machines have an allow list of address families.
//!
//! sync(2) waits until the data of all machines and of the host is on disk. In a machine it does
//! nothing, because its layer is deleted with it, unless the machine can write to a directory of the
//! host. fsync(2) and syncfs(2) work as usual.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use nix::fcntl::OFlag;
use nspawn_common::machine::paths::MachinePaths;
use nspawn_common::machine::state::State;
use nspawn_common::sys::call_filter;
use nspawn_common::sys::call_filter::Exceptions;
use nspawn_common::sys::fs::open_in_root;
use nspawn_common::sys::seccomp_listener::Listener;

use crate::launcher::socketcall;

/// Dynamic linker of programs for i386.
const I386_LINKER: &str = "lib/ld-linux.so.2";

/// Restricts the system calls of this process, and so of the machine.
///
/// `options` are those of systemd-nspawn. `writes_host` tells whether one of them shows the machine a
/// writable file or directory of the host.
pub fn restrict(
    paths: &MachinePaths,
    state: &State,
    options: &[OsString],
    writes_host: bool,
) -> Result<()> {
    let families: Vec<_> = state
        .address_families
        .iter()
        .map(|family| family.number())
        .collect();
    let exceptions = Exceptions {
        families: &families,
        io_uring: is_allowed("io_uring_setup", options),
        keys: state.nesting,
        sync: writes_host || is_allowed("sync", options),
    };
    let has_socketcall = cfg!(target_arch = "x86_64");
    if has_socketcall && (is_allowed("socketcall", options) || has_i386_linker(paths)?) {
        let listener = call_filter::install_with_listener(exceptions)?;
        return socketcall::serve(paths, &Listener::new(listener));
    }
    call_filter::install(exceptions)
}

/// Returns whether an option of systemd-nspawn names the system call as an allowed one.
fn is_allowed(call: &str, options: &[OsString]) -> bool {
    options
        .iter()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.as_bytes().strip_prefix(b"--system-call-filter="))
        .filter(|list| !list.starts_with(b"~"))
        .flat_map(|list| list.split(u8::is_ascii_whitespace))
        .any(|word| word == call.as_bytes())
}

fn has_i386_linker(paths: &MachinePaths) -> Result<bool> {
    let root = File::open(paths.root_mount())?;
    Ok(open_in_root(&root, I386_LINKER, OFlag::O_PATH).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_allowed_by_name() {
        let is_allowed = |word: &str| is_allowed("io_uring_setup", &[word.into()]);
        assert!(is_allowed("--system-call-filter=io_uring_setup"));
        assert!(is_allowed("--system-call-filter=bpf io_uring_setup"));
        for word in [
            "--system-call-filter=~io_uring_setup",
            "--system-call-filter=~bpf io_uring_setup",
            "--system-call-filter=io_uring_setup2",
            "--setenv=io_uring_setup",
        ] {
            assert!(!is_allowed(word), "{word}");
        }
    }
}
