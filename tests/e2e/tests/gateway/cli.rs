//! The `relay` command's gateway side, as an operator types it.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::counted_traffic::Datagrams;
use millrace_harness::net::netns::{Topology, bpf_object};
use millrace_harness::system::paths;
use millrace_harness::system::privilege::privileged;
use millrace_harness::system::process::copy_program;
use millrace_relay::codec::Framing;
use millrace_relay::config::Config;

const NOBODY: u32 = 65_534;

/// A directory that is removed with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn config(&self, config: &Config) -> anyhow::Result<PathBuf> {
        let path = self.0.join("millrace.toml");
        std::fs::write(&path, toml::to_string(config)?)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn load_status_and_unload() -> anyhow::Result<()> {
    if !privileged("load_status_and_unload") {
        return Ok(());
    }
    let relay = paths::relay()?;
    let topology = Topology::new(1, 1)?;
    let scratch = Scratch::new("cli")?;
    let config = topology.config(7000, Framing::Lines);
    let path = scratch.config(&config)?;
    let run = |arguments: &[&str]| {
        let mut command = topology.gateway.command(&relay.display().to_string());
        command.args(arguments).arg("--config").arg(&path);
        command.env("MILLRACE_BPF_OBJECT", bpf_object()?);
        Ok::<_, anyhow::Error>(command.output()?)
    };

    let output = run(&["status"])?;
    ensure!(!output.status.success() && said(&output).contains("load it with `relay load`"));

    let output = run(&["load"])?;
    ensure!(output.status.success(), "{}", said(&output));
    let steps = String::from_utf8_lossy(&output.stderr);
    for step in ["ip netns add", "attach XDP program ingress to eth1"] {
        ensure!(steps.contains(step), "no step `{step}`: {steps}");
    }

    let again = run(&["load"])?;
    ensure!(!again.status.success() && said(&again).contains("already loaded"), "{}", said(&again));

    let check = run(&["load", "--check", "--json"])?;
    let found: serde_json::Value = serde_json::from_slice(&check.stdout)?;
    let findings = found["findings"].as_array().context("no findings")?;
    let refusals: Vec<_> = findings.iter().filter(|it| it["severity"] == "refuses").collect();
    ensure!(refusals.len() == 1 && refusals[0]["code"] == "already_loaded", "{found}");

    let output = run(&["status", "--json"])?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let status = &status["gateway"];
    ensure!(status["instance"] == config.gateway.instance.as_str(), "{status}");
    ensure!(status["devices"][0]["mode"] == "native", "{status}");
    ensure!(status["rules"]["rules"][0] == "divert tcp 10.77.2.0/24 port 7000", "{status}");
    ensure!(status["verdicts"]["divert/new"] == 0, "{status}");
    let output = run(&["status"])?;
    ensure!(said(&output).contains("new connections take the ordinary path"), "{}", said(&output));

    rules(&scratch, &run)?;

    let output = run(&["unload"])?;
    ensure!(output.status.success(), "{}", said(&output));
    ensure!(!config.namespace().exists() && !config.run_directory().exists());
    Ok(())
}

/// `relay rules` on a loaded instance.
fn rules(scratch: &Scratch, run: &dyn Fn(&[&str]) -> anyhow::Result<Output>) -> anyhow::Result<()> {
    let former = "divert tcp 10.77.2.0/24 port 7000";
    let file = scratch.0.join("new.rules");
    let name = file.to_str().context("a name")?;
    std::fs::write(&file, "divert tcp 10.77.2.0/24 port 7000-\npass udp ::1 port any\ndeny\n")?;
    for verb in ["check", "apply"] {
        let output = run(&["rules", verb, name])?;
        let message = said(&output);
        ensure!(!output.status.success(), "{message}");
        for part in [&format!("{name}:1: `7000-`"), &format!("{name}:3: `deny`"), "nothing was"] {
            ensure!(message.contains(part), "no `{part}`: {message}");
        }
    }
    let shown = said(&run(&["rules", "show"])?);
    ensure!(shown.lines().nth(1) == Some(former), "{shown}");

    let new = "divert tcp 10.77.2.0/25 port any\nexclude 10.77.1.0/28";
    std::fs::write(&file, new)?;
    let message = said(&run(&["rules", "check", name])?);
    ensure!(message.contains("1 class(es) of ports, 2 of 131072 entries"), "{message}");
    let output = run(&["rules", "apply", name])?;
    let message = said(&output);
    ensure!(output.status.success() && message.contains("2 added, 1 removed"), "{message}");
    ensure!(message.contains(&format!("- {former}")), "{message}");
    let output = run(&["rules", "show", "--json"])?;
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(shown["rules"] == serde_json::json!(new.lines().collect::<Vec<_>>()), "{shown}");
    ensure!(shown["difference"].is_null() && shown["entries"] == 2, "{shown}");

    // Without a file the configuration says what is diverted.
    let output = run(&["rules", "apply"])?;
    ensure!(output.status.success() && said(&output).contains("1 added, 2 removed"));
    Ok(())
}

#[test]
fn status_tells_rates_and_programs() -> anyhow::Result<()> {
    if !privileged("status_tells_rates_and_programs") {
        return Ok(());
    }
    let topology = Topology::new(1, 1)?;
    let scratch = Scratch::new("rates")?;
    let loaded = topology.load(&topology.config(7000, Framing::Lines))?;
    let path = scratch.config(&loaded.config)?;
    let (client, server) = (&topology.clients[0], &topology.servers[0]);
    let traffic = Datagrams::start(client, server, Topology::server_address(0), 9000)?;
    let status = |arguments: &[&str]| {
        let mut command = topology.gateway.command(&paths::relay()?.display().to_string());
        command.arg("status").args(arguments).arg("--config").arg(&path);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", said(&output));
        anyhow::Ok(String::from_utf8(output.stdout)?)
    };
    let json: serde_json::Value = serde_json::from_str(&status(&["--interval", "1", "--json"])?)?;
    let interval = json["rates"]["interval_ms"].as_u64().context("no interval")?;
    ensure!((1000..10_000).contains(&interval), "{interval}");
    let rates = json["rates"]["packets_per_s"].as_object().context("no rates")?;
    ensure!(rates.len() == json["gateway"]["verdicts"].as_object().context("no verdicts")?.len());
    let all: f64 = rates.values().filter_map(serde_json::Value::as_f64).sum();
    ensure!(all > 100.0, "2000 datagrams a second came by, and it tells {all} packets");
    ensure!(json["rates"]["relay_per_s"].is_null(), "no relay runs");
    let ingress = &json["gateway"]["programs"]["ingress"];
    ensure!(ingress["id"] == json["gateway"]["devices"][0]["program_id"], "{ingress}");
    ensure!(ingress["loaded_unix_s"].as_u64() > Some(1_500_000_000), "{ingress}");

    let text = status(&["--interval", "1"])?;
    for words in ["per second, over", "program      egress: id ", "loaded ", "native"] {
        ensure!(text.contains(words), "no `{words}` in {text}");
    }
    let without = status(&[])?;
    ensure!(!without.contains("a second") && !without.contains("REPLACED"), "{without}");
    let (sent, returned) = traffic.finish()?;
    ensure!(sent == returned);
    loaded.unload()
}

#[test]
fn without_root_it_says_so() -> anyhow::Result<()> {
    if !privileged("without_root_it_says_so") {
        return Ok(());
    }
    let scratch = Scratch::new("nobody")?;
    let executable = scratch.0.join("relay");
    copy_program(&paths::relay()?, &executable)?;
    let path = paths::workspace().join("docs/millrace.toml");
    let path = std::fs::copy(path, scratch.0.join("millrace.toml"))
        .map(|_| scratch.0.join("millrace.toml"))?;
    for action in [
        &["load"][..],
        &["load", "--replace"],
        &["unload"],
        &["status"],
        &["trace", "::1"],
        &["rules", "apply"],
        &["rules", "show"],
    ] {
        let mut command = Command::new(&executable);
        let output = command.args(action).arg("--config").arg(&path).uid(NOBODY).output()?;
        let message = said(&output);
        ensure!(!output.status.success() && message.contains("run it with sudo"), "{message}");
    }
    let mut command = Command::new(&executable);
    let output = command.args(["check", "--config"]).arg(&path).uid(NOBODY).output()?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}

#[test]
fn a_missing_object_or_configuration_is_named() -> anyhow::Result<()> {
    if !privileged("a_missing_object_or_configuration_is_named") {
        return Ok(());
    }
    let path = paths::workspace().join("docs/millrace.toml");
    let output = Command::new(paths::relay()?)
        .args(["load", "--config"])
        .arg(&path)
        .env("MILLRACE_BPF_OBJECT", "/nonexistent/gateway.bpf.o")
        .output()?;
    let message = said(&output);
    ensure!(!output.status.success(), "{message}");
    ensure!(message.contains("no eBPF object: looked for /nonexistent/gateway.bpf.o"), "{message}");

    let output =
        Command::new(paths::relay()?).args(["load", "--config", "/nonexistent.toml"]).output()?;
    let message = said(&output);
    ensure!(!output.status.success() && message.contains("--config"), "{message}");
    Ok(())
}
