//! A pseudoterminal for a command, between the host's pipes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::pty::{PtyMaster, grantpt, posix_openpt, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nspawn_common::sys::ioctl;

/// Maximum number of bytes that one read moves.
const CHUNK: usize = 16 << 10;
/// Character that ends the input (VEOF in termios(3)). A terminal has no other end of file.
const END_OF_FILE: u8 = 4;
/// Number of pending bytes in one direction at which the sender has to wait, because the receiver,
/// the command or the host, does not read.
const MAX_PENDING: usize = 64 << 10;
/// Maximum number of reads after the end of the command. Background processes may write without
/// end.
const LAST_READS: usize = 16;

/// Descriptor with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Terminal,
    Input,
    Output,
}

/// Pseudoterminal, with the bytes on their way between the command and the host.
pub struct Pty {
    master: PtyMaster,
    /// Side of the command. It stays open, since a command may close its terminal and open it
    /// again.
    terminal: OwnedFd,
    /// Pipe from the host, until it ends.
    input: Option<File>,
    /// Pipe to the host.
    output: File,
    to_command: VecDeque<u8>,
    to_host: VecDeque<u8>,
}

impl Pty {
    /// Creates a terminal of `size` rows and columns between these pipes of the host.
    pub fn open(size: (u16, u16), input: OwnedFd, output: OwnedFd) -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).context("can't create a terminal")?;
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .context("can't create a terminal")?;
        // The flag affects nobody else: no other process has the write end of this pipe.
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("can't set up a pipe")?;
        let terminal = ioctl::open_pty_peer(&master).context("can't open the terminal")?;
        let pty = Self {
            master,
            terminal,
            input: Some(input.into()),
            output: output.into(),
            to_command: VecDeque::new(),
            to_host: VecDeque::new(),
        };
        pty.resize(size);
        Ok(pty)
    }

    /// Returns the terminal for the command.
    pub fn terminal(&self) -> Result<OwnedFd> {
        self.terminal.try_clone().context("can't open the terminal")
    }

    /// Sets the number of rows and columns. Errors are ignored, since the command can run anyway.
    pub fn resize(&self, size: (u16, u16)) {
        let _ = ioctl::set_window_size(&self.master, size);
    }

    /// Returns the events to wait for.
    pub fn interests(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.to_host.len() < MAX_PENDING);
        flags.set(PollFlags::POLLOUT, !self.to_command.is_empty());
        let mut interests = vec![(Source::Terminal, self.master.as_fd(), flags)];
        if !self.to_host.is_empty() {
            interests.push((Source::Output, self.output.as_fd(), PollFlags::POLLOUT));
        }
        if let Some(input) = &self.input {
            if self.to_command.len() < MAX_PENDING {
                interests.push((Source::Input, input.as_fd(), PollFlags::POLLIN));
            }
        }
        interests
    }

    /// Moves bytes after an event. Returns `false` if the host no longer reads the output.
    pub fn serve(&mut self, source: Source, flags: PollFlags) -> bool {
        match source {
            Source::Input => {
                self.read_input();
                true
            }
            Source::Output => self.write_output(),
            Source::Terminal => self.serve_terminal(flags),
        }
    }

    fn serve_terminal(&mut self, flags: PollFlags) -> bool {
        if flags.contains(PollFlags::POLLOUT) {
            self.write_input();
        }
        let is_readable = flags.intersects(!PollFlags::POLLOUT);
        if is_readable && self.read_output() {
            return self.write_output();
        }
        true
    }

    /// Reads the output that the command had written when it ended.
    pub fn read_rest(&mut self) {
        for _ in 0..LAST_READS {
            if !self.read_output() {
                return;
            }
        }
    }

    /// Returns whether all output that was read is written to the host.
    pub fn is_delivered(&self) -> bool {
        self.to_host.is_empty()
    }

    fn read_input(&mut self) {
        let mut buffer = [0; CHUNK];
        match self.input.as_mut().map(|input| input.read(&mut buffer)) {
            Some(Ok(count)) if count > 0 => self.to_command.extend(&buffer[..count]),
            _ => {
                self.input = None;
                self.to_command.push_back(END_OF_FILE);
            }
        }
        self.write_input();
    }

    fn write_input(&mut self) {
        while !self.to_command.is_empty() {
            match (&self.master).write(self.to_command.as_slices().0) {
                Ok(count) => {
                    self.to_command.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    // Returns `false` if there is no output now.
    fn read_output(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        let Ok(count) = (&self.master).read(&mut buffer) else {
            return false;
        };
        self.to_host.extend(&buffer[..count]);
        // A program in non-canonical mode, such as a shell at its prompt, has ignored an end of
        // file that was sent before, so the end of file is sent again.
        if self.input.is_none() && self.to_command.is_empty() && self.is_noncanonical() {
            self.to_command.push_back(END_OF_FILE);
            self.write_input();
        }
        count > 0
    }

    fn is_noncanonical(&self) -> bool {
        tcgetattr(&self.terminal)
            .is_ok_and(|settings| !settings.local_flags.contains(LocalFlags::ICANON))
    }

    // Returns `false` if the host no longer reads.
    fn write_output(&mut self) -> bool {
        while !self.to_host.is_empty() {
            match self.output.write(self.to_host.as_slices().0) {
                Ok(count) => {
                    self.to_host.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}
