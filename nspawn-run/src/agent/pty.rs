//! A terminal of the machine's own for a command, moved to and from the host's pipes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::pty::{PtyMaster, grantpt, posix_openpt, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nspawn_common::sys::terminal;

/// What one pass moves, in bytes.
const CHUNK: usize = 16 << 10;
/// What a person types when there is no more (VEOF in termios(3)): a terminal knows no other end.
const END_OF_FILE: u8 = 4;
/// What is kept for one who does not read, the command or the host, in bytes; then the other waits.
const MOST_PENDING: usize = 64 << 10;

/// Where something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Terminal,
    Input,
    Output,
}

/// The terminal's far side.
pub struct Console {
    master: PtyMaster,
    /// Kept open: a command may close its terminal for a while and open it again.
    near_side: OwnedFd,
    input: Option<File>,
    output: File,
    /// On the way to the command.
    incoming: VecDeque<u8>,
    /// On the way to the host.
    outgoing: VecDeque<u8>,
}

impl Console {
    /// A new terminal between these pipes of the host.
    ///
    /// # Errors
    /// The machine has no terminals left.
    pub fn open(size: (u16, u16), input: OwnedFd, output: OwnedFd) -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).context("can't make a terminal")?;
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .context("can't make a terminal")?;
        // The write end of a pipe that the host reads: nobody else has it.
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("can't set up a pipe")?;
        let (near_side, input, output) = (
            terminal::open_peer(&master).context("can't open the terminal")?,
            Some(input.into()),
            output.into(),
        );
        let console = Self {
            master,
            near_side,
            input,
            output,
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
        };
        console.resize(size);
        Ok(console)
    }

    /// The near side, for the command.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn near_side(&self) -> Result<OwnedFd> {
        self.near_side
            .try_clone()
            .context("can't open the terminal")
    }

    /// Sets the rows and columns. A size that the kernel refuses does no harm.
    pub fn resize(&self, size: (u16, u16)) {
        let _ = terminal::set_size(&self.master, size);
    }

    /// What to wait for: the terminal, the host's input, the host's output.
    pub fn interests(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut terminal = PollFlags::empty();
        terminal.set(PollFlags::POLLIN, self.outgoing.len() < MOST_PENDING);
        terminal.set(PollFlags::POLLOUT, !self.incoming.is_empty());
        let mut interests = vec![(Source::Terminal, self.master.as_fd(), terminal)];
        if !self.outgoing.is_empty() {
            interests.push((Source::Output, self.output.as_fd(), PollFlags::POLLOUT));
        }
        let input = self
            .input
            .as_ref()
            .filter(|_| self.incoming.len() < MOST_PENDING);
        interests.extend(input.map(|input| (Source::Input, input.as_fd(), PollFlags::POLLIN)));
        interests
    }

    /// Moves what can be moved; `false` once nobody will read the output.
    pub fn serve(&mut self, source: Source, events: PollFlags) -> bool {
        match source {
            Source::Input => {
                self.take_input();
                true
            }
            Source::Output => self.give_output(),
            Source::Terminal => {
                if events.contains(PollFlags::POLLOUT) {
                    self.give_input();
                }
                !events.intersects(!PollFlags::POLLOUT) || !self.take_output() || self.give_output()
            }
        }
    }

    /// Takes what the command had written when it ended; what its background writes may not end.
    pub fn take_rest(&mut self) {
        for _ in 0..16 {
            if !self.take_output() {
                return;
            }
        }
    }

    /// Whether all that was taken is delivered.
    pub fn is_delivered(&self) -> bool {
        self.outgoing.is_empty()
    }

    fn take_input(&mut self) {
        let mut buffer = [0; CHUNK];
        match self.input.as_mut().map(|input| input.read(&mut buffer)) {
            Some(Ok(count)) if count > 0 => self.incoming.extend(&buffer[..count]),
            _ => {
                self.input = None;
                self.incoming.push_back(END_OF_FILE);
            }
        }
        self.give_input();
    }

    fn give_input(&mut self) {
        while !self.incoming.is_empty() {
            match (&self.master).write(self.incoming.as_slices().0) {
                Ok(count) => drop(self.incoming.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    // `false` when there is none now.
    fn take_output(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        let Ok(count) = (&self.master).read(&mut buffer) else {
            return false;
        };
        self.outgoing.extend(&buffer[..count]);
        // Who reads keys one by one, a shell at its prompt, has not seen an end that came while it did not.
        if self.input.is_none() && self.incoming.is_empty() && self.reads_keys() {
            self.incoming.push_back(END_OF_FILE);
            self.give_input();
        }
        count > 0
    }

    fn reads_keys(&self) -> bool {
        tcgetattr(&self.near_side)
            .is_ok_and(|terminal| !terminal.local_flags.contains(LocalFlags::ICANON))
    }

    // `false` when nobody will read it.
    fn give_output(&mut self) -> bool {
        while !self.outgoing.is_empty() {
            match self.output.write(self.outgoing.as_slices().0) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// Makes `terminal` the controlling terminal of this process, which must lead a new session.
pub fn take_control(terminal: &OwnedFd) -> Result<()> {
    terminal::make_controlling(terminal).context("can't take the terminal")
}
