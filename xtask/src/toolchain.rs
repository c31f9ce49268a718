//! The compiler for the eBPF programs, which needs the source of the standard library.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::process;

/// The release of bpf-linker that `setup` installs.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";
/// The major versions of LLVM that this release of bpf-linker can be built with.
pub(crate) const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Where Debian's `rustc-web` puts its compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LIBRARY_SOURCE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// A compiler with the standard library's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    origin: Origin,
    release: String,
    llvm: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Rustup(String),
    Debian,
}

impl Toolchain {
    /// Rustup's nightly if it has the library's source, or else Debian's compiler.
    pub(crate) fn find() -> Option<Self> {
        rustup_nightlies()
            .into_iter()
            .map(|(name, folder)| (Origin::Rustup(name), folder.join("bin/rustc"), folder))
            .chain([(Origin::Debian, DEBIAN_RUSTC.into(), "/usr".into())])
            .filter(|(_, rustc, sysroot)| rustc.is_file() && sysroot.join(LIBRARY_SOURCE).is_file())
            .find_map(|(origin, rustc, _)| {
                let (release, llvm) = versions(&rustc)?;
                is_recent(&release).then_some(Self { origin, release, llvm })
            })
    }

    /// The major version of the compiler's LLVM.
    pub(crate) fn llvm(&self) -> u32 {
        self.llvm
    }

    /// A description of the compiler.
    pub(crate) fn name(&self) -> String {
        let origin = match &self.origin {
            Origin::Rustup(name) => format!("rustup's {name}"),
            Origin::Debian => format!("Debian's {DEBIAN_RUSTC}"),
        };
        format!("{origin} (rustc {}, LLVM {})", self.release, self.llvm)
    }

    /// True if a clippy of the same version is installed.
    pub(crate) fn has_clippy(&self) -> bool {
        let driver = match &self.origin {
            Origin::Rustup(name) => home_of("RUSTUP_HOME", ".rustup")
                .map(|home| home.join("toolchains").join(name).join("bin/cargo-clippy")),
            Origin::Debian => None,
        };
        driver.is_some_and(|driver| driver.is_file())
    }

    /// A cargo that builds with this compiler and may use unstable options.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match &self.origin {
            Origin::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command.env_remove("RUSTC");
                command
            }
            Origin::Debian => {
                let mut command = crate::build::cargo();
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        // Flags from the environment would replace those of gateway-ebpf/.cargo/config.toml.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO"] {
            command.env_remove(variable);
        }
        command
    }
}

/// True if the installed bpf-linker works, and can read the bitcode of this LLVM.
pub(crate) fn linker_fits(llvm: u32) -> bool {
    let Some(program) = linker() else {
        return false;
    };
    let version = process::capture(Command::new(program).arg("--version"));
    if !version.is_ok_and(|version| version.contains(BPF_LINKER_VERSION)) {
        return false;
    }
    // A linker that cargo did not install has its own LLVM, and does not report its version.
    linker_llvm().is_none_or(|its| its >= llvm)
}

/// The bpf-linker that cargo's builds find.
pub(crate) fn linker() -> Option<PathBuf> {
    let installed = cargo_home()?.join("bin/bpf-linker");
    if installed.is_file() { Some(installed) } else { process::find_program("bpf-linker") }
}

/// The LLVM that bpf-linker was built with, from cargo's own record of what it installed.
fn linker_llvm() -> Option<u32> {
    let record = fs::read_to_string(cargo_home()?.join(".crates2.json")).ok()?;
    recorded_llvm(&serde_json::from_str(&record).ok()?)
}

fn recorded_llvm(record: &Value) -> Option<u32> {
    let prefix = format!("bpf-linker {BPF_LINKER_VERSION} ");
    let (_, install) =
        record["installs"].as_object()?.iter().find(|(name, _)| name.starts_with(&prefix))?;
    install["features"]
        .as_array()?
        .iter()
        .filter_map(|feature| feature.as_str()?.strip_prefix("llvm-")?.parse().ok())
        .max()
}

/// Rustup's nightlies: the plain one first, then the latest.
fn rustup_nightlies() -> Vec<(String, PathBuf)> {
    let Some(home) = home_of("RUSTUP_HOME", ".rustup") else {
        return Vec::new();
    };
    let mut found: Vec<_> = fs::read_dir(home.join("toolchains"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(name, _)| name.starts_with("nightly-"))
        .collect();
    found.sort_by_key(|(name, _)| {
        (name.as_bytes()["nightly-".len()..].starts_with(b"20"), std::cmp::Reverse(name.clone()))
    });
    found
}

fn versions(rustc: &Path) -> Option<(String, u32)> {
    // From the folder of the toolchain: rustup's proxy would choose another one.
    parse_versions(&process::capture(Command::new(rustc).arg("-vV")).ok()?)
}

fn parse_versions(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((field("release: ")?.to_owned(), llvm))
}

fn is_recent(release: &str) -> bool {
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    numbers(release) >= numbers(wanted)
}

fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn cargo_home() -> Option<PathBuf> {
    home_of("CARGO_HOME", ".cargo")
}

fn home_of(variable: &str, default: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(default)))
}

/// The toolchain. The error says how to get one.
pub(crate) fn require() -> Result<Toolchain> {
    match Toolchain::find() {
        Some(toolchain) => Ok(toolchain),
        None => bail!(
            "no compiler for the eBPF programs: run `cargo xtask setup`, or install one with \
             `rustup toolchain install nightly --component rust-src`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_compilers_words() {
        let text = "rustc 1.96.0 (x 2026)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_versions(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(parse_versions("rustc 1.96.0"), None);
    }

    #[test]
    fn releases_compare_by_number() {
        assert!(numbers("1.100.0-nightly") > numbers("1.95"));
        assert!(numbers("1.95.0") == numbers("1.95"));
        assert!(numbers("1.63.0") < numbers("1.95"));
    }

    #[test]
    fn the_linkers_llvm_is_what_cargo_recorded() {
        let name = format!("bpf-linker {BPF_LINKER_VERSION} (registry+x)");
        let record = serde_json::json!({ "installs": { name: { "features": ["llvm-22"] } } });
        assert_eq!(recorded_llvm(&record), Some(22));
        assert_eq!(recorded_llvm(&serde_json::json!({ "installs": {} })), None);
    }
}
