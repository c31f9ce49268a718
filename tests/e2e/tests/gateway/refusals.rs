//! What stands in a gateway's way is refused with words that say what to do.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::EbpfLoader;
use aya::maps::{Array, Map, MapData};
use aya::programs::Xdp;
use aya::programs::links::LinkType;
use aya::programs::xdp::XdpMode;
use millrace_common::abi::{ABI_VERSION, GatewayConfig, map};
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, loaded, traces};
use millrace_harness::net::netns::{Topology, bpf_object, load_on, load_told};
use millrace_harness::system::paths;
use millrace_harness::system::privilege::{alone, privileged, shared};
use millrace_harness::system::process::{Finished, copy_program, run};
use millrace_relay::codec::Framing;
use millrace_relay::config::{Config, Sysctls};
use millrace_relay::gateway::{self, Gateway, object::ObjectFile, object::VARIABLE};

const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65_534;

/// Runs `relay load` on the gateway in a mount namespace of its own, which a shell prepares.
fn load_after(topology: &Topology, preparation: &str, verb: &str) -> anyhow::Result<Finished> {
    let config = topology.config(PORT, Framing::Lines);
    let file = std::env::temp_dir().join(format!("millrace-refusal-{}.toml", std::process::id()));
    std::fs::write(&file, toml::to_string(&config)?)?;
    let before = traces(&topology.gateway, &config)?;
    let mut command = topology.gateway.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    command.arg(format!("{preparation} \"$0\" {verb} --config \"$1\""));
    command.arg(paths::relay()?).arg(&file).env(VARIABLE, bpf_object()?);
    let finished = run("relay load", &mut command, PATIENCE)?;
    std::fs::remove_file(file)?;
    ensure!(traces(&topology.gateway, &config)? == before, "something is left");
    Ok(finished)
}

/// It failed, and said all this.
fn refused(finished: &Finished, words: &[&str]) -> anyhow::Result<()> {
    let said = format!("{}{}", finished.stdout, finished.stderr);
    ensure!(finished.status.code() == Some(1), "exit status {}: {said}", finished.status);
    for word in words {
        ensure!(said.contains(word), "no `{word}` in: {said}");
    }
    Ok(())
}

#[test]
fn without_a_bpffs_it_says_what_is_missing() -> anyhow::Result<()> {
    if !privileged("without_a_bpffs_it_says_what_is_missing") {
        return Ok(());
    }
    let _alone = alone();
    let topology = Topology::new(1, 1)?;
    let hidden = "mount -t tmpfs tmpfs /sys/fs; exec";
    for verb in ["load", "load --check"] {
        let finished = load_after(&topology, hidden, verb)?;
        refused(&finished, &["no directory /sys/fs/bpf", "mount -t sysfs sysfs /sys"])?;
    }
    // A root that may not mount, as in many containers.
    let unmounted = "while umount /sys/fs/bpf 2>/dev/null; do :; done; \
                     exec setpriv --bounding-set -sys_admin";
    let finished = load_after(&topology, unmounted, "load")?;
    refused(&finished, &["BPF file system", "CAP_SYS_ADMIN", "mount -t bpf bpf /sys/fs/bpf"])
}

/// It looks as anybody, and says everything at once.
#[test]
fn a_check_needs_no_privilege() -> anyhow::Result<()> {
    if !privileged("a_check_needs_no_privilege") {
        return Ok(());
    }
    let directory = std::env::temp_dir().join(format!("millrace-check-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (program, object) = (directory.join("relay"), directory.join("gateway.bpf.o"));
    copy_program(&paths::relay()?, &program)?;
    std::fs::copy(bpf_object()?, &object)?;
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let check = |config: &millrace_relay::config::Config| {
        let file = directory.join("millrace.toml");
        std::fs::write(&file, toml::to_string(config)?)?;
        let run = || {
            let mut command = Command::new(&program);
            command.args(["load", "--check", "--json", "--config"]).arg(&file).uid(NOBODY).output()
        };
        let output = topology.gateway.run(run)??;
        let found: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        anyhow::Ok((output.status.code(), found))
    };
    let (code, found) = check(&config)?;
    ensure!(code == Some(0), "{found}");
    ensure!(found["devices"][0]["driver"] == "veth", "{found}");
    ensure!(found["devices"][0]["mode"] == "native", "{found}");

    topology.gateway.ip("link add bridge0 type bridge")?;
    config.gateway.devices = ["eth1", "nope", "bridge0"].map(str::to_owned).to_vec();
    topology.gateway.sysctl("net/ipv4/ip_forward", "0")?;
    // Whether the relay namespace can have it, only root can try.
    config.gateway.sysctls = Sysctls::new([("net.ipv4.no_such_setting", "1")]);
    let (code, found) = check(&config)?;
    ensure!(code == Some(1), "{found}");
    let untried = |finding: &serde_json::Value| finding["code"] == "sysctls_untried";
    ensure!(found["findings"].as_array().is_some_and(|all| all.iter().any(untried)), "{found}");
    let findings = found["findings"].as_array().context("no findings")?;
    for code in ["no_forwarding", "no_device", "no_native_xdp"] {
        let finding = findings.iter().find(|finding| finding["code"] == code);
        let finding = finding.with_context(|| format!("no {code}: {found}"))?;
        ensure!(finding["severity"] == "refuses" && finding["remedy"].is_string(), "{finding}");
    }
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

/// Before, nothing said that what clients send to an address on top of the device is not diverted.
#[test]
fn a_check_names_the_addresses_on_top_of_a_device() -> anyhow::Result<()> {
    if !privileged("a_check_names_the_addresses_on_top_of_a_device") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let (gateway, mut config) = (&topology.gateway, topology.config(PORT, Framing::Lines));
    let told = |config: &Config| {
        let found = gateway.run(|| gateway::preflight(config))??;
        let told = found.findings.into_iter().find(|finding| finding.code == "shared_addresses");
        anyhow::Ok(told.map(|finding| (finding.to_string(), finding.remedy.unwrap_or_default())))
    };
    ensure!(told(&config)?.is_none(), "nothing is on top of it");
    for step in [
        // The address of the device itself is known.
        "link add bridge0 type bridge",
        "link set dev eth1 master bridge0",
        "link add link bridge0 name upper1 address 02:00:00:00:00:71 type macvlan mode bridge",
    ] {
        gateway.ip(step)?;
    }
    let (words, _) = told(&config)?.context("the macvlan is not told")?;
    ensure!(words.contains("`upper1` (macvlan) has 02:00:00:00:00:71"), "{words}");
    ensure!(!words.contains("(bridge)"), "{words}");
    gateway.ip("link set dev bridge0 address 02:00:00:00:00:70")?;
    let (words, line) = told(&config)?.context("nothing is told")?;
    ensure!(words.contains("`bridge0` (bridge) has 02:00:00:00:00:70"), "{words}");

    // The line is what the configuration wants.
    let line = line.strip_prefix("gateway.").context(line.clone())?.to_owned();
    let text = toml::to_string(&config)?;
    let without = text.lines().filter(|line| !line.starts_with("shared_addresses"));
    let text: Vec<_> = without
        .flat_map(|text| match text {
            "[gateway]" => vec![text, &line],
            text => vec![text],
        })
        .collect();
    config = toml::from_str(&text.join("\n"))?;
    ensure!(config.gateway.shared_addresses.len() == 2, "{text:?}");
    ensure!(told(&config)?.is_none(), "they are shared now");
    Ok(())
}

/// Before, the error was a bare "No space left on device".
#[test]
fn a_drivers_refusal_has_the_kernels_own_words() -> anyhow::Result<()> {
    if !privileged("a_drivers_refusal_has_the_kernels_own_words") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let gateway = &topology.gateway;
    gateway
        .ip("link add few0 numrxqueues 1 numtxqueues 1 type veth peer name many0 numtxqueues 4")?;
    gateway.ethtool("-L many0 tx 1")?;
    for end in ["few0", "many0"] {
        gateway.ip(&format!("link set dev {end} up"))?;
    }
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.devices = vec!["few0".to_owned()];
    let before = traces(gateway, &config)?.gateway_links;
    // What the preflight looked at changes when it has looked.
    let change = |step: &str| {
        if step.starts_with("attach XDP program ingress to few0") {
            let set = ["-L", "many0", "tx", "4"];
            assert!(Command::new("ethtool").args(set).status().expect("ethtool").success());
        }
    };
    let error =
        load_told(gateway, &config, change).err().context("it was not refused")?.to_string();
    for words in [
        "driver veth does not run the program on `few0` as the device is set up now",
        "XDP expects number of rx queues not less than peer tx queues",
        "docs/design/drivers.md",
    ] {
        ensure!(error.contains(words), "no `{words}` in: {error}");
    }
    ensure!(traces(gateway, &config)?.gateway_links == before, "something is left");
    Ok(())
}

/// Before, the remedy was `ip link set … xdp off`, to which the kernel says "Can't replace active BPF
/// XDP link".
#[test]
fn a_foreign_link_has_a_remedy_that_works() -> anyhow::Result<()> {
    if !privileged("a_foreign_link_has_a_remedy_that_works") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut object = EbpfLoader::new().load(&std::fs::read(bpf_object()?)?)?;
    let program: &mut Xdp = object.program_mut("pass").context("no program")?.try_into()?;
    program.load()?;
    topology.gateway.run(|| program.attach("eth1", XdpMode::Driver))??;
    let off = topology.gateway.ip("link set dev eth1 xdp off").err().context("it was taken off")?;
    ensure!(off.to_string().contains("Can't replace active BPF XDP link"), "{off}");

    let config = topology.config(PORT, Framing::Lines);
    let error =
        load_on(&topology.gateway, &config).err().context("it was not refused")?.to_string();
    let id = aya::programs::loaded_links()
        .filter_map(Result::ok)
        .filter(|link| link.link_type().is_ok_and(|kind| kind == LinkType::Xdp))
        .map(|link| link.id())
        .find(|id| error.contains(&format!("`bpftool link detach id {id}`")));
    ensure!(id.is_some(), "no remedy in: {error}");
    // As when that command detaches it.
    drop(object);
    topology.load(&config)?.unload()
}

/// Before, anybody could lock the directory, and every command waited for ever and said nothing.
#[test]
fn only_root_can_keep_others_from_changing_what_is_loaded() -> anyhow::Result<()> {
    if !privileged("only_root_can_keep_others_from_changing_what_is_loaded") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, _topology) = loaded()?;
    let directory = loaded.config.run_directory();
    let run = directory.parent().context("no parent")?;
    for place in [run, &directory] {
        let output = Command::new("flock").arg("-n").arg(place).arg("true").uid(NOBODY).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains("Permission denied"), "{said}");
        ensure!(std::fs::metadata(place)?.mode() & 0o777 == 0o700, "{}", place.display());
    }
    for file in std::fs::read_dir(&directory)? {
        let file = file?;
        ensure!(file.metadata()?.mode() & 0o777 == 0o600, "{}", file.path().display());
    }
    loaded.unload()
}

#[test]
fn an_instance_of_another_version_is_not_used() -> anyhow::Result<()> {
    if !privileged("an_instance_of_another_version_is_not_used") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let config = &loaded.config;
    let pin = MapData::from_pin(config.pin_directory().join(map::CONFIG))?;
    let mut values: Array<_, GatewayConfig> = Array::try_from(Map::Array(pin))?;
    let value = values.get(&0, 0)?;
    values.set(0, GatewayConfig { abi_version: ABI_VERSION + 1, ..value }, 0)?;

    let object = ObjectFile::read(&bpf_object()?)?;
    let replaced = topology.gateway.run(|| gateway::replace_by(config, &object, &mut |_| {}))?;
    for error in [Gateway::open(config).err(), gateway::status(config).err(), replaced.err()] {
        let error = error.context("it was not refused")?.to_string();
        for words in [
            format!("instance `{}` has ABI version {}", config.gateway.instance, ABI_VERSION + 1),
            format!("this executable has {ABI_VERSION}"),
            "`relay unload` with the old executable".to_owned(),
        ] {
            ensure!(error.contains(&words), "no `{words}` in: {error}");
        }
    }
    loaded.unload()
}

#[test]
fn a_full_table_of_flows_is_said() -> anyhow::Result<()> {
    if !privileged("a_full_table_of_flows_is_said") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, _topology) = loaded()?;
    // The same table, but with room for one.
    let small = EbpfLoader::new()
        .map_max_entries(map::ESTABLISHED_IPV4, 1)
        .load(&std::fs::read(bpf_object()?)?)?
        .take_map(map::ESTABLISHED_IPV4)
        .context("no table")?;
    let pin = loaded.config.pin_directory().join(map::ESTABLISHED_IPV4);
    std::fs::remove_file(&pin)?;
    small.pin(&pin)?;

    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let server = SocketAddr::from((Topology::server_address(0), PORT));
    let client = |port| SocketAddr::from((Topology::client_address(0), port));
    relay.flows.accepted(client(1), server)?;
    let error = relay.flows.accepted(client(2), server).err().context("it was taken")?.to_string();
    ensure!(error.contains("full") && error.contains("must be refused"), "{error}");
    relay.flows.closed(client(1), server)?;
    relay.flows.accepted(client(2), server)?;
    loaded.unload()
}
