use std::path::PathBuf;
use std::process::Command;

use super::*;

/// Offsets in the header of a file, and the size of header and block (POSIX, pax, "ustar Interchange Format").
const MTIME: usize = 136;
const BLOCK: usize = 512;

fn corpus(inputs: &[(&str, &[u8])]) -> Corpus {
    let mut corpus = Corpus::default();
    for (name, input) in inputs {
        assert!(corpus.add(name, input.to_vec()).unwrap());
    }
    corpus
}

/// With an empty input, one that fills a block, and one of every byte.
fn sample() -> Corpus {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let block = [7; BLOCK];
    corpus(&[
        ("request", b"GET / HTTP/1.1\r\n"),
        ("block", &block),
        ("Nothing", b""),
        ("all", &all),
    ])
}

fn refusal(archive: &[u8]) -> String {
    format!("{:#}", Corpus::from_archive(archive).unwrap_err())
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("millrace-corpus-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn inputs_come_back_from_their_archive() {
    for corpus in [sample(), Corpus::default()] {
        assert_eq!(Corpus::from_archive(&corpus.to_archive().unwrap()).unwrap(), corpus);
    }
}

#[test]
fn the_order_in_which_inputs_are_added_does_not_matter() {
    let archive = sample().to_archive().unwrap();
    let mut reversed: Vec<_> = sample().0.into_iter().collect();
    reversed.reverse();
    let mut again = Corpus::default();
    for (name, input) in reversed {
        again.add(&name, input).unwrap();
    }
    assert_eq!(again.to_archive().unwrap(), archive);
    let names: Vec<_> = again.inputs().map(|(name, _)| name).collect();
    assert_eq!(names, ["Nothing", "all", "block", "request"]);
}

#[test]
fn an_archive_has_neither_times_nor_owners() {
    let archive = sample().to_archive().unwrap();
    let mut archive = Archive::new(archive.as_slice());
    let mut count = 0;
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mtime().unwrap(), header.mode().unwrap()), (0, MODE));
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!((header.username(), header.groupname()), (Ok(Some("")), Ok(Some(""))));
        count += 1;
    }
    assert_eq!(count, 5);
}

/// Each byte of an archive that is changed makes another archive, and none of those is taken.
#[test]
fn a_damaged_archive_is_refused_wherever_the_damage_is() {
    let archive = sample().to_archive().unwrap();
    for place in 0..archive.len() {
        let mut damaged = archive.clone();
        damaged[place] ^= 0x20;
        assert!(Corpus::from_archive(&damaged).is_err(), "byte {place}");
    }
}

#[test]
fn an_archive_that_is_cut_off_or_goes_on_is_refused() {
    let archive = sample().to_archive().unwrap();
    for length in 0..archive.len() {
        assert!(Corpus::from_archive(&archive[..length]).is_err(), "{length} bytes");
    }
    let longer = [archive.as_slice(), &[0; BLOCK]].concat();
    assert!(refusal(&longer).contains("not as `cargo xtask fuzz` writes it"));
}

#[test]
fn a_refusal_says_what_is_wrong() {
    let archive = sample().to_archive().unwrap();
    let place = archive.windows(5).position(|bytes| bytes == b"GET /").unwrap();
    let mut damaged = archive.clone();
    damaged[place] = b'P';
    let told = refusal(&damaged);
    assert!(told.contains("damaged") && told.contains("  request"), "{told}");

    // A time is right for a tar file, and wrong for these.
    let mut header = Header::new_ustar();
    header.as_mut_bytes().copy_from_slice(&archive[..BLOCK]);
    assert_eq!(header.mtime().unwrap(), 0);
    header.set_mtime(1);
    header.set_cksum();
    let mut other = archive.clone();
    other[..BLOCK].copy_from_slice(header.as_bytes());
    assert_ne!(other[MTIME..MTIME + 12], archive[MTIME..MTIME + 12]);
    assert!(refusal(&other).contains("not as `cargo xtask fuzz` writes it"));

    assert!(refusal(b"").contains("it is empty"));
    let mut foreign = Builder::new(Vec::new());
    append(&mut foreign, "request", b"GET").unwrap();
    assert!(refusal(&foreign.into_inner().unwrap()).contains("its first file is `request`"));
}

/// `../x` could be written outside of the folder; what else is not plain may be something else elsewhere.
#[test]
fn names_are_plain() {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a\n", "\u{e4}", SUMS, &long] {
        assert!(Corpus::default().add(name, Vec::new()).is_err(), "{name:?}");
    }
    let named = corpus(&[("crash-0a", b"1"), (&long[1..], b"2"), ("v1.2_x", b"3")]);
    assert_eq!(Corpus::from_archive(&named.to_archive().unwrap()).unwrap(), named);
}

#[test]
fn an_input_is_kept_once_and_a_name_means_one_input() {
    let mut corpus = corpus(&[("a", b"1")]);
    assert!(!corpus.add("b", b"1".to_vec()).unwrap());
    assert!(corpus.add("a", b"2".to_vec()).unwrap_err().to_string().contains("`a`"));
    assert_eq!(corpus.len(), 1);
}

#[test]
fn two_corpora_become_one() {
    let mut ours = corpus(&[("a", b"1"), ("b", b"2")]);
    let theirs = corpus(&[("a", b"3"), ("c", b"2"), ("d", b"4")]);
    assert_eq!(ours.add_all(&theirs).unwrap(), 2);
    let sum = sum(b"3");
    assert_eq!(ours, corpus(&[("a", b"1"), ("b", b"2"), (&sum, b"3"), ("d", b"4")]));
    assert_eq!(ours.add_all(&theirs).unwrap(), 0);
}

#[test]
fn files_and_folders_hold_the_same_inputs() {
    let folder = Folder::new("files");
    let (file, unpacked) = (folder.0.join("target.tar"), folder.0.join("unpacked"));
    assert!(Corpus::read(&file).unwrap().is_empty());
    sample().write(&file).unwrap();
    assert_eq!(Corpus::read(&file).unwrap(), sample());

    fs::create_dir(&unpacked).unwrap();
    fs::write(unpacked.join("left"), b"from before").unwrap();
    sample().unpack(&unpacked).unwrap();
    assert_eq!(Corpus::from_folder(&unpacked).unwrap(), sample());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);

    fs::write(&file, b"half").unwrap();
    let told = format!("{:#}", Corpus::read(&file).unwrap_err());
    assert!(told.contains("target.tar"), "{told}");
}

/// Others can read an archive without this package, and check it.
#[test]
fn tar_and_sha1sum_understand_an_archive() {
    let folder = Folder::new("tools");
    sample().write(&folder.0.join("target.tar")).unwrap();
    for arguments in [&["tar", "xf", "target.tar"][..], &["sha1sum", "--check", "--quiet", SUMS]] {
        let mut command = Command::new(arguments[0]);
        let output = command.args(&arguments[1..]).current_dir(&folder.0).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    for (name, input) in sample().inputs() {
        assert_eq!(fs::read(folder.0.join(name)).unwrap(), input);
    }
}
