//! Terminals and pseudoterminals (ioctl_tty(2)).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

mod ioctl {
    use nix::libc;

    nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(tiocsctty, libc::TIOCSCTTY);
}

/// Returns the rows and columns of a terminal. Fails if the descriptor is not a terminal.
pub fn size(terminal: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = winsize(0, 0);
    // SAFETY: TIOCGWINSZ writes one winsize.
    unsafe { ioctl::tiocgwinsz(terminal.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets the rows and columns of a terminal.
pub fn set_size(terminal: impl AsFd, (rows, columns): (u16, u16)) -> nix::Result<()> {
    let size = winsize(rows, columns);
    // SAFETY: TIOCSWINSZ reads one winsize.
    unsafe { ioctl::tiocswinsz(terminal.as_fd().as_raw_fd(), &raw const size) }.map(drop)
}

/// Makes `terminal` the controlling terminal of this process, which must lead a new session.
pub fn make_controlling(terminal: impl AsFd) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes a number and accesses no memory.
    unsafe { ioctl::tiocsctty(terminal.as_fd().as_raw_fd(), 0) }.map(drop)
}

/// Opens the terminal side of the pseudoterminal `master` (kernel 4.13).
///
/// In contrast to an open by name, this also works in a process that sees another /dev.
pub fn open_peer(master: impl AsFd) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes the flags of open(2) as a number and accesses no memory.
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
