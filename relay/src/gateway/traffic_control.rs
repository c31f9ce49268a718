//! The programs in the traffic control of the two ends of the veth, and gone with them: `answer`
//! behind `egress`, which takes what that leaves to the host's stack past the firewall, and `untag`
//! at the relay's end, which takes off tags that generic XDP cannot see.

use std::path::Path;

use aya::Ebpf;
use aya::programs::SchedClassifier;

use super::error::{GatewayError, causes};
use super::host::{Report, command, in_namespace};
use super::kernel;
use super::links::program_pin;
use super::object::{ObjectFile, verified};
use super::topology::{self, RELAY_DEVICE};
use crate::config::Config;

/// Their names in the object.
pub(super) const ANSWER: &str = "answer";
pub(super) const UNTAG: &str = "untag";

/// Has them verified.
pub(super) fn load(ebpf: &mut Ebpf, object: &ObjectFile) -> Result<(), GatewayError> {
    [ANSWER, UNTAG].into_iter().try_for_each(|name| {
        let program = classifier(ebpf, name).ok_or_else(|| GatewayError::BadObject {
            path: object.path.clone(),
            problem: format!("it has no classifier {name}"),
        })?;
        verified(|| program.load()).map_err(|error| GatewayError::Refused {
            what: format!("program `{name}`"),
            path: object.path.clone(),
            reason: causes(&error) + &kernel::hint(),
        })
    })
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Option<&'a mut SchedClassifier> {
    ebpf.program_mut(name)?.try_into().ok()
}

/// Attaches `answer`.
pub(super) fn attach_answer(config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
    let device = topology::gateway_device(config);
    run(&words(&format!("qdisc add dev {device} clsact")), report)?;
    run(&filter(&device, &config.pin_directory().join(program_pin(ANSWER))), report)
}

/// Attaches `untag`, which costs a few nanoseconds a packet: only where a device runs `ingress` in
/// generic mode.
pub(super) fn attach_untag(config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
    if has_untag(config)? {
        return Ok(());
    }
    let place = words(&format!("qdisc add dev {RELAY_DEVICE} clsact"));
    let filter = filter(RELAY_DEVICE, &config.pin_directory().join(program_pin(UNTAG)));
    for line in [place, filter] {
        run_inside(config, &line, report)?;
    }
    Ok(())
}

/// Puts other versions of both in the place of those that are attached; `pin` says where they are.
pub(super) fn replace(
    config: &Config,
    pin: impl Fn(&str) -> std::path::PathBuf,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    run(&filter(&topology::gateway_device(config), &pin(ANSWER)), report)?;
    if has_untag(config)? {
        run_inside(config, &filter(RELAY_DEVICE, &pin(UNTAG)), report)?;
    }
    Ok(())
}

fn has_untag(config: &Config) -> Result<bool, GatewayError> {
    let show = words(&format!("filter show dev {RELAY_DEVICE} ingress"));
    let present = in_namespace(&config.namespace(), || command(&borrowed(&show)))??;
    Ok(!present.trim().is_empty())
}

/// What attaches a pinned program, in the place of any other: the kernel changes one pointer.
fn filter(device: &str, pin: &Path) -> Vec<String> {
    words(&format!(
        "filter replace dev {device} ingress protocol all pref 1 handle 1 bpf direct-action \
         object-pinned {}",
        pin.display()
    ))
}

fn words(arguments: &str) -> Vec<String> {
    ["tc"].into_iter().chain(arguments.split(' ')).map(str::to_owned).collect()
}

fn borrowed(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

fn run(line: &[String], report: Report<'_>) -> Result<(), GatewayError> {
    report(&line.join(" "));
    command(&borrowed(line)).map(drop).map_err(explained)
}

fn run_inside(config: &Config, line: &[String], report: Report<'_>) -> Result<(), GatewayError> {
    report(&format!("[{}] {}", config.gateway.instance, line.join(" ")));
    in_namespace(&config.namespace(), || command(&borrowed(line)))?.map(drop).map_err(explained)
}

fn explained(error: GatewayError) -> GatewayError {
    match error {
        GatewayError::Command { command, output } => {
            GatewayError::TrafficControl { command, output }
        }
        other => other,
    }
}
