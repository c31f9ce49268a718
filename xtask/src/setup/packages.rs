//! Debian's packages: which we need, how we know that one is there, and how they are installed.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::Part;
use crate::{kafka::jars, paths, process};

/// A package, and the sign by which what we want of it is known to be there, wherever it is from.
#[derive(Debug)]
pub(crate) struct Package {
    /// Debian's name.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
    part: Part,
    sign: Sign,
}

#[derive(Debug)]
enum Sign {
    Program(&'static str),
    File(&'static str),
    /// A file below the folder of the machine's architecture in `/usr/lib`.
    Library(&'static str),
    Java,
    /// Needed only to fetch Kafka's jars.
    Maven,
}

macro_rules! packages {
    ($($part:ident: $name:literal by $sign:ident $(($of:literal))? for $purpose:literal;)*) => {
        &[$(Package {
            name: $name,
            purpose: $purpose,
            part: Part::$part,
            sign: Sign::$sign $(($of))?,
        }),*]
    };
}

const PACKAGES: &[Package] = packages! {
    Build: "gcc" by Program("cc") for "C compiler, for librdkafka";
    Build: "g++" by Program("c++") for "C++ compiler, for librdkafka";
    Build: "libc6-dev" by File("/usr/include/stdio.h") for "C headers";
    Build: "make" by Program("make") for "librdkafka's build";
    Build: "zlib1g-dev" by File("/usr/include/zlib.h") for "compression in librdkafka";
    Build: "libssl-dev" by File("/usr/include/openssl/ssl.h") for "TLS and SCRAM in librdkafka";
    Build: "pkg-config" by Program("pkg-config") for "finds OpenSSL";
    Network: "iproute2" by Program("ip") for "namespaces, veth, routes";
    Network: "ethtool" by Program("ethtool") for "checksum offload of test devices";
    Network: "nftables" by Program("nft") for "packet counts in tests, and TPROXY in benchmarks";
    Network: "tcpdump" by Program("tcpdump") for "packet capture in tests";
    Network: "netcat-openbsd" by Program("nc") for "typing into the demo by hand";
    Network: "kcat" by Program("kcat") for "reading topics by hand";
    Network: "procps" by Program("sysctl") for "settings of test namespaces";
    Network: "util-linux" by Program("nsenter") for "programs in namespaces";
    Network: "python3" by File("/usr/bin/python3") for "the example server in Python";
    Network: "python3-confluent-kafka"
        by File("/usr/lib/python3/dist-packages/confluent_kafka/__init__.py")
        for "the example server in Python";
    Network: "python3-h11" by File("/usr/lib/python3/dist-packages/h11/__init__.py")
        for "what the reading of HTTP requests is compared with";
    Network: "curl" by Program("curl") for "a client of HTTP";
    Network: "wrk" by Program("wrk") for "many clients of HTTP";
    Network: "chromium" by Program("chromium")
        for "a browser, without a screen; 90 MB, unpacked 350 MB";
    Network: "fonts-dejavu-core" by File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
        for "what the browser writes with";
    Network: "python3-websockets"
        by File("/usr/lib/python3/dist-packages/websockets/__init__.py")
        for "a client of WebSocket";
    Network: "node-ws" by File("/usr/share/nodejs/ws/index.js") for "a client of WebSocket";
    Network: "mosquitto-clients" by Program("mosquitto_rr") for "MQTT clients in tests";
    Network: "python3-paho-mqtt"
        by File("/usr/lib/python3/dist-packages/paho/mqtt/client.py")
        for "an MQTT client in tests";
    Network: "nodejs" by Program("node") for "clients in JavaScript in tests";
    Network: "npm" by Program("npm") for "fetches those";
    Kafka: "default-jre-headless" by Java for "Java 17 or later, for Kafka";
    Kafka: "maven" by Maven for "fetches Kafka's jars";
    Bench: "rsyslog" by Program("rsyslogd") for "what the relay is measured against";
    Vm: "qemu-system-x86" by Program("qemu-system-x86_64")
        for "machines with other kernels";
    Vm: "busybox-static" by Program("busybox") for "the first process of such a machine";
    Vm: "xz-utils" by Program("xz") for "unpacks kernel modules";
    Vm: "libc-bin" by Program("ldd") for "which libraries a program needs";
    Bench: "rsyslog-kafka" by Library("rsyslog/omkafka.so") for "rsyslog's way to Kafka";
};

impl Package {
    fn is_missing(&self) -> bool {
        match self.sign {
            Sign::Program(name) => process::find_program(name).is_none(),
            Sign::File(path) => !Path::new(path).exists(),
            Sign::Library(file) => !library_exists(file),
            Sign::Java => !jars::java_is_recent(),
            Sign::Maven => {
                !jars::present(&paths::kafka_jars(jars::VERSION), jars::VERSION)
                    && process::find_program("mvn").is_none()
            }
        }
    }
}

/// What is missing of these parts.
pub(crate) fn missing(parts: &[Part]) -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(move |package| parts.contains(&package.part) && package.is_missing())
}

/// Installs packages by name, without what Debian only recommends.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    let list = names.join(" ");
    if process::find_program("apt-get").is_none() {
        bail!("this is not a Debian: install the equivalents of these yourself: {list}");
    }
    if !process::is_root() {
        bail!(
            "installing packages needs root. Run this, then repeat the command:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    if names.contains(&"rsyslog") {
        mask_rsyslog()?;
    }
    // A repository that has nothing to do with us may fail; whether ours is there the next step
    // shows.
    if let Err(error) =
        process::step("apt-get update", apt_get().arg("update"), &paths::setup_log("apt-update"))
    {
        process::say(format!("  going on with the lists at hand: {error:#}"));
    }
    process::step(
        "apt-get install",
        // Nothing of the operator's is thrown out to make room for ours.
        apt_get().args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(names),
        &paths::setup_log("apt-install"),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Keeps a newly installed rsyslog from running as the machine's log service: we only start it by
/// hand, with a configuration of our own.
fn mask_rsyslog() -> Result<()> {
    let unit = Path::new("/etc/systemd/system/rsyslog.service");
    if unit.symlink_metadata().is_ok() {
        return Ok(());
    }
    process::say(
        "  rsyslog is kept from starting as a service (masked; `systemctl unmask rsyslog` undoes \
         it)",
    );
    fs::create_dir_all("/etc/systemd/system")
        .and_then(|()| std::os::unix::fs::symlink("/dev/null", unit))
        .with_context(|| format!("cannot make {}", unit.display()))
}

fn library_exists(file: &str) -> bool {
    fs::read_dir("/usr/lib").into_iter().flatten().flatten().any(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.contains("-linux-gnu"))
            && entry.path().join(file).exists()
    })
}

/// Whether a package of this name is installed, by dpkg's own record.
pub(crate) fn installed(name: &str) -> bool {
    fs::read_dir("/var/lib/dpkg/info").into_iter().flatten().flatten().any(|entry| {
        entry.path().extension() == Some(OsStr::new("list"))
            && entry
                .path()
                .file_stem()
                .and_then(OsStr::to_str)
                .is_some_and(|stem| stem.split(':').next() == Some(name))
    })
}
