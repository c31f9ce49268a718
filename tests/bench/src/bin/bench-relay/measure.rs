//! One measurement: a subject, a flood, and the processor time between.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_bench::flood::Flood;
use millrace_harness::kafka::{Topics, record_count};
use millrace_harness::net::netns::instance_name;
use millrace_harness::relay::instance::Instance;
use millrace_harness::system::cpu::CpuTime;
use millrace_harness::system::process::{Process, wait_until};
use millrace_relay::codec::Framing;
use millrace_relay::config::{
    Config, GatewaySection, HoldSection, KafkaSection, MetricsSection, RegistrySection,
    RelaySection, Server, Service, Source, UplinkEngine,
};
use millrace_relay::model::Partition;

use crate::Arguments;
use crate::against::{Against, sparse};
use crate::answer::Trips;
use crate::floors::PARTITIONS;
use crate::rsyslog::{Rsyslog, Tuning, producer};
use crate::subject::Subject;

const PATIENCE: Duration = Duration::from_mins(3);

/// What is common to the measurements of a round.
pub(crate) struct Setting<'a> {
    pub(crate) flood: Flood,
    pub(crate) brokers: &'a str,
    pub(crate) workers: usize,
    /// If it is not what the engine has.
    pub(crate) linger_us: Option<u32>,
    pub(crate) engine: UplinkEngine,
    pub(crate) against: Option<&'a Against>,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Messages.
    pub(crate) messages: u64,
    /// From the first write to the last acknowledgement.
    pub(crate) seconds: f64,
    /// Of the subject's process.
    pub(crate) process: CpuTime,
    /// Of everything: subject, generator, broker.
    pub(crate) machine: CpuTime,
    /// Of the relay's workers, over its whole run: each is one `io_uring_enter`, their only system
    /// call.
    pub(crate) worker_loops: Option<u64>,
}

/// Measures one subject once.
pub(crate) fn measure(subject: Subject, setting: &Setting<'_>) -> Result<Measured> {
    let topics = Topics::new(setting.brokers, "bench");
    let context = || format!("{} could not be measured", subject.name());
    match subject {
        Subject::Relay | Subject::Speaking(_) => relay(setting, &topics, None),
        Subject::Former => {
            let against = setting.against.context("without --against there is none")?;
            relay(setting, &topics, Some(against))
        }
        Subject::Rsyslog => rsyslog(setting, &topics, Tuning::None),
        Subject::RsyslogTuned => rsyslog(setting, &topics, Tuning::Best),
        Subject::Produce => produce(setting, &topics),
        Subject::Sink => sink(setting),
        Subject::Answered(_) => answered(setting, &topics),
    }
    .with_context(context)
}

/// How long producers wait that are not the relay's. Microseconds.
pub(crate) fn linger_of_others(linger_us: Option<u32>) -> u32 {
    linger_us.unwrap_or(KafkaSection::default().linger_us())
}

/// A port of the loopback address that is free now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Sends the flood, waits for its end, and reads the clocks around both.
fn timed(
    setting: &Setting<'_>,
    target: SocketAddr,
    process: u32,
    end: impl FnOnce() -> Result<()>,
) -> Result<Measured> {
    let connected = setting.flood.connect(target)?;
    clocked(setting, process, || {
        connected.send()?;
        end()
    })
}

/// Reads the clocks before and after the work.
fn clocked(
    setting: &Setting<'_>,
    process: u32,
    work: impl FnOnce() -> Result<()>,
) -> Result<Measured> {
    let before = (CpuTime::of_process(process)?, CpuTime::of_machine()?);
    let start = Instant::now();
    work()?;
    Ok(Measured {
        messages: setting.flood.messages,
        seconds: start.elapsed().as_secs_f64(),
        process: CpuTime::of_process(process)?.since(before.0),
        machine: CpuTime::of_machine()?.since(before.1),
        worker_loops: None,
    })
}

fn relay(setting: &Setting<'_>, topics: &Topics, against: Option<&Against>) -> Result<Measured> {
    let address = free_address()?;
    let mut config = config(setting, topics, address.port());
    if against.is_some() {
        config.kafka.engine = UplinkEngine::default();
    }
    let mut instance = Instance::new(config, None)?;
    if let Some(Against { program, .. }) = against {
        instance.use_program(program, &sparse(&instance.config)?)?;
    }
    instance.start()?;
    let measured = timed(setting, address, instance.process_id()?, || {
        wait_until(PATIENCE, "the relay to deliver everything", || {
            instance.check_running()?;
            Ok(instance.stats()?.count("messages_acknowledged")? >= setting.flood.messages)
        })
    })?;
    let stopped = instance.stop()?;
    ensure!(
        stopped["messages_acknowledged"] == setting.flood.messages,
        "the relay has delivered something else than was sent: {stopped}"
    );
    let worker_loops = stopped["worker_loops"].as_u64();
    ensure!(worker_loops.is_some(), "the relay reports no loops: {stopped}");
    Ok(Measured { worker_loops, ..measured })
}

fn answered(setting: &Setting<'_>, topics: &Topics) -> Result<Measured> {
    let Flood { speech, connections, messages, size, .. } = setting.flood;
    let address = free_address()?;
    let mut instance = Instance::new(config(setting, topics, address.port()), None)?;
    instance.start()?;
    let server = floor(&[
        "answer",
        &format!("--brokers={}", setting.brokers),
        &format!("--prefix={}", topics.prefix()),
        &format!("--linger-us={}", linger_of_others(setting.linger_us)),
    ])?;
    server.wait_line("begin", PATIENCE)?;
    let streams = setting.flood.connect(address)?.into_streams();
    let mut trips = Trips::new(speech, size, streams)?;
    trips.make(1).context("the first message is not answered")?;
    let each = messages / u64::from(connections);
    let measured = clocked(setting, instance.process_id()?, || trips.make(each))?;
    drop(trips);
    let stopped = instance.stop()?;
    ensure!(
        stopped["messages_acknowledged"] == messages + u64::from(connections),
        "the relay has delivered something else than was sent: {stopped}"
    );
    Ok(measured)
}

fn config(setting: &Setting<'_>, topics: &Topics, port: u16) -> Config {
    let servers = (0..PARTITIONS).map(|number| {
        let id = format!("server-{number}");
        Server::new(id, Ipv4Addr::LOCALHOST.into(), Partition(number))
    });
    let mut service = Service {
        destinations: vec!["127.0.0.1/32".parse().expect("a prefix")],
        servers: servers.collect(),
        ..Service::new("bench", port, Framing::Lines)
    };
    setting.flood.speech.of(&mut service);
    Config {
        gateway: GatewaySection::new(instance_name(), &["none"]),
        relay: RelaySection { workers: setting.workers, ..RelaySection::default() },
        kafka: KafkaSection {
            brokers: setting.brokers.to_owned(),
            topic_prefix: topics.prefix().to_owned(),
            linger_us: setting.linger_us,
            engine: setting.engine,
            ..KafkaSection::default()
        },
        registry: RegistrySection::default(),
        hold: HoldSection::default(),
        metrics: MetricsSection::default(),
        source: Source::default(),
        services: vec![service],
    }
}

fn rsyslog(setting: &Setting<'_>, topics: &Topics, tuning: Tuning) -> Result<Measured> {
    let topic = topics.create("uplink", i32::from(PARTITIONS))?;
    let address = free_address()?;
    let rsyslog = Rsyslog::start(tuning, address, setting, &topic)?;
    timed(setting, address, rsyslog.id()?, || {
        let mut records = 0;
        wait_until(PATIENCE, "rsyslog to deliver everything", || {
            records = record_count(setting.brokers, &topic, i32::from(PARTITIONS))?;
            Ok(records >= setting.flood.messages)
        })?;
        ensure!(records == setting.flood.messages, "{records} records are too many");
        Ok(())
    })
}

/// Starts this program as a floor.
fn floor(arguments: &[&str]) -> Result<Process> {
    Process::spawn(arguments[0], Command::new(std::env::current_exe()?).args(arguments))
}

/// The processor time that a floor reports in its last line.
fn used(floor: Process) -> Result<CpuTime> {
    let finished = floor.wait(PATIENCE)?;
    ensure!(finished.status.success(), "the floor failed: {}", finished.stderr);
    let mut words = finished.stdout.lines().last().unwrap_or_default().split(' ').skip(1);
    let mut next = || words.next().and_then(|word| word.parse().ok()).context("no report");
    Ok(CpuTime { user_us: next()?, system_us: next()? })
}

fn produce(setting: &Setting<'_>, topics: &Topics) -> Result<Measured> {
    let topic = topics.create("uplink", i32::from(PARTITIONS))?;
    let Flood { connections, messages, size, per_write, .. } = setting.flood;
    let machine = CpuTime::of_machine()?;
    let floor = floor(&[
        "produce",
        &format!("--brokers={}", setting.brokers),
        &format!("--topic={topic}"),
        &format!("--messages={messages}"),
        &format!("--bytes={size}"),
        &format!("--connections={connections}"),
        &format!("--per-write={per_write}"),
        &format!("--linger-us={}", linger_of_others(setting.linger_us)),
    ])?;
    floor.wait_line("begin", PATIENCE)?;
    let start = Instant::now();
    let process = used(floor)?;
    let seconds = start.elapsed().as_secs_f64();
    let machine = CpuTime::of_machine()?.since(machine);
    let records = record_count(setting.brokers, &topic, i32::from(PARTITIONS))?;
    ensure!(records == messages, "{records} records instead of {messages}");
    Ok(Measured { messages, seconds, process, machine, worker_loops: None })
}

fn sink(setting: &Setting<'_>) -> Result<Measured> {
    let floor = floor(&["sink", &format!("--bytes={}", setting.flood.bytes())])?;
    let listening = floor.wait_line("listening ", PATIENCE)?;
    let target: SocketAddr = listening.trim_start_matches("listening ").parse()?;
    let connected = setting.flood.connect(target)?;
    let machine = CpuTime::of_machine()?;
    let start = Instant::now();
    connected.send()?;
    let process = used(floor)?;
    Ok(Measured {
        messages: setting.flood.messages,
        seconds: start.elapsed().as_secs_f64(),
        process,
        machine: CpuTime::of_machine()?.since(machine),
        worker_loops: None,
    })
}

/// What the report says of the configuration.
pub(crate) fn configuration(brokers: &str, arguments: &Arguments) -> Result<serde_json::Value> {
    let cpus = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let model = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = model.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    let relay = RelaySection { workers: arguments.workers, ..RelaySection::default() };
    let kafka = KafkaSection {
        brokers: brokers.to_owned(),
        linger_us: arguments.linger_us,
        engine: arguments.engine,
        ..KafkaSection::default()
    };
    Ok(serde_json::json!({
        "processors": cpus,
        "processor": model.split_once(": ").map_or("unknown", |(_, name)| name),
        "kernel": kernel.trim(),
        "brokers": brokers,
        "partitions": PARTITIONS,
        "path": "TCP over loopback, lines; relay without gateway",
        "producers": producer(linger_of_others(arguments.linger_us)).map(|(key, value)| format!("{key}={value}")),
        "relay": relay,
        "relay_kafka": kafka,
        "against": arguments.against.as_ref().map(|against| &against.revision),
        "rsyslog": crate::rsyslog::version()?,
        "rsyslog_tuned": "no parser, FixedArray queue of 200000, batches of 1024",
        "librdkafka": rdkafka::util::get_rdkafka_version().1,
    }))
}
