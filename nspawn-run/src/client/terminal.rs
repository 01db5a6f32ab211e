//! The terminal that this program was started on.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nspawn_common::sys::terminal;

/// Whether a person sits in front of both stdin and stdout.
#[must_use]
pub fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Returns the rows and columns of the terminal, or 24 and 80 if its size is unknown.
pub fn size() -> (u16, u16) {
    match terminal::size(stdin()) {
        Ok((rows, columns)) if rows > 0 && columns > 0 => (rows, columns),
        _ => (24, 80),
    }
}

/// Raw mode: every key goes to the machine. Dropping it restores the terminal.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes stdin raw, if it is a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).context("can't read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw).context("can't set the terminal")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}
