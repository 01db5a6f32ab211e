//! Streams of a command: movement of bytes between this program's stdin, stdout and stderr, and the
//! pipes of the machine.
//!
//! The machine gets new pipes, and never the descriptors of this program. Those may be a terminal
//! or a file, whose settings the machine could change, and which it could use in both directions.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::{pipe2, read};
use nspawn_common::sys::ioctl;

use crate::client::transfer;
use crate::client::transfer::MAX_CHUNK;

/// Creates a pipe and returns its read end and its write end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("can't create a pipe")?;
    // The pipe keeps its size if pipes already take too much of the host's memory.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(MAX_CHUNK as i32));
    Ok((reader, writer))
}

/// Creates an empty file, for which a command in the machine gets the machine's /dev/null as stdin.
///
/// The machine may not get the device of the host, whose mode its root could change.
pub fn empty_file() -> Result<OwnedFd> {
    let create = || {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create("stdin", flags)?;
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        nix::Result::Ok(file)
    };
    create().context("can't create an empty file")
}

/// Returns the error of reading stdin, if stdin is a directory, or a file that is open for writing
/// only.
///
/// Moves no byte. Other errors occur only when bytes are moved.
pub fn find_stdin_error() -> Option<Errno> {
    let stdin = io::stdin();
    // Reading a terminal has an effect even if no byte is read.
    let is_stored = transfer::is_file(stdin.as_fd()) || transfer::is_directory(stdin.as_fd());
    is_stored.then(|| read(stdin, &mut []).err()).flatten()
}

/// Failure to read stdin.
pub struct InputFailure {
    error: Errno,
    /// Pipe with the bytes before the failure that the command has not read.
    unread: Option<File>,
}

impl InputFailure {
    /// Returns the error if the command has read everything before the failure. It then takes the
    /// failure for the end of the input.
    pub fn into_result(self) -> nix::Result<()> {
        let unread = self.unread.as_ref().map(ioctl::readable_bytes);
        match unread {
            Some(Ok(1..)) => Ok(()),
            _ => Err(self.error),
        }
    }
}

/// Starts to move `stdin` into the machine, until either side ends.
///
/// This runs in the background. The returned channel receives a failure before the command sees
/// the end of its stdin.
pub fn start_input(stdin: OwnedFd, target: OwnedFd) -> Result<Receiver<InputFailure>> {
    let (sender, failure) = sync_channel(1);
    spawn(move || {
        if let Err(error) = move_input(&stdin, target.as_fd()) {
            let unread = open_read_end(&target).ok();
            let _ = sender.send(InputFailure { error, unread });
        }
    })?;
    Ok(failure)
}

// The read end is open from now on only, so that a command that closes its stdin ends the input.
fn open_read_end(write_end: &OwnedFd) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(format!("/proc/self/fd/{}", write_end.as_raw_fd()))
}

fn move_input(stdin: &OwnedFd, target: BorrowedFd) -> nix::Result<()> {
    loop {
        // Moving the pages of a file would show the machine the host's page cache itself. A pipe may
        // contain such pages, too. The copy of a gigabyte takes about a third of a second.
        match transfer::copy(stdin, target, MAX_CHUNK) {
            Ok(0) | Err(Errno::EPIPE) => return Ok(()),
            // nohup(1) replaces a terminal on stdin with a descriptor that can only be written. A
            // terminal may also be gone, or be the controlling terminal of another session.
            Err(Errno::EBADF | Errno::EIO) if !transfer::is_file(stdin.as_fd()) => return Ok(()),
            Ok(_) => {}
            // Another process that shares stdin has made it non-blocking.
            Err(Errno::EAGAIN) => transfer::wait_for(stdin.as_fd(), PollFlags::POLLIN),
            Err(errno) => return Err(errno),
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .spawn(work)
        .map(drop)
        .context("can't start a thread; see TasksMax= of the unit that nspawn-run runs in")
}

/// Route of output: a pipe from the machine, and the descriptor that receives its bytes.
pub struct Route {
    source: OwnedFd,
    target: OwnedFd,
}

/// Creates the routes to stdout and stderr, and returns them with the two ends for the machine.
///
/// If stdout and stderr are the same file, as after `2>&1`, both use the same pipe. This keeps the
/// order in which the command writes to them.
pub fn create_routes() -> Result<(Vec<Route>, [OwnedFd; 2])> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let (stdout_reader, stdout_writer) = pipe()?;
    let stdout_route = |target| Route {
        source: stdout_reader,
        target,
    };
    if is_same_file(&stdout, &stderr) {
        let stderr_writer = stdout_writer.try_clone()?;
        return Ok((vec![stdout_route(stdout)], [stdout_writer, stderr_writer]));
    }
    let (stderr_reader, stderr_writer) = pipe()?;
    let stderr_route = Route {
        source: stderr_reader,
        target: stderr,
    };
    Ok((
        vec![stdout_route(stdout), stderr_route],
        [stdout_writer, stderr_writer],
    ))
}

fn is_same_file(first: &OwnedFd, second: &OwnedFd) -> bool {
    let identity = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino, stat.st_rdev));
    identity(first).is_ok_and(|first| identity(second) == Ok(first))
}

/// Output of a command that a thread moves along its route.
pub struct Output {
    result: Receiver<io::Result<()>>,
    /// Event that the command has ended.
    end: EventFd,
}

impl Output {
    /// Starts to move the bytes, until [`Output::finish`].
    pub fn start(Route { source, target }: Route) -> Result<Self> {
        // The machine can also open the read end of the pipe, and read bytes that this program is
        // about to read. A blocking read would then hang.
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("can't set up a pipe")?;
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("can't create an event")?;
        let watched_end = end.as_fd().try_clone_to_owned()?;
        let (sender, result) = sync_channel(1);
        spawn(move || {
            let _ = sender.send(move_output(&source, target.as_fd(), watched_end.as_fd()));
        })?;
        Ok(Self { result, end })
    }

    /// Delivers the bytes that the command has written until now, and no more.
    ///
    /// A background process in the machine may hold the stream open and write without end. The
    /// reader may take as long as it likes, or `limit`. If the reader has closed the stream, that
    /// is not an error, since the command got SIGPIPE or an error of its own.
    pub fn finish(self, limit: Option<Duration>) -> Result<()> {
        self.end.write(1).context("can't signal an event")?;
        let result = match limit {
            None => self.result.recv().context("can't move the output")?,
            Some(limit) => self
                .result
                .recv_timeout(limit)
                .context("can't deliver the command's output in time")?,
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context("can't write the command's output"),
        }
    }
}

fn move_output(source: &OwnedFd, target: BorrowedFd, end: BorrowedFd) -> io::Result<()> {
    loop {
        let mut fds = [
            PollFd::new(source.as_fd(), PollFlags::POLLIN),
            PollFd::new(end, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[1].any() == Some(true) => {
                return transfer::transfer_contents(source, target);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        match transfer::transfer(source, target, MAX_CHUNK) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Starts an output between two pipes. Returns their other ends as well.
    fn start() -> (File, Output, File) {
        let (source, writer) = pipe().unwrap();
        let (reader, target) = pipe().unwrap();
        let output = Output::start(Route { source, target }).unwrap();
        (writer.into(), output, reader.into())
    }

    #[test]
    fn written_bytes_are_delivered_while_the_pipe_stays_open() {
        let (mut held_open, output, mut reader) = start();
        held_open.write_all(&[7; 100_000]).unwrap();
        output.finish(None).unwrap();
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        assert_eq!(received, [7; 100_000]);
    }

    #[test]
    fn more_than_a_pipe_holds_is_delivered_to_a_late_reader() {
        let (mut writer, output, mut reader) = start();
        writer.write_all(&[7; 2 * MAX_CHUNK]).unwrap();
        let finishing = thread::spawn(|| output.finish(None));
        let mut received = vec![0; 2 * MAX_CHUNK];
        reader.read_exact(&mut received).unwrap();
        finishing.join().unwrap().unwrap();
        assert!(received.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn writer_ends_when_the_reader_goes_away() {
        let (source, writer) = pipe().unwrap();
        let (reader, target) = pipe().unwrap();
        drop(reader);
        let output = Output::start(Route { source, target }).unwrap();
        let mut writer = File::from(writer);
        while writer.write_all(&[0; 1000]).is_ok() {}
        output.finish(None).unwrap();
    }
}
