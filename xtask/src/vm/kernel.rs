//! Debian's stock kernels. They are fetched from the archive and unpacked below `target/vm`, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use crate::{paths, process};

/// Debian's package that depends on a release's latest kernel for virtual machines.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The modules that the checks need, below the kernel's module folder. They depend on no others, and on
/// none that comes later.
const MODULES: [&str; 7] = [
    "kernel/drivers/net/veth.ko",
    "kernel/net/llc/llc.ko",
    "kernel/net/802/stp.ko",
    "kernel/net/bridge/bridge.ko",
    "kernel/net/core/pktgen.ko",
    "kernel/net/sched/sch_ingress.ko",
    "kernel/net/sched/cls_bpf.ko",
];

/// A kernel series, and where to find it in Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Series {
    /// `MAJOR.MINOR`.
    pub(super) name: &'static str,
    /// Suites of Debian's archive, in the order of the search.
    suites: &'static [&'static str],
    /// What Millrace must do under it.
    pub(super) expected: Expected,
    /// True if a test of all kernels fails when the archive does not offer this one.
    pub(super) required: bool,
}

/// What Millrace must do under a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Millrace works.
    Work,
    /// `load` refuses the kernel, and says what it lacks.
    Refusal,
}

const SERIES: [Series; 3] = [
    Series { name: "6.1", suites: &["bookworm"], expected: Expected::Work, required: true },
    Series {
        name: "6.12",
        suites: &["bookworm-backports", "trixie"],
        expected: Expected::Work,
        required: false,
    },
    Series { name: "5.10", suites: &["bullseye"], expected: Expected::Refusal, required: false },
];

/// Which kernels to test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// Debian 12's
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12's backport, or Debian 13's
    #[value(name = "6.12")]
    V6_12,
    /// Debian 11's, which is too old: `relay load` must refuse it and say why
    #[value(name = "5.10")]
    V5_10,
    /// All of them; if Debian's archive does not offer 6.12 or 5.10, that one is skipped, with a message
    #[value(name = "all")]
    All,
}

impl Choice {
    pub(super) fn series(self) -> &'static [Series] {
        match self {
            Self::V6_1 => &SERIES[..1],
            Self::V6_12 => &SERIES[1..2],
            Self::V5_10 => &SERIES[2..],
            Self::All => &SERIES,
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Its release, as in `uname -r`.
    pub(super) release: String,
    /// The file for QEMU's `-kernel`.
    pub(super) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The unpacked kernel of this series. Fetches it if there is none.
    pub(super) fn get(series: Series) -> Result<Self> {
        let folder = paths::vm().join(series.name);
        if let Some(kernel) = Self::unpacked(&folder)? {
            return Ok(kernel);
        }
        let half = paths::vm().join(format!("{}.{}", series.name, std::process::id()));
        fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
        let outcome = fetch(series, &half).and_then(|()| {
            let _ = fs::remove_dir_all(&folder);
            fs::rename(&half, &folder).with_context(|| format!("cannot make {}", folder.display()))
        });
        if outcome.is_err() {
            let _ = fs::remove_dir_all(&half);
        }
        outcome?;
        Self::unpacked(&folder)?.with_context(|| format!("no kernel in {}", folder.display()))
    }

    fn unpacked(folder: &Path) -> Result<Option<Self>> {
        let Ok(entries) = fs::read_dir(folder.join("boot")) else {
            return Ok(None);
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) else {
                continue;
            };
            return Ok(Some(Self {
                release: release.to_owned(),
                image: entry.path(),
                modules: folder.join("lib/modules").join(release),
            }));
        }
        Ok(None)
    }

    /// The modules in the order of insertion: names and contents.
    pub(super) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        MODULES
            .iter()
            .map(|module| {
                let file = self.modules.join(module);
                let name = module.rsplit('/').next().unwrap_or(module).to_owned();
                Ok((name, module_contents(&file)?))
            })
            .collect()
    }
}

/// Reads a module, which is compressed in the packages of newer kernels.
fn module_contents(file: &Path) -> Result<Vec<u8>> {
    if file.is_file() {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let packed = file.with_extension("ko.xz");
    ensure!(packed.is_file(), "there is neither {} nor its .xz", file.display());
    let output =
        Command::new("xz").arg("-dc").arg(&packed).output().context("cannot start `xz`")?;
    ensure!(output.status.success(), "`xz -dc {}` failed", packed.display());
    Ok(output.stdout)
}

/// Fetches a kernel's package and unpacks it. Uses the machine's own package sources if they have the
/// series, or else another suite of the same archive.
fn fetch(series: Series, folder: &Path) -> Result<()> {
    let mut sources = vec![Apt::own()];
    for suite in series.suites {
        sources.push(Apt::of_suite(suite)?);
    }
    for apt in &sources {
        let Some(package) = apt.kernel(series) else {
            continue;
        };
        process::say(format!("  kernel {}: package {package} from {}", series.name, apt.origin));
        let log = paths::setup_log(&format!("vm-{}", series.name));
        process::step(
            &format!("apt-get download {package}"),
            apt.get().args(["download", &package]).current_dir(folder),
            &log,
        )?;
        return unpack(folder);
    }
    bail!(
        "Debian's archive offers no kernel {} (asked: {})",
        series.name,
        sources.iter().map(|apt| apt.origin.as_str()).collect::<Vec<_>>().join(", ")
    );
}

/// Unpacks the only package in a folder into that folder, and removes the package.
fn unpack(folder: &Path) -> Result<()> {
    let package = fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download has left no package")?;
    process::check(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
    Ok(fs::remove_file(package)?)
}

/// apt, either with the machine's own sources, or with a single suite and separate state.
#[derive(Debug)]
struct Apt {
    origin: String,
    configuration: Option<PathBuf>,
}

impl Apt {
    fn own() -> Self {
        Self { origin: "this machine's package sources".to_owned(), configuration: None }
    }

    /// A suite of the archive that the machine uses. Everything is kept below `target/vm`; neither /etc/apt
    /// nor the machine's package lists are touched.
    fn of_suite(suite: &str) -> Result<Self> {
        let folder = paths::vm().join("apt").join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let sources = folder.join("suite.sources");
        fs::write(
            &sources,
            format!(
                "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n\
                 Signed-By: {KEYRING}\n",
                archive()?
            ),
        )?;
        let configuration = folder.join("apt.conf");
        // Other packages' hooks are meant for updates of the machine's own lists.
        fs::write(
            &configuration,
            format!(
                "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::State::lists \"{}\";\nDir::Cache \"{}\";\n\
                 #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n",
                sources.display(),
                folder.join("lists").display(),
                folder.join("cache").display()
            ),
        )?;
        let apt =
            Self { origin: format!("Debian's suite {suite}"), configuration: Some(configuration) };
        Ok(apt)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        if let Some(configuration) = &self.configuration {
            command.arg("-c").arg(configuration);
        }
        // apt's own user may have no access to files below target/.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    fn get(&self) -> Command {
        self.program("apt-get")
    }

    /// The package of the series' latest kernel.
    fn kernel(&self, series: Series) -> Option<String> {
        if self.configuration.is_some() {
            let log = paths::setup_log("vm-lists");
            let what = format!("package lists of {}", self.origin);
            if let Err(error) = process::step(&what, self.get().arg("update"), &log) {
                process::say(format!("  {error:#}"));
                return None;
            }
        }
        let text =
            process::capture(self.program("apt-cache").args(["depends", METAPACKAGE])).ok()?;
        image_of(&text, series.name)
    }
}

/// The package of the series' kernel image in the output of `apt-cache depends`.
fn image_of(depends: &str, series: &str) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(&prefix))
        .map(str::to_owned)
}

/// The machine's source of Debian's archive, which may be a mirror, and the only one within reach.
fn archive() -> Result<String> {
    let text = process::capture(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    archive_of(&text).context(
        "none of this machine's package sources is Debian's archive, or their lists were never fetched: \
         run `apt-get update`",
    )
}

fn archive_of(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| line.strip_prefix("Debian Debian ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_of_the_series_and_no_other() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.95+deb12-cloud-amd64\n";
        assert_eq!(
            image_of(text, "6.12").as_deref(),
            Some("linux-image-6.12.95+deb12-cloud-amd64")
        );
        assert_eq!(image_of(text, "6.1"), None);
    }

    #[test]
    fn the_archive_is_debians_own_and_not_that_of_security_updates() {
        let text = "Other Other https://a/\nDebian Debian-Security http://b/\n\
                    Debian Debian http://c/debian/\n";
        assert_eq!(archive_of(text).as_deref(), Some("http://c/debian/"));
        assert_eq!(archive_of("Ubuntu Ubuntu http://d/\n"), None);
    }

    #[test]
    fn all_is_every_series() {
        assert_eq!(Choice::All.series().len(), SERIES.len());
        assert_eq!(Choice::V6_1.series()[0].name, "6.1");
        assert_eq!(Choice::V6_12.series()[0].name, "6.12");
        assert_eq!(Choice::V5_10.series()[0].name, "5.10");
    }
}
