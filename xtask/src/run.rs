//! Commands that build a program and then replace this process by it.

use std::{ffi::OsString, process::Command};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::{
    against, build, kafka, paths, process,
    setup::{self, Part},
};

pub(crate) const DEMO_HELP: &str = "\
Arguments go to the demo:
  --clients N --servers N --messages N --size BYTES   size of the run
  --json           the last line of standard output is one JSON object
  --hold           keep everything up, and explain how to send messages by hand
  --brokers LIST   use an existing Kafka instead of the one on 127.0.0.1

Changes on the host: installs what is missing (see `setup --check`); needs root; creates network
namespaces and removes them at the end; leaves Kafka running (`cargo xtask kafka stop`). It touches no
network device of the host.

Examples:
  cargo xtask demo
  cargo xtask demo --clients 200 --servers 4 --messages 100000 --json";

const BENCH_HELP: &str = "\
Arguments go to the benchmark:
  --against REVISION   also the relay of that commit, which is built below target/against, beside this one
  --engine ENGINE      what writes this relay's uplink: librdkafka or millrace
  --only PART          peers, protocols, or, with --against, commits
  --json               the last line of standard output is one JSON object
  --brokers LIST       use an existing Kafka instead of the one on 127.0.0.1

Changes on the host: as `demo`; also installs rsyslog, masked as a service if it was not installed.

Examples:
  cargo xtask bench relay --json
  cargo xtask bench relay --against HEAD~1 --only commits";

const BENCH_GATEWAY_HELP: &str = "\
The same clients do the same work over several roads through a gateway: forwarded without a program,
forwarded through the XDP programs in native and in generic mode, redirected by TPROXY, and diverted;
to the same TCP server, and to the relay. Arguments go to the benchmark:
  --rounds N --connections N --messages N --megabytes N   size of the run
  --quick            one small round, to check that everything works
  --plot FILE.svg    draw the report
  --json             the last line of standard output is one JSON object
  --brokers LIST     use an existing Kafka instead of the one on 127.0.0.1

Changes on the host: as `demo`. It takes about three minutes.

Example:
  cargo xtask bench gateway --plot gateway.svg";

const BENCH_PATH_HELP: &str = "\
Measures packets at all hosts, processor time, latency and sockets, for messages and for idle
connections: over the conventional chain client, gateway, core router, distributed router, server; and
with Millrace at the same gateway. Arguments go to the benchmark:
  --rounds N --messages N --connections N --idle-seconds N   size of the run
  --quick            one small round, to check that everything works
  --plot FILE.svg    draw the report
  --json             the last line of standard output is one JSON object
  --brokers LIST     use an existing Kafka instead of the one on 127.0.0.1

Changes on the host: as `demo`. It takes about three minutes.

Example:
  cargo xtask bench path --plot path.svg";

const BENCH_CLASSIFY_HELP: &str = "\
Measures the processor time of a packet in the gateway's programs, for every path through them, by test
runs of the real object, and its ratio to a program that only passes. Arguments go to the benchmark:
  --rounds N --packets N --flows N --rules N   size of the run
  --only TEXT        only rows whose name contains TEXT
  --quick            one small round, to check that everything works
  --plot FILE.svg    draw the report
  --json             the last line of standard output is one JSON object

Changes on the host: installs what is missing (see `setup --check`); needs root; creates network
namespaces and removes them at the end. It takes about two minutes, and needs no Kafka.

Examples:
  cargo xtask bench classify --json
  cargo xtask bench classify --only established";

pub(crate) const PKTGEN_HELP: &str = "\
Measures packets per second through the gateway's ingress program, compared with programs that only drop
and only pass. Arguments go to the program:
  SCENARIO           drop, pass, no-rule, flows-1, flows-1000, flows-1000000, rules-10000, syn-flood,
                     mixture; give several, or none for all
  --engine kernel|live-frames   the kernel's pktgen, or BPF_PROG_RUN with live frames
  --size BYTES       size of a frame; may be given several times
  --rounds N --packets N   size of the run
  --quick            one small round, to check that everything works
  --plot FILE.svg    draw the report
  --json             the last line of standard output is one JSON object

Without --engine, the kernel's engine is used if its module exists. The module is then loaded
(`modprobe pktgen`) and stays loaded.

Other changes on the host: installs what is missing (see `setup --check`); needs root; creates network
namespaces, sends only within them, and removes them at the end. It takes about two minutes, and needs
no Kafka.

Examples:
  cargo xtask pktgen
  cargo xtask pktgen mixture syn-flood --engine live-frames --plot pktgen.svg";

/// Arguments that are passed on as they are.
#[derive(Debug, Args)]
pub(crate) struct Passed {
    /// Arguments for the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Variable with the path of the gateway's eBPF object.
const BPF_OBJECT: &str = "MILLRACE_BPF_OBJECT";

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Messages from many connections through the relay to Kafka, compared with rsyslog and two floors;
    /// and the cost of each protocol
    #[command(after_help = BENCH_HELP)]
    Relay(Passed),
    /// What diversion of connections costs, compared with TPROXY and plain forwarding
    #[command(after_help = BENCH_GATEWAY_HELP)]
    Gateway(Passed),
    /// What a message and an idle connection cost on the whole path, with Millrace and without
    #[command(after_help = BENCH_PATH_HELP)]
    Path(Passed),
    /// What a packet costs in the gateway's programs, for every path through them
    #[command(after_help = BENCH_CLASSIFY_HELP)]
    Classify(Passed),
}

/// Builds what a subcommand of the relay needs, and replaces this process by it.
pub(crate) fn relay(subcommand: &str, passed: &Passed) -> Result<()> {
    if matches!(subcommand, "load" | "run" | "trace") {
        setup::ensure(&[Part::Build, Part::Ebpf])?;
        build::gateway()?;
    } else {
        setup::ensure(&[Part::Build])?;
        build::relay()?;
    }
    process::replace(Command::new(paths::release("relay")).arg(subcommand).args(&passed.arguments))
}

/// Prepares everything, and replaces this process by the demo.
pub(crate) fn demo(passed: &Passed) -> Result<()> {
    hand_over("demo", &setup::USUAL, passed)
}

/// Prepares everything, and replaces this process by the benchmark.
pub(crate) fn bench(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Relay(passed) => bench_relay(passed),
        Bench::Gateway(passed) => hand_over("bench-gateway", &setup::USUAL, passed),
        Bench::Path(passed) => hand_over("bench-path", &setup::USUAL, passed),
        Bench::Classify(passed) => without_kafka("bench-classify", passed),
    }
}

/// With the relay of another commit, if one is named.
fn bench_relay(passed: &Passed) -> Result<()> {
    let (against, mut arguments) =
        take(&passed.arguments, "--against", "a commit, as git names it")?;
    if let Some(revision) = against {
        // Before minutes of building.
        require_root()?;
        let (commit, program) = against::build(&revision)?;
        arguments.push(format!("--against={commit}={}", program.display()).into());
    }
    hand_over("bench-relay", &setup::WITH_BENCH, &Passed { arguments })
}

/// Builds the packet generator, and replaces this process by it.
pub(crate) fn pktgen(passed: &Passed) -> Result<()> {
    without_kafka("pktgen", passed)
}

/// Does this for a program that only needs the XDP programs.
fn without_kafka(program: &str, passed: &Passed) -> Result<()> {
    require_root()?;
    setup::ensure(&[Part::Build, Part::Ebpf, Part::Network])?;
    build::all()?;
    let mut command = Command::new(paths::release(program));
    process::replace(command.env(BPF_OBJECT, paths::bpf_object()).args(&passed.arguments))
}

fn hand_over(program: &str, parts: &[Part], passed: &Passed) -> Result<()> {
    require_root()?;
    let (brokers, arguments) = passed.split()?;
    setup::ensure(parts)?;
    build::all()?;
    let cluster = kafka::for_run(brokers.as_deref())?;
    let mut command = Command::new(paths::release(program));
    environment(&mut command, cluster.brokers())?;
    process::replace(command.args(arguments).args(["--brokers", cluster.brokers()]))
}

/// Network namespaces need root. Checked before minutes of building.
pub(crate) fn require_root() -> Result<()> {
    if !process::is_root() {
        bail!(
            "this builds network namespaces and loads XDP programs, which needs root: run it as \
             root, for example with `sudo -E env PATH=$PATH cargo xtask …`"
        );
    }
    Ok(())
}

/// Sets the environment of the programs of demo, tests and benchmarks.
pub(crate) fn environment(command: &mut Command, brokers: &str) -> Result<()> {
    command
        .env("MILLRACE_BROKERS", brokers)
        .env("MILLRACE_RELAY", paths::release("relay"))
        .env(BPF_OBJECT, paths::bpf_object())
        .env("MILLRACE_EXAMPLE_SERVER", paths::release("examples/server"))
        .env("MILLRACE_XTASK", paths::own_program()?);
    Ok(())
}

impl Passed {
    /// The value of `--brokers`, which xtask itself needs, and the other arguments.
    pub(crate) fn split(&self) -> Result<(Option<String>, Vec<OsString>)> {
        take(&self.arguments, "--brokers", "HOST:PORT[,HOST:PORT…]")
    }
}

/// The value of an option, wherever it stands before `--`, and the other arguments.
fn take(
    arguments: &[OsString],
    option: &str,
    value: &str,
) -> Result<(Option<String>, Vec<OsString>)> {
    let (mut found, mut others) = (None, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--" {
            others.push(argument.clone());
            others.extend(arguments.cloned());
            break;
        } else if text == option {
            match arguments.next() {
                Some(value) => found = Some(value.to_string_lossy().into_owned()),
                None => bail!("{option} needs a value: {value}"),
            }
        } else if let Some(value) =
            text.strip_prefix(option).and_then(|rest| rest.strip_prefix('='))
        {
            found = Some(value.to_owned());
        } else {
            others.push(argument.clone());
        }
    }
    Ok((found, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(arguments: &[&str]) -> Result<(Option<String>, Vec<OsString>)> {
        Passed { arguments: arguments.iter().map(OsString::from).collect() }.split()
    }

    #[test]
    fn brokers_are_taken_out_wherever_they_stand() {
        for arguments in
            [&["--json", "--brokers", "a:1", "--hold"][..], &["--json", "--hold", "--brokers=a:1"]]
        {
            let (brokers, others) = split(arguments).unwrap();
            assert_eq!(brokers.as_deref(), Some("a:1"));
            assert_eq!(others, ["--json", "--hold"]);
        }
        assert!(split(&["--brokers"]).is_err());
    }

    #[test]
    fn what_follows_two_dashes_is_left_alone() {
        let (brokers, others) = split(&["--", "--brokers", "x"]).unwrap();
        assert_eq!((brokers, others.len()), (None, 3));
    }
}
