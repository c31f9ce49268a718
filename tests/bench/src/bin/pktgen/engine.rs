//! Who makes the packets: the kernel's pktgen, or `BPF_PROG_RUN` with live frames.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use clap::ValueEnum;
use millrace_bench::packet_cost::{Prologue, thread_time, thread_time_since};
use millrace_harness::gateway::test_run::received_by;
use millrace_harness::net::netns::Host;
use millrace_harness::net::pktgen::{self, Traffic};

use crate::road::{INGRESS, Road, received};

/// Longest run of the kernel's generator.
const LIMIT: Duration = Duration::from_mins(1);
/// Live frames that are handed over together, as a driver's poll would (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;

/// Where packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// The kernel's pktgen, out of the client's device: UDP
    Kernel,
    /// `BPF_PROG_RUN` with live frames, as if the client-facing device had received them: TCP
    LiveFrames,
}

/// What went through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    /// Packets that the program got.
    pub(crate) packets: u64,
    /// From the first to the last.
    pub(crate) elapsed: Duration,
    /// Processor time of whoever made them and carried them on, if it can be told.
    pub(crate) processor: Option<Duration>,
    /// Packets that came to the end of the road.
    pub(crate) arrived: u64,
}

impl Engine {
    /// As it is called on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::LiveFrames => "live-frames",
        }
    }

    /// The engine that was asked for, or the kernel's where it is to be had; with the reason.
    pub(crate) fn choose(asked: Option<Self>, host: &Host) -> Result<(Self, String)> {
        if asked == Some(Self::LiveFrames) {
            return Ok((Self::LiveFrames, "as --engine says".to_owned()));
        }
        match (host.run(pktgen::require)?.or_else(|_| load_module(host)), asked) {
            (Ok(()), Some(_)) => Ok((Self::Kernel, "as --engine says".to_owned())),
            (Ok(()), None) => Ok((Self::Kernel, "this kernel has it".to_owned())),
            (Err(reason), Some(_)) => {
                Err(reason.context("--engine kernel; --engine live-frames needs no module"))
            }
            (Err(reason), None) => Ok((Self::LiveFrames, format!("{reason:#}"))),
        }
    }
}

/// The module is there in many kernels, and loaded in few.
fn load_module(host: &Host) -> Result<()> {
    // What it says is of no use: `require` says what to do.
    let quiet = || Stdio::null();
    let _ = Command::new("modprobe").arg("pktgen").stdout(quiet()).stderr(quiet()).status();
    host.run(pktgen::require)?
}

/// Sends one frame again and again through `prologue`, which has been aimed, as if the client-facing
/// device had received it.
pub(crate) fn live_frames(
    road: &Road,
    prologue: &Prologue,
    frame: &[u8],
    packets: u32,
) -> Result<Passage> {
    let context = received_by(road.bench.client_ifindex, frame.len());
    let arrived = road.arrived()?;
    let (processor, started) = (thread_time(), Instant::now());
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: packets,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    };
    prologue
        .vary()?
        .test_run(options)
        .context("BPF_PROG_RUN with live frames, which Linux has since 5.18")?;
    let (elapsed, processor) = (started.elapsed(), thread_time_since(processor));
    Ok(Passage {
        packets: packets.into(),
        elapsed,
        processor: Some(processor),
        arrived: road.arrived()? - arrived,
    })
}

/// Lets the kernel's generator send to `program`, which is attached for that long.
pub(crate) fn kernel(road: &Road, program: &mut Xdp, traffic: &Traffic) -> Result<Passage> {
    let link = program.attach(INGRESS, XdpMode::Driver).context(INGRESS)?;
    let arrived = road.arrived()?;
    let before = received(&road.bench.gateway, INGRESS)?;
    let sent = pktgen::run(&road.bench.client, "eth0", traffic, LIMIT);
    let packets = received(&road.bench.gateway, INGRESS)? - before;
    program.detach(link)?;
    let elapsed = sent?.elapsed;
    ensure!(packets > 0, "pktgen has sent, and nothing has come in on {INGRESS}");
    Ok(Passage { packets, elapsed, processor: None, arrived: road.arrived()? - arrived })
}
