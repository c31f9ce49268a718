//! Writes cpio archives in the "newc" format, which the kernel unpacks as its initial file system
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path},
};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";
/// Headers and contents are aligned to this.
const ALIGNMENT: usize = 4;

/// An archive that is being written. [`finish`](Self::finish) completes it.
#[derive(Debug)]
pub(super) struct Archive<W> {
    output: W,
    written: usize,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, written: 0, entries: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory and its parents, unless they exist.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for component in path.components() {
            let Component::Normal(part) = component else { continue };
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(&part.to_string_lossy());
            if self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// Adds an executable file, and its directory.
    pub(super) fn file(&mut self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned();
        self.entry(&name, EXECUTABLE, contents)
    }

    /// Writes the trailer.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Magic, inode, mode, owner, group, links, time, size, four device numbers, size of the name,
        // checksum (unused in this format).
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(contents)?;
        self.align()
    }

    fn align(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.put(&[0; ALIGNMENT][..missing])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.output.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_each_directory_once_and_is_aligned() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/bin/a"), b"12345").unwrap();
        archive.file(Path::new("/bin/b"), b"").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % ALIGNMENT, 0);
        let headers: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 4, "bin, bin/a, bin/b, the trailer");
        assert!(headers.iter().all(|at| at % ALIGNMENT == 0), "{headers:?}");
        let of_a = &text[headers[1]..headers[2]];
        assert_eq!(&of_a[14..22], "000081ed", "the mode");
        assert_eq!(&of_a[54..62], "00000005", "the size");
        assert_eq!(&of_a[110..], concat!("bin/a\0", "12345", "\0\0\0"));
    }
}
