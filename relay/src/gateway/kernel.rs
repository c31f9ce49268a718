//! What Millrace needs of the kernel, since when the kernel has it, and what the one at hand lacks.
//!
//! Asked before anything is changed. Distributions carry features into older kernels and leave others
//! out of newer ones, so what can be asked for is asked for; the version decides only about the rest,
//! and then only explains a refusal.

use std::fmt;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};

use super::error::GatewayError;
use super::host::Report;
use crate::uring;

/// A version of Linux, as features are dated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u8, pub u8);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// That of the running kernel; `None` if its release does not begin with one.
    pub fn running() -> Option<Self> {
        Self::of_release(&release())
    }

    /// The version in a release such as `6.1.0-56-cloud-amd64`.
    fn of_release(release: &str) -> Option<Self> {
        let mut numbers = release.split(|character: char| !character.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// Something that Millrace needs.
#[derive(Debug)]
struct Feature {
    /// As in docs/design/gateway.md, where the source of `since` stands.
    name: &'static str,
    since: Version,
    probe: Probe,
}

/// How the kernel is asked.
#[derive(Debug)]
enum Probe {
    Map(MapType),
    /// A helper, in XDP programs.
    Helper(BpfHelper),
    /// A helper, in programs of the traffic control.
    TcHelper(BpfHelper),
    Ring,
    /// Not at all: it shows only when a program is loaded or attached.
    None,
}

const FEATURES: &[Feature] = &[
    feature(
        "moving the start of a frame in XDP",
        Version(4, 10),
        Probe::Helper(BpfHelper::BPF_FUNC_xdp_adjust_head),
    ),
    feature("LRU hash map", Version(4, 10), Probe::Map(MapType::LruHash)),
    feature("LPM trie map", Version(4, 11), Probe::Map(MapType::LpmTrie)),
    feature("device map", Version(4, 14), Probe::Map(MapType::DevMap)),
    feature("route look-up in XDP", Version(4, 18), Probe::Helper(BpfHelper::BPF_FUNC_fib_lookup)),
    feature(
        "UDP socket look-up in XDP",
        Version(4, 20),
        Probe::Helper(BpfHelper::BPF_FUNC_sk_lookup_udp),
    ),
    feature(
        "TCP socket look-up in XDP",
        Version(5, 2),
        Probe::Helper(BpfHelper::BPF_FUNC_skc_lookup_tcp),
    ),
    feature(
        "SYN cookie check in XDP",
        Version(5, 2),
        Probe::Helper(BpfHelper::BPF_FUNC_tcp_check_syncookie),
    ),
    feature("redirect with a fallback", Version(5, 3), Probe::None),
    feature("device hash map", Version(5, 4), Probe::Map(MapType::DevMapHash)),
    feature("ring buffer map", Version(5, 8), Probe::Map(MapType::RingBuf)),
    feature("XDP link", Version(5, 9), Probe::None),
    feature(
        "redirect to a neighbour in traffic control",
        Version(5, 10),
        Probe::TcHelper(BpfHelper::BPF_FUNC_redirect_neigh),
    ),
    feature("XDP program for frames in several buffers", Version(5, 18), Probe::None),
    feature("io_uring with deferred task run", Version(6, 1), Probe::Ring),
];

const fn feature(name: &'static str, since: Version, probe: Probe) -> Feature {
    Feature { name, since, probe }
}

/// The oldest version that has everything.
pub fn minimum() -> Version {
    FEATURES.iter().map(|feature| feature.since).max().expect("there are features")
}

/// Refuses a kernel that lacks something, and says what.
pub(super) fn check(report: Report<'_>) -> Result<(), GatewayError> {
    judge(&release(), |feature| ask(&feature.probe, report))
}

/// For a refusal by the kernel: what it lacks by its version, or nothing.
pub(super) fn hint() -> String {
    hint_for(&release())
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The kernel's answer; `None` if it was not asked, or did not give one.
fn ask(probe: &Probe, report: Report<'_>) -> Option<bool> {
    let answer = match probe {
        Probe::Map(kind) => is_map_supported(*kind).map_err(|error| error.to_string()),
        Probe::Helper(helper) => {
            is_helper_supported(ProgramType::Xdp, *helper).map_err(|error| error.to_string())
        }
        Probe::TcHelper(helper) => is_helper_supported(ProgramType::SchedClassifier, *helper)
            .map_err(|error| error.to_string()),
        Probe::Ring => match uring::probe() {
            Ok(()) => Ok(true),
            // Forbidden here and now is not lacking: the relay may run under other rules.
            Err(error)
                if !uring::is_forbidden(&error)
                    && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) =>
            {
                Ok(false)
            }
            Err(error) => Err(format!("io_uring: {error}: {}", uring::cause(&error))),
        },
        Probe::None => return None,
    };
    answer.map_err(|error| report(&format!("the kernel did not answer the probe: {error}"))).ok()
}

fn judge(release: &str, mut ask: impl FnMut(&Feature) -> Option<bool>) -> Result<(), GatewayError> {
    let mut lacking: Vec<&Feature> =
        FEATURES.iter().filter(|feature| ask(feature) == Some(false)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let unasked = too_old_for(release).filter(|feature| matches!(feature.probe, Probe::None));
    lacking.extend(unasked);
    lacking.sort_by_key(|feature| feature.since);
    let old = Version::of_release(release).is_none_or(|version| version < minimum());
    Err(GatewayError::Kernel {
        release: release.to_owned(),
        lacking: list(&lacking),
        remedy: if old {
            format!("use Linux {} or newer", minimum())
        } else {
            "the kernel is new enough, but was built without it".to_owned()
        },
    })
}

fn hint_for(release: &str) -> String {
    let lacking: Vec<_> = too_old_for(release).collect();
    if lacking.is_empty() {
        return String::new();
    }
    format!(
        "; Linux {release} lacks this, unless its distribution has added it: {}; use Linux {} or \
         newer",
        list(&lacking),
        minimum()
    )
}

fn too_old_for(release: &str) -> impl Iterator<Item = &'static Feature> {
    let version = Version::of_release(release);
    FEATURES.iter().filter(move |feature| version.is_some_and(|version| version < feature.since))
}

fn list(features: &[&Feature]) -> String {
    features
        .iter()
        .map(|feature| format!("{} (Linux {})", feature.name, feature.since))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as an unpatched kernel of this version would.
    fn plain(version: Version) -> impl FnMut(&Feature) -> Option<bool> {
        move |feature| match feature.probe {
            Probe::None => None,
            _ => Some(version >= feature.since),
        }
    }

    fn refused(release: &str, version: Version) -> String {
        judge(release, plain(version)).unwrap_err().to_string()
    }

    #[test]
    fn an_older_kernel_is_told_what_it_lacks_and_since_when_there_is_such_a_thing() {
        assert_eq!(
            refused("5.10.0-32-cloud-amd64", Version(5, 10)),
            "Linux 5.10.0-32-cloud-amd64 lacks what Millrace needs: XDP program for frames in \
             several buffers (Linux 5.18), io_uring with deferred task run (Linux 6.1); use Linux \
             6.1 or newer"
        );
        let ancient = refused("4.9.337", Version(4, 9));
        for feature in FEATURES {
            let dated = format!("{} (Linux {})", feature.name, feature.since);
            assert!(ancient.contains(&dated), "{ancient} does not name {dated}");
        }
    }

    #[test]
    fn what_the_kernel_answers_counts_more_than_its_version() {
        // A distribution's 5.14 with everything of a newer kernel carried into it.
        judge("5.14.0-503.el9.x86_64", plain(Version(6, 1))).unwrap();
        let bare = judge("6.12.0", |feature| Some(!matches!(feature.probe, Probe::Ring)));
        let bare = bare.unwrap_err().to_string();
        assert!(bare.ends_with("the kernel is new enough, but was built without it"), "{bare}");
        assert!(bare.contains("io_uring") && !bare.contains("LPM"), "{bare}");
        // Who does not answer is not accused.
        judge("6.1.0", |_| None).unwrap();
    }

    #[test]
    fn a_refusal_is_explained_by_the_version() {
        assert_eq!(hint_for("6.1.0-56-cloud-amd64"), "");
        assert_eq!(hint_for("a release without a version"), "");
        let hint = hint_for("5.15.0-91-generic");
        assert!(hint.contains("several buffers (Linux 5.18)"), "{hint}");
        assert!(!hint.contains("XDP link"), "{hint}");
    }

    #[test]
    fn releases_have_a_version() {
        assert_eq!(Version::of_release("6.12.95+deb12-cloud-amd64"), Some(Version(6, 12)));
        assert_eq!(Version::of_release("6.1-rc1"), Some(Version(6, 1)));
        assert_eq!(Version::of_release("linux"), None);
        assert!(Version(6, 1) < Version(6, 12) && Version(5, 18) < Version(6, 1));
    }

    #[test]
    fn the_documents_date_every_feature_alike() {
        let document = include_str!("../../../docs/design/gateway.md");
        for feature in FEATURES {
            let row = format!("| {} | {} |", feature.name, feature.since);
            assert!(document.contains(&row), "docs/design/gateway.md has no row `{row}`");
        }
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&format!("Linux {} or later", minimum())));
    }

    #[test]
    fn this_kernel_is_asked() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED this_kernel_is_asked: needs root (BPF)");
            return;
        }
        check(&mut |unanswered| panic!("{unanswered}")).unwrap();
    }
}
