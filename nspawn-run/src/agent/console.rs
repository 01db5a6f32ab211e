//! A terminal of the machine's own for a command, moved to and from the host's pipes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{PtyMaster, grantpt, posix_openpt, unlockpt};

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_write_int_bad!(make_controlling, libc::TIOCSCTTY);

/// What one pass moves, in bytes.
const CHUNK: usize = 16 << 10;
/// What is kept for a command that does not read, in bytes; then its input waits.
const MOST_PENDING: usize = 64 << 10;

/// The terminal's far side.
pub struct Console {
    master: PtyMaster,
    input: Option<File>,
    output: File,
    pending: VecDeque<u8>,
}

impl Console {
    /// A new terminal between these pipes of the host.
    ///
    /// # Errors
    /// The machine has no terminals left.
    pub fn open(size: (u16, u16), input: OwnedFd, output: OwnedFd) -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).context("can't make a terminal")?;
        grantpt(&master).and_then(|()| unlockpt(&master)).context("can't make a terminal")?;
        let console = Self { master, input: Some(input.into()), output: output.into(), pending: VecDeque::new() };
        console.resize(size);
        Ok(console)
    }

    /// The near side, for the command.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn near_side(&self) -> Result<OwnedFd> {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER (kernel 4.13) takes open(2)'s flags as a number and touches no memory.
        let fd = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        let fd = Errno::result(fd).context("can't open the terminal")?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Sets rows and columns.
    pub fn resize(&self, (ws_row, ws_col): (u16, u16)) {
        let size = libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize, which `size` is. A size that is refused is no harm.
        let _ = unsafe { set_window_size(self.master.as_raw_fd(), &raw const size) };
    }

    /// Where output comes from.
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Where input comes from, while any is wanted.
    pub fn wanted_input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| self.pending.len() < MOST_PENDING).map(AsFd::as_fd)
    }

    /// Whether input waits for the command to read.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes input that is there.
    pub fn take_input(&mut self) {
        let mut buffer = [0; CHUNK];
        match self.input.as_mut().map(|input| input.read(&mut buffer)) {
            Some(Ok(count)) if count > 0 => self.pending.extend(&buffer[..count]),
            _ => self.input = None,
        }
        self.give_input();
    }

    /// Gives the command what it will take.
    pub fn give_input(&mut self) {
        while !self.pending.is_empty() {
            match (&self.master).write(self.pending.as_slices().0) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Moves output that is there; `false` when there is none, or nobody reads it.
    pub fn move_output(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        // EIO: no process has the terminal open any more.
        let Ok(count) = (&self.master).read(&mut buffer) else { return false };
        count > 0 && self.output.write_all(&buffer[..count]).is_ok()
    }

    /// Moves what the command had written when it ended; what its background writes may not end.
    pub fn move_rest(&mut self) {
        for _ in 0..16 {
            if !self.move_output() {
                return;
            }
        }
    }
}

/// Makes `terminal` the controlling terminal of this process's new session.
///
/// # Errors
/// It is another session's.
pub fn take_control(terminal: &OwnedFd) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a number and touches no memory.
    unsafe { make_controlling(terminal.as_raw_fd(), 0) }.context("can't take the terminal")?;
    Ok(())
}
