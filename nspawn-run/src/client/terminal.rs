//! The caller's terminal.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nspawn_common::sys::ioctl;

/// Number of rows and columns if there is no terminal.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// Returns whether stdin and stdout are both terminals, so that a person can use a shell.
pub fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Returns the number of rows and columns of the terminal.
pub fn size() -> (u16, u16) {
    match ioctl::window_size(stdin()) {
        Ok((rows, columns)) if rows > 0 && columns > 0 => (rows, columns),
        _ => DEFAULT_SIZE,
    }
}

/// Raw mode of the terminal on stdin, in which every key reaches the machine. The drop restores the
/// previous mode.
pub struct RawMode {
    previous: Termios,
}

impl RawMode {
    /// Enters raw mode. Returns `None` if stdin is not a terminal.
    pub fn enter() -> Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let previous = tcgetattr(stdin()).context("can't read the terminal's settings")?;
        let mut raw = previous.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw)
            .context("can't change the terminal's settings")?;
        Ok(Some(Self { previous }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin().as_fd(), SetArg::TCSADRAIN, &self.previous);
    }
}
