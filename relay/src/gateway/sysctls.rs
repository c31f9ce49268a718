//! The operator's settings of the relay namespace (`gateway.sysctls`): tried out before anything is changed,
//! put into force by `load` and `load --replace`, and compared by `status`.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use nix::sched::{CloneFlags, unshare};
use serde::Serialize;

use crate::config::{Config, Sysctls};
use crate::gateway::finding::{Finding, Severity};

use super::error::GatewayError;
use super::host::{self, Report, in_namespace};
use super::known::{SysctlRefusal, SysctlTrial};
use super::state::{self, Setting, Settings};

/// A setting of the relay namespace, for `status`.
#[derive(Debug, Serialize)]
pub struct SysctlStatus {
    /// As sysctl(8) names it.
    pub name: String,
    /// What it is now; null if the kernel has no such setting any more.
    pub now: Option<String>,
    /// What the configuration says, if that is not in force; empty if it says nothing.
    pub configured: Option<String>,
}

/// Tries settings in a network namespace that is made for it, and gone afterwards.
pub(super) fn try_out(sysctls: &Sysctls) -> Result<SysctlTrial, GatewayError> {
    if sysctls.is_empty() {
        return Ok(SysctlTrial::default());
    }
    // Whether the whole host has it is seen from here.
    let here: Vec<_> =
        sysctls.iter().map(|(name, value)| (name, value, host::has_sysctl(&path(name)))).collect();
    let attempt = move || {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {}
            Err(nix::errno::Errno::EPERM) => return Ok(SysctlTrial::Untried),
            Err(error) => {
                let failed = GatewayError::io("make a network namespace to try gateway.sysctls in");
                return Err(failed(error.into()));
            }
        }
        let refused = |(name, value, is_here): (&str, &str, bool)| {
            let why = refusal(name, value, is_here)?;
            Some(SysctlRefusal { name: name.to_owned(), why })
        };
        Ok(SysctlTrial::Refused(here.into_iter().filter_map(refused).collect()))
    };
    std::thread::scope(|scope| match scope.spawn(attempt).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Why a network namespace, the calling thread's, cannot have a setting.
fn refusal(name: &str, value: &str, is_on_host: bool) -> Option<String> {
    const HOSTS: &str =
        "it is the whole host's, and no network namespace's: set it there, with sysctl(8)";
    let key = path(name);
    if !host::has_sysctl(&key) {
        return Some(if is_on_host {
            HOSTS.to_owned()
        } else {
            "a network namespace has no such setting; it is misspelt, or of another kernel, or of a module \
             that is not loaded"
                .to_owned()
        });
    }
    // What a namespace shares with the others it may not write (Linux 5.12, commit 31c4d2f160eb).
    match host::write_sysctl(&key, value) {
        Ok(()) => match host::sysctl(&key) {
            Ok(_) => None,
            Err(_) => Some("it cannot be read back, so it is an order and no setting".to_owned()),
        },
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(HOSTS.to_owned()),
        Err(error) => Some(format!("the kernel refuses the value `{value}`: {error}")),
    }
}

/// What a refusal means for a load.
pub(super) fn finding(refusal: &SysctlRefusal) -> Finding {
    let SysctlRefusal { name, why } = refusal;
    Finding {
        severity: Severity::Refuses,
        subject: "host".to_owned(),
        code: "sysctl",
        what: format!("gateway.sysctls: `{name}` cannot be set: {why}"),
        remedy: None,
    }
}

/// Refuses what a network namespace cannot have.
pub(super) fn check(config: &Config) -> Result<(), GatewayError> {
    match try_out(&config.gateway.sysctls)? {
        SysctlTrial::Refused(refused) if !refused.is_empty() => {
            Err(GatewayError::Unfit(refused.iter().map(finding).collect()))
        }
        // Writing them will tell.
        SysctlTrial::Refused(_) | SysctlTrial::Untried => Ok(()),
    }
}

/// Puts the configured settings into force in the relay namespace, in place of those of `former`; those that
/// are no longer configured become again what they were.
pub(super) fn apply<'a>(
    config: &'a Config,
    former: Settings,
    report: Report<'_>,
) -> Result<Applied<'a>, GatewayError> {
    let wanted = &config.gateway.sysctls;
    let mut settings = former.clone();
    let mut values = BTreeMap::new();
    for name in former.keys().map(String::as_str).chain(wanted.iter().map(|(name, _)| name)) {
        let now = present(config, name)?;
        if let Some(value) = wanted.get(name) {
            let before = former.get(name).map_or_else(|| now.clone(), |one| one.before.clone());
            let setting = Setting { before, wanted: value.to_owned(), made: String::new() };
            settings.insert(name.to_owned(), setting);
        }
        values.insert(name.to_owned(), now);
    }
    let applied = Applied { config, former, values };
    // Whoever comes after a process that was killed here knows what was before.
    let result = state::draft_sysctls(config, &settings)
        .and_then(|draft| draft.keep())
        .and_then(|()| enforce(config, settings, report));
    match result {
        Ok(()) => Ok(applied),
        Err(error) => {
            applied.undo(report)?;
            Err(error)
        }
    }
}

/// Writes the settings, and what they were to those that are no longer wanted.
fn enforce(
    config: &Config,
    mut settings: Settings,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let is_wanted = |name: &str| config.gateway.sysctls.get(name).is_some();
    for (name, Setting { before, .. }) in settings.iter().filter(|(name, _)| !is_wanted(name)) {
        write(config, name, before, report)?;
    }
    settings.retain(|name, _| is_wanted(name));
    for (name, setting) in &mut settings {
        write(config, name, &setting.wanted, report)?;
        setting.made = present(config, name)?;
        if !is_same(&setting.made, &setting.wanted) {
            let made = words(&setting.made);
            report(&format!("[{}] {name} is {made} now", config.gateway.instance));
        }
    }
    state::draft_sysctls(config, &settings)?.keep()
}

/// What was in force before.
pub(super) struct Applied<'a> {
    config: &'a Config,
    former: Settings,
    values: BTreeMap<String, String>,
}

impl Applied<'_> {
    /// Puts it into force again.
    pub(super) fn undo(self, report: Report<'_>) -> Result<(), GatewayError> {
        for (name, value) in &self.values {
            write(self.config, name, value, report)?;
        }
        state::draft_sysctls(self.config, &self.former)?.keep()
    }
}

/// Compares what is in force with the configuration.
pub(super) fn status(config: &Config) -> Result<Vec<SysctlStatus>, GatewayError> {
    let (in_force, wanted) = (state::read_sysctls(config)?, &config.gateway.sysctls);
    let new = wanted.iter().map(|(name, _)| name).filter(|name| !in_force.contains_key(*name));
    in_force
        .keys()
        .map(String::as_str)
        .chain(new)
        .map(|name| {
            let now = read(config, name)?;
            let configured = wanted.get(name).unwrap_or_default();
            let is_right = in_force.get(name).is_some_and(|setting| {
                setting.wanted == configured
                    && now.as_ref().is_some_and(|now| is_same(now, &setting.made))
            });
            Ok(SysctlStatus {
                name: name.to_owned(),
                now: now.map(|now| words(&now)),
                configured: (!is_right).then(|| configured.to_owned()),
            })
        })
        .collect()
}

/// A setting of the relay namespace, which must have it.
fn present(config: &Config, name: &str) -> Result<String, GatewayError> {
    read(config, name)?.ok_or_else(|| {
        let what = format!("read the sysctl {name} of the relay namespace");
        GatewayError::io(what)(ErrorKind::NotFound.into())
    })
}

/// Reads a setting of the relay namespace; `None` if there is none such.
fn read(config: &Config, name: &str) -> Result<Option<String>, GatewayError> {
    in_namespace(&config.namespace(), || host::sysctl(&path(name)))?
}

fn write(config: &Config, name: &str, value: &str, report: Report<'_>) -> Result<(), GatewayError> {
    let value = words(value);
    report(&format!("[{}] sysctl -w {name}=\"{value}\"", config.gateway.instance));
    in_namespace(&config.namespace(), || host::set_sysctl(&path(name), &value))?
}

/// As `/proc/sys` has it. No name has a slash or a device's dot.
fn path(name: &str) -> String {
    name.replace('.', "/")
}

/// The kernel separates with tabs what was written with spaces.
fn words(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Privileged: it makes a network namespace. Elsewhere there is nothing to try.
    #[test]
    fn a_namespace_of_its_own_tells_what_it_can_have() {
        let refused =
            |name: &str, value: &str| match try_out(&Sysctls::new([(name, value)])).unwrap() {
                SysctlTrial::Untried => None,
                SysctlTrial::Refused(refused) => {
                    Some(refused.into_iter().next().map(|refusal| refusal.why).unwrap_or_default())
                }
            };
        let Some(fine) = refused("net.ipv4.tcp_rmem", "4096 16384 6291456") else {
            assert!(!rustix::process::geteuid().is_root(), "root was refused");
            return;
        };
        assert_eq!(fine, "");
        let told = |name: &str, value: &str| refused(name, value).expect("it was allowed just now");
        assert!(told("net.ipv4.tcp_remm", "1").contains("misspelt"));
        assert!(told("net.ipv4.tcp_rmem", "much").contains("refuses the value `much`"));
        // Of the whole host, whichever namespace this runs in.
        let hosts = told("net.ipv4.tcp_mem", "1 2 3");
        assert!(hosts.contains("whole host's") || hosts.contains("has no such setting"), "{hosts}");
        assert!(told("net.ipv4.route.flush", "1").contains("cannot be read back"));
    }

    #[test]
    fn tabs_and_spaces_are_the_same() {
        assert!(is_same("4096\t16384\t6291456", "4096 16384  6291456"));
        assert!(!is_same("1 2", "12"));
        assert_eq!(words("4096\t16384\n"), "4096 16384");
    }
}
