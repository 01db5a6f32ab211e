//! ioctl(2) calls for pipes and terminals.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Returns the number of bytes in a pipe.
pub fn readable_bytes(pipe: impl AsFd) -> nix::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which is the type of `count`.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(result)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Returns the number of rows and columns of a terminal.
pub fn window_size(terminal: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = winsize(0, 0);
    // SAFETY: TIOCGWINSZ writes one winsize, which is the type of `size`.
    let result = unsafe {
        libc::ioctl(
            terminal.as_fd().as_raw_fd(),
            libc::TIOCGWINSZ,
            &raw mut size,
        )
    };
    Errno::result(result)?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets the number of rows and columns of a terminal.
pub fn set_window_size(terminal: impl AsFd, (rows, columns): (u16, u16)) -> nix::Result<()> {
    let size = winsize(rows, columns);
    // SAFETY: TIOCSWINSZ reads one winsize, which is the type of `size`.
    let result = unsafe {
        libc::ioctl(
            terminal.as_fd().as_raw_fd(),
            libc::TIOCSWINSZ,
            &raw const size,
        )
    };
    Errno::result(result).map(drop)
}

/// Makes `terminal` the controlling terminal of this process, which must lead a new session.
pub fn set_controlling_terminal(terminal: impl AsFd) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer and accesses no memory of this process.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    Errno::result(result).map(drop)
}

/// Opens the terminal that belongs to the pty `master` (kernel 4.13).
pub fn open_pty_peer(master: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes the flags of open(2) as an integer and accesses no memory of this
    // process.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn winsize(ws_row: u16, ws_col: u16) -> libc::winsize {
    libc::winsize {
        ws_row,
        ws_col,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
