//! System calls that a filter leaves to another process (seccomp_unotify(2)).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Descriptor that receives system calls.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A system call, whose thread waits for the result.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// ID of the thread. Once the thread is killed, another one may have this ID.
    pub thread: u32,
    /// The call's arguments.
    pub arguments: [u64; 6],
}

impl Listener {
    /// Returns the listener with the descriptor that
    /// [`Filter::install_with_listener`](super::seccomp::Filter::install_with_listener) returns.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Waits for the next call.
    ///
    /// Fails with `ENOENT` if the thread was killed meanwhile.
    pub fn receive(&self) -> nix::Result<Call> {
        // SAFETY: the structure consists of integers, for which zero is a value. The kernel demands
        // zeros.
        let mut received: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request writes one structure of this type.
        unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut received) }?;
        Ok(Call {
            id: received.id,
            thread: received.pid,
            arguments: received.data.args,
        })
    }

    /// Checks that the call's thread still waits for the result.
    ///
    /// What was opened by the thread's ID before then belongs to the thread.
    pub fn check(&self, call: &Call) -> nix::Result<()> {
        let mut id = call.id;
        // SAFETY: the request reads one integer of this type.
        unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id) }.map(drop)
    }

    /// Duplicates `fd` in the call's process, and returns its number there.
    pub fn add(&self, call: &Call, fd: impl AsFd, close_on_exec: bool) -> nix::Result<i32> {
        self.duplicate(call, fd, close_on_exec, 0)
    }

    /// Duplicates `fd` in the call's process, and ends the call with its number there (kernel 5.14).
    pub fn end_with(&self, call: &Call, fd: impl AsFd, close_on_exec: bool) -> nix::Result<()> {
        let send = libc::SECCOMP_ADDFD_FLAG_SEND as u32;
        self.duplicate(call, fd, close_on_exec, send).map(drop)
    }

    fn duplicate(
        &self,
        call: &Call,
        fd: impl AsFd,
        close_on_exec: bool,
        flags: u32,
    ) -> nix::Result<i32> {
        let mut request = libc::seccomp_notif_addfd {
            id: call.id,
            flags,
            srcfd: fd.as_fd().as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if close_on_exec {
                libc::O_CLOEXEC as u32
            } else {
                0
            },
        };
        // SAFETY: the request reads one structure of this type.
        unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut request) }
    }

    /// Ends the call with the result 0, or with an error.
    pub fn end(&self, call: &Call, result: nix::Result<()>) -> nix::Result<()> {
        let mut response = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: result.err().map_or(0, |errno: Errno| -(errno as i32)),
            flags: 0,
        };
        // SAFETY: the request reads one structure of this type.
        unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) }.map(drop)
    }

    /// # Safety
    /// The request must access one value of this type.
    unsafe fn request<T>(&self, request: libc::Ioctl, value: *mut T) -> nix::Result<i32> {
        // SAFETY: the caller guarantees the type of the value.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, value) };
        Errno::result(result)
    }
}
