//! The corpus of a fuzz target: its inputs, and the archive in which they are committed.
//!
//! The archive is a tar file (POSIX.1-1988, "ustar") without compression: [`SUMS`] first, as `sha1sum`
//! writes it, then one file for each input, sorted by name. Times and owners are 0. So the same inputs
//! always make the same bytes, and [`Corpus::from_archive`] refuses every other archive: whatever is
//! damaged, cut off, or written by another program.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use sha1_smol::Sha1;
use tar::{Archive, Builder, EntryType, Header};

/// Name of the first file in an archive: sums and names of all inputs.
pub const SUMS: &str = "SHA1SUMS";
/// Extension of an archive's file.
pub const EXTENSION: &str = "tar";

/// What the header of a tar file has room for.
const MAX_NAME_BYTES: usize = 100;
const MODE: u32 = 0o644;

/// Inputs by name. No two are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corpus(BTreeMap<String, Vec<u8>>);

impl Corpus {
    /// Adds an input, unless an equal one is there under any name. Returns true if it was added.
    /// Refuses a name that cannot be in an archive, or that another input has.
    pub fn add(&mut self, name: &str, input: Vec<u8>) -> Result<bool> {
        check_name(name)?;
        if self.0.values().any(|known| *known == input) {
            return Ok(false);
        }
        match self.0.entry(name.to_owned()) {
            Entry::Occupied(_) => bail!("there is another input with the name `{name}`"),
            Entry::Vacant(place) => place.insert(input),
        };
        Ok(true)
    }

    /// Adds what this corpus lacks of another one. Returns the number of inputs that were added. An input
    /// whose name is taken gets its sum as its name.
    pub fn add_all(&mut self, other: &Self) -> Result<usize> {
        let mut added = 0;
        for (name, input) in &other.0 {
            let sum = sum(input);
            let name = if self.0.contains_key(name) { &sum } else { name };
            added += usize::from(self.add(name, input.clone())?);
        }
        Ok(added)
    }

    /// The inputs, sorted by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, input)| (name.as_str(), input.as_slice()))
    }

    /// Number of inputs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are no inputs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The archive of these inputs.
    pub fn to_archive(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        append(&mut archive, SUMS, self.sums().as_bytes())?;
        for (name, input) in self.inputs() {
            append(&mut archive, name, input)?;
        }
        Ok(archive.into_inner()?)
    }

    /// The inputs of an archive. Refuses an archive that [`Self::to_archive`] would write differently.
    pub fn from_archive(bytes: &[u8]) -> Result<Self> {
        let (corpus, sums) = Self::unverified(bytes).context("this is no archive of inputs")?;
        let expected = corpus.sums();
        if sums != expected {
            let line = sums.lines().zip(expected.lines()).find(|(one, other)| one != other);
            let (line, _) = line.unwrap_or((SUMS, ""));
            bail!("an input is damaged or missing: {SUMS} does not agree with the inputs: {line}");
        }
        ensure!(
            corpus.to_archive()? == bytes,
            "the inputs are undamaged, but the archive is not as `cargo xtask fuzz` writes it"
        );
        Ok(corpus)
    }

    /// What an archive says: its inputs, and its sums.
    fn unverified(bytes: &[u8]) -> Result<(Self, String)> {
        let mut archive = Archive::new(bytes);
        let mut entries = archive.entries()?;
        let mut next = || -> Result<Option<(String, Vec<u8>)>> {
            let Some(entry) = entries.next() else { return Ok(None) };
            let mut entry = entry?;
            let name = String::from_utf8(entry.path_bytes().into_owned())?;
            ensure!(entry.header().entry_type() == EntryType::Regular, "`{name}` is no file");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).with_context(|| format!("cannot read `{name}`"))?;
            Ok(Some((name, content)))
        };
        let (name, sums) = next()?.context("it is empty")?;
        ensure!(name == SUMS, "its first file is `{name}`, not {SUMS}");
        let sums = String::from_utf8(sums).with_context(|| format!("{SUMS} is no text"))?;
        let mut corpus = Self::default();
        while let Some((name, input)) = next()? {
            ensure!(corpus.add(&name, input)?, "the input `{name}` is there twice");
        }
        Ok((corpus, sums))
    }

    fn sums(&self) -> String {
        self.inputs().fold(String::new(), |mut sums, (name, input)| {
            for part in [&sum(input), "  ", name, "\n"] {
                sums.push_str(part);
            }
            sums
        })
    }

    /// Reads the archive in a file; without a file there are no inputs.
    pub fn read(file: &Path) -> Result<Self> {
        if !file.try_exists().with_context(|| cannot_read(file))? {
            return Ok(Self::default());
        }
        let bytes = fs::read(file).with_context(|| cannot_read(file))?;
        Self::from_archive(&bytes).with_context(|| file.display().to_string())
    }

    /// Writes the archive to a file: all of it, or nothing.
    pub fn write(&self, file: &Path) -> Result<()> {
        let half = file.with_extension(format!("{EXTENSION}.{}", std::process::id()));
        fs::write(&half, self.to_archive()?)
            .and_then(|()| fs::rename(&half, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Makes a folder that has these inputs as its files, and nothing else.
    pub fn unpack(&self, folder: &Path) -> Result<()> {
        let unpack = || {
            if folder.try_exists()? {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)?;
            self.inputs().try_for_each(|(name, input)| fs::write(folder.join(name), input))
        };
        unpack().with_context(|| format!("cannot unpack inputs to {}", folder.display()))
    }

    /// The files of a folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let mut corpus = Self::default();
        let entries = fs::read_dir(folder).with_context(|| cannot_read(folder))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        for file in &files {
            corpus.add_file(file)?;
        }
        Ok(corpus)
    }

    /// Adds the input in a file, under the file's name. Returns true if it was added.
    pub fn add_file(&mut self, file: &Path) -> Result<bool> {
        let input = fs::read(file).with_context(|| cannot_read(file))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        self.add(&name, input).with_context(|| file.display().to_string())
    }
}

fn sum(input: &[u8]) -> String {
    Sha1::from(input).digest().to_string()
}

fn append(archive: &mut Builder<Vec<u8>>, name: &str, content: &[u8]) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_path(name)?;
    header.set_size(content.len() as u64);
    header.set_mode(MODE);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(archive.append(&header, content)?)
}

/// Names are plain, so that they mean the same in an archive, in a folder and in [`SUMS`].
fn check_name(name: &str) -> Result<()> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    ensure!(
        (1..=MAX_NAME_BYTES).contains(&name.len())
            && name.chars().all(is_plain)
            && !name.starts_with('.')
            && name != SUMS,
        "`{name}` cannot be the name of an input: letters, digits, `-`, `_` and `.` can, not `.` first, \
         {MAX_NAME_BYTES} at most, and not {SUMS}"
    );
    Ok(())
}

fn cannot_read(file: &Path) -> String {
    format!("cannot read {}", file.display())
}
