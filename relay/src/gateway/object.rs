//! The eBPF object file: where it is, and whether it is of our version.

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{Program, ProgramError};
use millrace_common::abi::{ABI_VERSION, SECTION};
use nix::sys::signal::{SigSet, SigmaskHow};
use object::{Object as _, ObjectSection as _};

use super::error::{GatewayError, errno};

/// Environment variable that names the object file.
pub const VARIABLE: &str = super::error::OBJECT_VARIABLE;
/// Name of the object file beside the executable.
const FILE: &str = "gateway.bpf.o";
/// libbpf's `PROG_LOAD_ATTEMPTS`.
const VERIFY_ATTEMPTS: usize = 5;
/// Where packages put it.
const INSTALLED: &str = "/usr/lib/millrace/gateway.bpf.o";

/// An object file that has been read and is of our ABI version.
#[derive(Debug)]
pub struct ObjectFile {
    /// Where it was found.
    pub path: PathBuf,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl ObjectFile {
    /// Finds the object: what [`VARIABLE`] names and nothing else, or the first of `gateway.bpf.o`
    /// beside the executable and the packaged one.
    pub fn find() -> Result<Self, GatewayError> {
        let candidates = match std::env::var_os(VARIABLE) {
            Some(path) => vec![PathBuf::from(path)],
            None => std::env::current_exe()
                .ok()
                .map(|executable| executable.with_file_name(FILE))
                .into_iter()
                .chain([PathBuf::from(INSTALLED)])
                .collect(),
        };
        match candidates.iter().find(|path| path.is_file()) {
            Some(path) => Self::read(path),
            None => Err(GatewayError::NoObject { searched: candidates }),
        }
    }

    /// Reads an object and refuses one of another version.
    pub fn read(path: &Path) -> Result<Self, GatewayError> {
        let bytes = std::fs::read(path)
            .map_err(GatewayError::io(format!("read the eBPF object {}", path.display())))?;
        let found = abi_version(&bytes)
            .map_err(|problem| GatewayError::BadObject { path: path.to_owned(), problem })?;
        if found != ABI_VERSION {
            return Err(GatewayError::AbiMismatch {
                what: format!("the eBPF object {}", path.display()),
                found,
                ours: ABI_VERSION,
            });
        }
        Ok(Self { path: path.to_owned(), bytes })
    }
}

/// Has the kernel verify a program.
///
/// A signal that comes in meanwhile makes the verifier give up with EAGAIN, which says nothing about
/// the program. Signals that can be blocked wait until it is done: who gets one every few
/// milliseconds would never load anything, however often it tried. SIGCHLD is one of them where
/// nobody handles it, if the child ends before `posix_spawn` has unblocked its parent's signals.
/// For a stop of the process and a freezer's (cgroups(7)), the verifier is asked again, as often as
/// libbpf does.
pub fn verify(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => verified(|| program.load()),
        Program::SchedClassifier(program) => verified(|| program.load()),
        Program::RawTracePoint(program) => verified(|| program.load()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// A map of a loaded object.
pub(super) fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Map {
    ebpf.map_mut(name).expect("load_object has checked the maps")
}

/// [`verify`] of a program whose kind is known.
pub(super) fn verified(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let _blocked = Blocked::all()?;
    for _ in 1..VERIFY_ATTEMPTS {
        match load() {
            Err(error) if errno(&error) == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    load()
}

/// This thread's signals are blocked; those that were not before come when it is dropped.
struct Blocked {
    before: SigSet,
}

impl Blocked {
    fn all() -> Result<Self, ProgramError> {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        Ok(Self { before: before.map_err(|errno| ProgramError::IOError(errno.into()))? })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // Fails for an invalid argument alone (pthread_sigmask(3)).
        let _ = self.before.thread_set_mask();
    }
}

fn abi_version(bytes: &[u8]) -> Result<u32, String> {
    let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
    let section =
        file.section_by_name(SECTION).ok_or_else(|| format!("it has no section {SECTION}"))?;
    let data = section.data().map_err(|error| error.to_string())?;
    let version = data
        .try_into()
        .map_err(|_| format!("section {SECTION} has {} bytes, but should have 4", data.len()))?;
    Ok(u32::from_le_bytes(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(section: &str, data: &[u8]) -> Vec<u8> {
        // The least ELF64 that has one named section: header, names, data, three section headers.
        let names = [b"\0", section.as_bytes(), b"\0.shstrtab\0"].concat();
        let names_at = 64u64;
        let data_at = names_at + names.len() as u64;
        let headers_at = (data_at + data.len() as u64).next_multiple_of(8);
        let mut file = vec![0u8; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&1u16.to_le_bytes());
        file[18..20].copy_from_slice(&247u16.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[40..48].copy_from_slice(&headers_at.to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&3u16.to_le_bytes());
        file[62..64].copy_from_slice(&2u16.to_le_bytes());
        file.extend_from_slice(&names);
        file.extend_from_slice(data);
        file.resize(usize::try_from(headers_at).unwrap(), 0);
        let second_name = u32::try_from(section.len() + 2).unwrap();
        for (name, kind, at, length) in [
            (0u32, 0u32, 0u64, 0usize),
            (1, 1, data_at, data.len()),
            (second_name, 3, names_at, names.len()),
        ] {
            let mut header = [0u8; 64];
            header[0..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file
    }

    #[test]
    fn the_version_is_read_from_its_section() {
        assert_eq!(abi_version(&object(SECTION, &7u32.to_le_bytes())), Ok(7));
    }

    #[test]
    fn a_missing_or_short_section_is_named() {
        assert_eq!(
            abi_version(&object(".other", &[0; 4])).unwrap_err(),
            "it has no section .millrace.abi"
        );
        assert!(abi_version(&object(SECTION, &[0; 3])).unwrap_err().contains("has 3 bytes"));
        assert!(abi_version(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn another_version_is_refused_naming_both() {
        let path = std::env::temp_dir().join(format!("millrace-abi-{}.o", std::process::id()));
        std::fs::write(&path, object(SECTION, &9_999u32.to_le_bytes())).unwrap();
        let error = ObjectFile::read(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("ABI version 9999"), "{error}");
        assert!(error.contains(&format!("has {ABI_VERSION}")), "{error}");
    }
}
