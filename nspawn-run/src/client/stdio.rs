//! Moving bytes between this program's stdin, stdout, stderr and the pipes that the machine holds.
//!
//! The machine gets pipes of ours and never the descriptors that we were given: those may be a
//! terminal or a file whose settings and other direction are not its business.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{pipe2, read, write};
use nspawn_common::sys::pipe::readable_bytes;

/// The pipes' size and the most that is moved at once, in bytes: what any user may have (pipe(7)).
const CHUNK: usize = 1 << 20;
/// What is copied at once, where it must be, in bytes: what fits into a processor's cache.
const COPY: usize = 128 << 10;

/// A pipe: where to read, where to write.
///
/// # Errors
/// No descriptors left.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("can't make a pipe")?;
    // Refused where pipes take too much of the host's memory: then it stays as it is.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(CHUNK as i32));
    Ok((reader, writer))
}

/// Moves stdin into the machine until either side ends. Nobody waits for it; what it returns tells of
/// a stdin that can't be read.
///
/// # Errors
/// No more processes.
pub fn feed(stdin: OwnedFd, into: OwnedFd) -> Result<Receiver<Error>> {
    let (sender, failed) = sync_channel(1);
    spawn(move || {
        loop {
            match shift(&stdin, into.as_fd(), CHUNK) {
                Ok(0) | Err(Errno::EPIPE) => return,
                // nohup(1) leaves one that can be written only; a terminal may be another's, or gone.
                Err(Errno::EBADF | Errno::EIO) if !is_file(&stdin) => return,
                Ok(_) => {}
                // Somebody else who has our stdin open made it so.
                Err(Errno::EAGAIN) => wait_for(stdin.as_fd(), PollFlags::POLLIN),
                Err(error) => return drop(sender.send(error.into())),
            }
        }
    })?;
    Ok(failed)
}

fn is_file(fd: &OwnedFd) -> bool {
    kind(fd.as_fd()) == Some(SFlag::S_IFREG)
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .spawn(work)
        .map(drop)
        .context("can't start a thread; see TasksMax= of the unit that this runs in")
}

/// A pipe out of the machine, and where its bytes go.
pub type Route = (OwnedFd, OwnedFd);

/// The ways to our stdout and stderr, and the two ends that the machine gets. Where both are the same,
/// as under `2>&1`, so is the way there: what is written in an order arrives in it.
///
/// # Errors
/// No descriptors left.
pub fn outputs() -> Result<(Vec<Route>, [OwnedFd; 2])> {
    let (stdout, stderr) = (
        io::stdout().as_fd().try_clone_to_owned()?,
        io::stderr().as_fd().try_clone_to_owned()?,
    );
    let (stdout_here, stdout_there) = pipe()?;
    if is_same(&stdout, &stderr) {
        let stderr_there = stdout_there.try_clone()?;
        return Ok((vec![(stdout_here, stdout)], [stdout_there, stderr_there]));
    }
    let (stderr_here, stderr_there) = pipe()?;
    Ok((
        vec![(stdout_here, stdout), (stderr_here, stderr)],
        [stdout_there, stderr_there],
    ))
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let place = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino, stat.st_rdev));
    place(one).is_ok_and(|one| place(other) == Ok(one))
}

/// A stream out of the machine, on its way.
pub struct Output {
    done: Receiver<io::Result<()>>,
    ended: EventFd,
}

impl Output {
    /// Moves bytes along the way until [`Output::finish`].
    ///
    /// # Errors
    /// No descriptors or processes left.
    pub fn start((from, to): Route) -> Result<Self> {
        // The machine can open the pipe's other end too, and read what we are about to.
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("can't set up a pipe")?;
        let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("can't make an event")?;
        let watched = ended.as_fd().try_clone_to_owned()?;
        let (sender, done) = sync_channel(1);
        spawn(move || drop(sender.send(drain(&from, to.as_fd(), watched.as_fd()))))?;
        Ok(Self { done, ended })
    }

    /// Delivers what was written until now, and no more: a process in the machine's background may
    /// hold the stream open and write for ever. A reader may take its time, or `limit`.
    ///
    /// # Errors
    /// The output can't be written. A reader that went away is no error: the command learnt of it.
    pub fn finish(self, limit: Option<Duration>) -> Result<()> {
        self.ended.write(1).context("can't signal an event")?;
        let done = match limit {
            None => self.done.recv().context("moving the output failed")?,
            Some(limit) => self
                .done
                .recv_timeout(limit)
                .context("nobody reads the command's output")?,
        };
        done.or_else(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                Ok(())
            } else {
                Err(error)
            }
        })
        .context("can't write the command's output")
    }
}

fn drain(from: &OwnedFd, to: BorrowedFd, ended: BorrowedFd) -> io::Result<()> {
    loop {
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[1].any() == Some(true) => {
                return shift_exactly(from, to, readable_bytes(from)?);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        match shift(from, to, CHUNK) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn shift_exactly(from: &OwnedFd, to: BorrowedFd, mut count: usize) -> io::Result<()> {
    while count > 0 {
        match shift(from, to, count) {
            Ok(0) => break,
            Ok(moved) => count -= moved,
            // The machine took back what it had written.
            Err(Errno::EAGAIN) if readable_bytes(from)? == 0 => break,
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

// Moves up to `most` bytes; 0 at the end, EAGAIN if there is nothing now. Between pipes, and from a file
// on a disk, the kernel need not copy them. Others must not be spliced: splice(2) locks the pipe while
// it waits for them, and the machine's processes would hang at the lock, unkillable.
fn shift(from: &OwnedFd, to: BorrowedFd, most: usize) -> nix::Result<usize> {
    if !is_pipe(to) || !(is_pipe(from.as_fd()) || is_file(from)) {
        return copy(from, to, most);
    }
    let moved = retry(|| splice(from, None, to, None, most.min(CHUNK), SpliceFFlags::empty()));
    // Some files, as those of /proc, can't.
    if moved == Err(Errno::EINVAL) {
        return copy(from, to, most);
    }
    // From a pipe that does not block, splice(2) does not wait for room either.
    if moved == Err(Errno::EAGAIN) {
        wait_for(to, PollFlags::POLLOUT);
    }
    moved
}

fn is_pipe(fd: BorrowedFd) -> bool {
    kind(fd) == Some(SFlag::S_IFIFO)
}

fn kind(fd: BorrowedFd) -> Option<SFlag> {
    fstat(fd)
        .ok()
        .map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

thread_local! {
    // Of each thread that moves bytes, made once: filling it with zeroes costs as much as a copy.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; COPY]);
}

fn copy(from: &OwnedFd, to: BorrowedFd, most: usize) -> nix::Result<usize> {
    BUFFER.with_borrow_mut(|buffer| copy_through(buffer, from, to, most))
}

fn copy_through(
    buffer: &mut [u8],
    from: &OwnedFd,
    to: BorrowedFd,
    most: usize,
) -> nix::Result<usize> {
    let most = most.min(buffer.len());
    let count = retry(|| read(from, &mut buffer[..most]))?;
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match retry(|| write(to, rest)) {
            Ok(written) => rest = &rest[written..],
            // Somebody else who has our output open made it so.
            Err(Errno::EAGAIN) => wait_for(to, PollFlags::POLLOUT),
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

// Errors show in the next call on the descriptor.
fn wait_for(fd: BorrowedFd, event: PollFlags) {
    let _ = poll(&mut [PollFd::new(fd, event)], PollTimeout::NONE);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn all_that_was_written_is_delivered_though_the_pipe_stays_open() {
        let (from, writer) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        let output = Output::start((from, to)).unwrap();
        let mut held_open = File::from(writer);
        held_open.write_all(&[7; 100_000]).unwrap();
        output.finish(None).unwrap();
        let mut got = Vec::new();
        File::from(reader).read_to_end(&mut got).unwrap();
        assert_eq!(got, [7; 100_000]);
    }

    #[test]
    fn more_than_a_pipe_holds_is_delivered_though_nobody_reads_yet() {
        let (from, writer) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        let output = Output::start((from, to)).unwrap();
        let mut writer = File::from(writer);
        writer.write_all(&[7; 2 * CHUNK]).unwrap();
        let finishing = thread::spawn(|| output.finish(None));
        let mut got = vec![0; 2 * CHUNK];
        File::from(reader).read_exact(&mut got).unwrap();
        finishing.join().unwrap().unwrap();
        assert!(got.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn streams_that_do_not_block_lose_nothing() {
        let (from, to) = (File::open("/dev/zero").unwrap(), pipe().unwrap());
        fcntl(&to.1, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let reader = thread::spawn(move || {
            let mut got = vec![1; 4 * CHUNK];
            File::from(to.0).read_exact(&mut got).map(|()| got)
        });
        let from = OwnedFd::from(from);
        for _ in 0..4 * CHUNK / COPY {
            assert_eq!(shift(&from, to.1.as_fd(), CHUNK).unwrap(), COPY);
        }
        assert!(
            reader
                .join()
                .unwrap()
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_writer() {
        let (from, writer) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        drop(reader);
        let output = Output::start((from, to)).unwrap();
        let mut writer = File::from(writer);
        while writer.write_all(&[0; 1000]).is_ok() {}
        output.finish(None).unwrap();
    }
}
