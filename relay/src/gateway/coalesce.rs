//! `gateway.coalesce_us`: how long the relay's end of the veth collects packets before it looks at them.
//!
//! The kernel's two settings of that (Documentation/networking/napi.rst) are in sysfs, which shows the devices
//! of the network namespace in which it was mounted. So a sysfs of the relay namespace is mounted where nobody
//! sees it: it is attached to no directory, and goes with its descriptor.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::config::Config;

use super::error::GatewayError;
use super::host::{Report, in_namespace};
use super::topology::RELAY_DEVICE;

/// Nanoseconds until the device is looked at again.
const TIMEOUT: &str = "gro_flush_timeout";
/// So often that is repeated where nothing came, before the next packet is looked at at once. Without it, the
/// time alone holds packets back and collects none.
const DEFERRALS: &str = "napi_defer_hard_irqs";

/// Sets it, unless it is so already.
pub(super) fn apply(config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
    let wanted = config.gateway.coalesce_us;
    if in_force(config)? == wanted {
        return Ok(());
    }
    set(config, wanted, report)
}

pub(super) fn set(
    config: &Config,
    microseconds: u32,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let nanoseconds = u64::from(microseconds) * 1000;
    let deferrals = u64::from(microseconds > 0);
    let settings = [(TIMEOUT, nanoseconds), (DEFERRALS, deferrals)];
    for (name, value) in settings {
        report(&format!(
            "[{}] echo {value} > /sys/class/net/{RELAY_DEVICE}/{name}",
            config.gateway.instance
        ));
    }
    let work = || {
        let sysfs = sysfs()?;
        settings.iter().try_for_each(|(name, value)| {
            open(&sysfs, name, OFlags::WRONLY)?.write_all(value.to_string().as_bytes())
        })
    };
    in_namespace(&config.namespace(), work)?
        .map_err(GatewayError::io(format!("set how {RELAY_DEVICE} collects packets")))
}

/// What it is now. Microseconds; 0: nothing is collected.
pub(super) fn in_force(config: &Config) -> Result<u32, GatewayError> {
    let work = || {
        let sysfs = sysfs()?;
        let read = |name| -> io::Result<u64> {
            let mut text = String::new();
            open(&sysfs, name, OFlags::RDONLY)?.read_to_string(&mut text)?;
            text.trim().parse().map_err(io::Error::other)
        };
        let microseconds = if read(DEFERRALS)? == 0 { 0 } else { read(TIMEOUT)? / 1000 };
        Ok(u32::try_from(microseconds).unwrap_or(u32::MAX))
    };
    in_namespace(&config.namespace(), work)?
        .map_err(GatewayError::io(format!("see how {RELAY_DEVICE} collects packets")))
}

/// A sysfs of the calling thread's network namespace.
fn sysfs() -> io::Result<OwnedFd> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// A setting of the relay's device.
fn open(sysfs: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let path = format!("class/net/{RELAY_DEVICE}/{name}");
    Ok(openat(sysfs, path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}
