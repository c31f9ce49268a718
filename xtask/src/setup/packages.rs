//! Debian's packages: which are needed, how to tell that one is installed, and how to install them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Part;
use crate::{kafka::jars, paths, process};

/// A package, and a sign that what we need from it is present, wherever it comes from.
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
    /// A file below the architecture's folder in `/usr/lib`.
    Library(&'static str),
    Java,
    /// Needed only to fetch Kafka's jars.
    Maven,
}

/// Packages that start a service. We run these programs only by hand, with our own configuration.
const KEPT_STILL: [&str; 3] = ["rsyslog", "mosquitto", "prometheus"];

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
        for "reference for the parser of HTTP requests";
    Network: "curl" by Program("curl") for "a client of HTTP";
    Network: "wrk" by Program("wrk") for "many clients of HTTP";
    Network: "chromium" by Program("chromium")
        for "a headless browser; 90 MB, unpacked 350 MB";
    Network: "fonts-dejavu-core" by File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
        for "fonts for the browser";
    Network: "python3-websockets"
        by File("/usr/lib/python3/dist-packages/websockets/__init__.py")
        for "a client of WebSocket";
    Network: "node-ws" by File("/usr/share/nodejs/ws/index.js") for "a client of WebSocket";
    Network: "mosquitto-clients" by Program("mosquitto_rr") for "MQTT clients in tests";
    Network: "mosquitto" by Program("mosquitto") for "a broker that bridges topics, in tests";
    Network: "python3-paho-mqtt"
        by File("/usr/lib/python3/dist-packages/paho/mqtt/client.py")
        for "an MQTT client in tests";
    Network: "prometheus" by Program("prometheus")
        for "asks the queries of dashboard and alert rules; unpacked 98 MB";
    Network: "nodejs" by Program("node") for "clients in JavaScript in tests";
    Network: "npm" by Program("npm") for "fetches these clients";
    Kafka: "default-jre-headless" by Java for "Java 17 or later, for Kafka";
    Kafka: "maven" by Maven for "fetches Kafka's jars";
    Bench: "rsyslog" by Program("rsyslogd") for "comparison for the relay's benchmark";
    Vm: "qemu-system-x86" by Program("qemu-system-x86_64")
        for "virtual machines with other kernels";
    Vm: "busybox-static" by Program("busybox") for "the first process of such a machine";
    Vm: "xz-utils" by Program("xz") for "unpacks kernel modules";
    Vm: "libc-bin" by Program("ldd") for "lists the libraries of a program";
    Dist: "dpkg-dev" by Program("dpkg-shlibdeps") for "finds the libraries of a package";
    Dist: "binutils" by Program("strip") for "removes debug information from a package";
    Dist: "mmdebstrap" by Program("mmdebstrap") for "a minimal Debian for the package's test";
    Dist: "systemd-container" by Program("systemd-nspawn") for "boots that";
    Bench: "rsyslog-kafka" by Library("rsyslog/omkafka.so") for "rsyslog's output to Kafka";
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

/// The missing packages of these parts.
pub(crate) fn missing(parts: &[Part]) -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(move |package| parts.contains(&package.part) && package.is_missing())
}

/// Installs packages by name, without what Debian only recommends.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    let list = names.join(" ");
    if process::find_program("apt-get").is_none() {
        bail!("this is not Debian: install the equivalents of these packages yourself: {list}");
    }
    if !process::is_root() {
        bail!(
            "installing packages needs root. Run this, then repeat the command:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    for name in KEPT_STILL.iter().filter(|name| names.contains(name)) {
        mask(name)?;
    }
    // An unrelated repository may fail. The next step shows whether ours is available.
    if let Err(error) =
        process::step("apt-get update", apt_get().arg("update"), &paths::setup_log("apt-update"))
    {
        process::say(format!("  continuing with the present package lists: {error:#}"));
    }
    process::step(
        "apt-get install",
        // Never removes a package of the operator's.
        apt_get().args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(names),
        &paths::setup_log("apt-install"),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Keeps a newly installed program from running as a service of the machine.
fn mask(name: &str) -> Result<()> {
    let unit = PathBuf::from(format!("/etc/systemd/system/{name}.service"));
    if unit.symlink_metadata().is_ok() {
        return Ok(());
    }
    process::say(format!(
        "  {name} is kept from starting as a service (masked; `systemctl unmask {name}` undoes it)"
    ));
    fs::create_dir_all("/etc/systemd/system")
        .and_then(|()| std::os::unix::fs::symlink("/dev/null", &unit))
        .with_context(|| format!("cannot make {}", unit.display()))
}

fn library_exists(file: &str) -> bool {
    fs::read_dir("/usr/lib").into_iter().flatten().flatten().any(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.contains("-linux-gnu"))
            && entry.path().join(file).exists()
    })
}

/// True if a package of this name is installed, according to dpkg.
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
