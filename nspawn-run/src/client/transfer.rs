//! Movement of bytes from one descriptor to another.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{read, write};
use nspawn_common::sys::ioctl;

/// Maximum number of bytes that one call moves. It is the largest pipe of an unprivileged user
/// (pipe(7)).
pub const MAX_CHUNK: usize = 1 << 20;
/// Maximum number of bytes that are copied at once. They fit into the cache of a processor.
const COPY_CHUNK: usize = 128 << 10;

thread_local! {
    // Each thread that copies creates the buffer once, since filling it with zeroes takes as long
    // as a copy.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; COPY_CHUNK]);
}

/// Moves up to `limit` bytes out of a pipe and returns their number, which is 0 at its end.
///
/// Fails with `EAGAIN` if `source` does not block and contains nothing. The kernel need not copy
/// bytes between two pipes. splice(2) is not used for any other descriptor: it locks the pipe while
/// it waits for the other side, and the machine's processes would hang at the lock and could not be
/// killed.
pub fn transfer(source: &OwnedFd, target: BorrowedFd, limit: usize) -> nix::Result<usize> {
    if !is_pipe(target) {
        return copy(source, target, limit);
    }
    let count = limit.min(MAX_CHUNK);
    match retry(|| splice(source, None, target, None, count, SpliceFFlags::empty())) {
        // If the source does not block, splice(2) does not wait for room in the target either.
        Err(Errno::EAGAIN) => {
            wait_for(target, PollFlags::POLLOUT);
            Err(Errno::EAGAIN)
        }
        result => result,
    }
}

/// Moves the bytes that `pipe` contains now.
pub fn transfer_contents(pipe: &OwnedFd, target: BorrowedFd) -> io::Result<()> {
    let mut left = ioctl::readable_bytes(pipe)?;
    while left > 0 {
        match transfer(pipe, target, left) {
            Ok(0) => break,
            Ok(count) => left -= count,
            // The machine has read back what it had written.
            Err(Errno::EAGAIN) if ioctl::readable_bytes(pipe)? == 0 => break,
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Returns whether `fd` is a regular file.
pub fn is_file(fd: BorrowedFd) -> bool {
    file_type(fd) == Some(SFlag::S_IFREG)
}

/// Returns whether `fd` is a directory.
pub fn is_directory(fd: BorrowedFd) -> bool {
    file_type(fd) == Some(SFlag::S_IFDIR)
}

fn is_pipe(fd: BorrowedFd) -> bool {
    file_type(fd) == Some(SFlag::S_IFIFO)
}

fn file_type(fd: BorrowedFd) -> Option<SFlag> {
    let stat = fstat(fd).ok()?;
    Some(SFlag::from_bits_truncate(
        stat.st_mode & SFlag::S_IFMT.bits(),
    ))
}

/// Copies up to `limit` bytes and returns their number, like [`transfer`].
pub fn copy(source: &OwnedFd, target: BorrowedFd, limit: usize) -> nix::Result<usize> {
    BUFFER.with_borrow_mut(|buffer| copy_through(buffer, source, target, limit))
}

fn copy_through(
    buffer: &mut [u8],
    source: &OwnedFd,
    target: BorrowedFd,
    limit: usize,
) -> nix::Result<usize> {
    let limit = limit.min(buffer.len());
    let count = retry(|| read(source, &mut buffer[..limit]))?;
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match retry(|| write(target, rest)) {
            Ok(written) => rest = &rest[written..],
            // Another process that shares the target has made it non-blocking.
            Err(Errno::EAGAIN) => wait_for(target, PollFlags::POLLOUT),
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Waits for an event on `fd`. Errors are ignored, since the next call on `fd` returns them.
pub fn wait_for(fd: BorrowedFd, event: PollFlags) {
    let _ = poll(&mut [PollFd::new(fd, event)], PollTimeout::NONE);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::thread;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn non_blocking_target_receives_all_bytes() {
        let (source, target) = (File::open("/dev/zero").unwrap(), pipe().unwrap());
        fcntl(&target.1, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let reader = thread::spawn(move || {
            let mut received = vec![1; 4 * MAX_CHUNK];
            File::from(target.0)
                .read_exact(&mut received)
                .map(|()| received)
        });
        let source = OwnedFd::from(source);
        for _ in 0..4 * MAX_CHUNK / COPY_CHUNK {
            assert_eq!(
                copy(&source, target.1.as_fd(), MAX_CHUNK).unwrap(),
                COPY_CHUNK
            );
        }
        let received = reader.join().unwrap().unwrap();
        assert!(received.iter().all(|byte| *byte == 0));
    }
}
