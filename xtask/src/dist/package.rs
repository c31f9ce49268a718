//! The Debian package, from the files of the workspace and what is built of them. `dpkg-deb` packs it: that is
//! on every Debian, and what another tool would add to the scripts, a restart of services at each upgrade, is
//! what this package must not do.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{build, paths, process};

const NAME: &str = "millrace";
/// Beside the libraries: what `load` runs.
const DEPENDS: &str = "iproute2";
const RECOMMENDS: &str = "ethtool";
const DOC: &str = "usr/share/doc/millrace";

/// Files of the workspace, and where they are installed.
const FILES: &[(&str, &str)] = &[
    ("dist/systemd/millrace@.service", "usr/lib/systemd/system/millrace@.service"),
    ("dist/systemd/millrace-gateway@.service", "usr/lib/systemd/system/millrace-gateway@.service"),
    ("dist/grafana/millrace.json", "usr/share/millrace/grafana/millrace.json"),
    ("dist/prometheus/millrace.rules.yml", "usr/share/millrace/prometheus/millrace.rules.yml"),
    ("dist/debian/copyright", "usr/share/doc/millrace/copyright"),
    ("LICENSE-MIT", "usr/share/doc/millrace/LICENSE-MIT"),
    ("docs/example.rules", "usr/share/doc/millrace/examples/example.rules"),
    ("docs/millrace.toml", "usr/share/doc/millrace/examples/millrace.toml"),
];
/// What an operator may change; dpkg keeps the changes.
const CONFIGURATION: (&str, &str) = ("docs/millrace.toml", "etc/millrace/millrace.toml");
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Version of the workspace.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Packs relay and eBPF object, which are built, as this version. Gives the package's file.
pub(super) fn make(version: &str) -> Result<PathBuf> {
    let staging = paths::dist().join(format!("staging-{version}"));
    remove(&staging)?;
    let at = |path: &str| staging.join(path);

    install(&paths::bpf_object(), &at("usr/lib/millrace/gateway.bpf.o"), 0o644)?;
    let relay = at("usr/bin/relay");
    install(&paths::release("relay"), &relay, 0o755)?;
    process::capture(
        Command::new("strip")
            .args(["--strip-debug", "--enable-deterministic-archives"])
            .arg(&relay),
    )?;
    for (from, to) in FILES.iter().copied().chain([CONFIGURATION]) {
        install(&paths::root().join(from), &at(to), 0o644)?;
    }
    // Passwords may be in them.
    fs::set_permissions(at("etc/millrace"), fs::Permissions::from_mode(0o750))?;
    fs::set_permissions(at(CONFIGURATION.1), fs::Permissions::from_mode(0o640))?;
    documents(&at(DOC))?;
    generated(&staging)?;
    changelog(&at(DOC), version)?;
    write(&at(DOC).join("CRATES"), &crates()?, 0o644)?;
    control(&staging, version)?;

    let package = paths::dist().join(format!("{NAME}_{version}_{}.deb", architecture()?));
    process::capture(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group", "-Zxz"])
            .arg(&staging)
            .arg(&package),
    )?;
    remove(&staging)?;
    Ok(package)
}

/// The packages that a package depends on and recommends, without versions.
pub(super) fn needed(package: &Path) -> Result<Vec<String>> {
    let fields = ["Depends", "Recommends"];
    let format = fields.map(|field| format!("${{{field}}}, ")).concat();
    let mut query = Command::new("dpkg-deb");
    query.args(["--show", &format!("--showformat={format}")]).arg(package);
    let listed = process::capture(&mut query)?;
    let names = listed.split(',').filter_map(|one| one.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// Debian's name of this processor.
fn architecture() -> Result<String> {
    process::capture(Command::new("dpkg").arg("--print-architecture"))
}

/// The documents for operators.
fn documents(to: &Path) -> Result<()> {
    let from = paths::root().join("docs");
    for entry in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            install(&path, &to.join(path.file_name().unwrap_or_default()), 0o644)?;
        }
    }
    Ok(())
}

/// Man pages and completions, which the relay makes of its own command line.
fn generated(staging: &Path) -> Result<()> {
    let folder = staging.with_extension("generated");
    remove(&folder)?;
    process::capture(Command::new(paths::release("relay")).arg("generate").arg(&folder))?;
    let completions = folder.join("completions");
    for (from, to) in [
        ("relay.bash", "usr/share/bash-completion/completions/relay"),
        ("_relay", "usr/share/zsh/vendor-completions/_relay"),
        ("relay.fish", "usr/share/fish/vendor_completions.d/relay.fish"),
    ] {
        install(&completions.join(from), &staging.join(to), 0o644)?;
    }
    let pages = staging.join("usr/share/man/man8");
    for page in fs::read_dir(folder.join("man"))? {
        let page = page?.path();
        let to = pages.join(page.file_name().unwrap_or_default());
        install(&page, &to, 0o644)?;
        process::capture(Command::new("gzip").args(["-9n"]).arg(&to))?;
    }
    remove(&folder)
}

fn changelog(to: &Path, version: &str) -> Result<()> {
    let date = process::capture(Command::new("date").args(["--utc", "-R", "-d", "@0"]))?;
    let text = format!(
        "{NAME} ({version}) unstable; urgency=medium\n\n  * The history is in the repository.\n\n -- the authors of \
         Millrace <millrace@localhost>  {date}\n"
    );
    let file = to.join("changelog");
    write(&file, &text, 0o644)?;
    process::capture(Command::new("gzip").arg("-9n").arg(&file)).map(drop)
}

/// The crates in the relay, with their licences.
fn crates() -> Result<String> {
    let format = "{p} {l}";
    let listed = process::capture(build::cargo().args([
        "tree",
        "--package",
        "millrace-relay",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        format,
    ]))?;
    let own = paths::root().display().to_string();
    let mut lines: Vec<_> = listed
        .lines()
        .filter(|line| !line.contains(&own))
        .map(|line| line.trim_end_matches(" (*)").replace(" (proc-macro)", ""))
        .collect();
    lines.sort();
    lines.dedup();
    Ok(lines.join("\n") + "\n")
}

/// Everything that dpkg itself reads.
fn control(staging: &Path, version: &str) -> Result<()> {
    let folder = staging.join("DEBIAN");
    let kib = installed_kib(staging)?;
    let text = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {}\nMaintainer: the authors of Millrace \
         <millrace@localhost>\nInstalled-Size: {kib}\nDepends: {DEPENDS}, {}\nRecommends: {RECOMMENDS}\nSection: net\n\
         Priority: optional\nDescription: diverts long-lived connections at the gateway to Kafka\n \
         An XDP program takes client connections off the network path, and a relay on the\n same host moves their \
         messages to the Kafka partitions of their servers, and the\n servers' replies back.\n",
        architecture()?,
        libraries(staging)?,
    );
    write(&folder.join("control"), &text, 0o644)?;
    write(&folder.join("conffiles"), &format!("/{}\n", CONFIGURATION.1), 0o644)?;
    for script in SCRIPTS {
        install(&paths::root().join("dist/debian").join(script), &folder.join(script), 0o755)?;
    }
    Ok(())
}

/// The packages of the libraries that the relay is linked to.
fn libraries(staging: &Path) -> Result<String> {
    // It wants to be where a source package is.
    let source = staging.with_extension("source");
    remove(&source)?;
    write(
        &source.join("debian/control"),
        &format!("Source: {NAME}\n\nPackage: {NAME}\nArchitecture: any\n"),
        0o644,
    )?;
    let said = process::capture(
        Command::new("dpkg-shlibdeps")
            .arg("-O")
            .arg("-e")
            .arg(staging.join("usr/bin/relay"))
            .current_dir(&source),
    )?;
    remove(&source)?;
    let libraries = said.strip_prefix("shlibs:Depends=").unwrap_or_default().trim().to_owned();
    ensure!(libraries.contains("libc6"), "dpkg-shlibdeps finds no libraries: `{said}`");
    Ok(libraries)
}

fn installed_kib(folder: &Path) -> Result<u64> {
    let said = process::capture(Command::new("du").args(["-sk"]).arg(folder))?;
    said.split_whitespace().next().and_then(|kib| kib.parse().ok()).context("du says no size")
}

/// Copies a file, with the folders above it.
fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    place(to, &bytes, mode)
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    place(to, text.as_bytes(), mode)
}

fn place(to: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let placing = || format!("cannot write {}", to.display());
    let folder = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(placing)?;
    fs::write(to, bytes).with_context(placing)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(placing)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_there() {
        let missing = FILES
            .iter()
            .chain([&CONFIGURATION])
            .find(|(from, _)| !paths::root().join(from).is_file());
        assert_eq!(missing, None);
        for script in SCRIPTS {
            assert!(paths::root().join("dist/debian").join(script).is_file(), "{script}");
        }
    }
}
