//! Files with the last output of a machine, of limited size.
//!
//! A job writes as much as it likes to its console. In the host's journal it would replace the
//! messages of the host and of other machines, so it does not get there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Number of the last bytes that are kept, at least. The file has at most twice as many.
pub const KEPT: u64 = 64 << 10;

/// A file with the last output.
#[derive(Debug)]
pub struct OutputFile(File);

impl OutputFile {
    /// Creates the file, or empties it.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Self(options.mode(0o600).open(path)?))
    }

    /// Appends output, and discards the oldest if there is too much.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(KEPT as usize) {
            if self.0.stream_position()? + part.len() as u64 >= 2 * KEPT {
                self.shorten()?;
            }
            self.0.write_all(part)?;
        }
        Ok(())
    }

    // A reader may see some output twice at this moment, but misses none.
    fn shorten(&mut self) -> io::Result<()> {
        let mut kept = Vec::new();
        self.0.seek(SeekFrom::End(-(KEPT as i64)))?;
        self.0.read_to_end(&mut kept)?;
        self.0.rewind()?;
        self.0.write_all(&kept)?;
        self.0.set_len(KEPT)
    }
}

/// Returns the last [`KEPT`] bytes of output. The first line may lack its beginning.
pub fn read(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let hidden = file.metadata()?.len().saturating_sub(KEPT);
    file.seek(SeekFrom::Start(hidden))?;
    let mut bytes = Vec::new();
    file.take(KEPT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_output_is_kept_in_limited_space() {
        let path = std::env::temp_dir().join(format!("nspawn output {}", std::process::id()));
        let mut output = OutputFile::create(&path).unwrap();
        output.append(b"first\nsecond\n").unwrap();
        assert_eq!(read(&path).unwrap(), "first\nsecond\n");
        for number in 0..100_000 {
            output
                .append(format!("line {number}\n").as_bytes())
                .unwrap();
        }
        let kept = read(&path).unwrap();
        assert!(kept.ends_with("line 99998\nline 99999\n"));
        assert_eq!(kept.len() as u64, KEPT);
        assert!(std::fs::metadata(&path).unwrap().len() <= 2 * KEPT);
        output.append(&[b'x'; 5 * KEPT as usize]).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, KEPT);
        assert!(std::fs::metadata(&path).unwrap().len() <= 2 * KEPT);
        std::fs::remove_file(path).unwrap();
    }
}
