//! The two floors, each the body of a process of its own.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use millrace_harness::kafka;
use millrace_harness::system::cpu::CpuTime;
use millrace_relay::config::RelaySection;
use millrace_relay::engine::{Engine as _, Event, ReceiveEnd};
use millrace_relay::model::{ConnectionKey, Incarnation, RelayId, ServiceId};
use millrace_relay::ring::Wake;
use millrace_relay::uring::{EngineLimits, UringEngine};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::RDKafkaErrorCode;

use crate::rsyslog::producer as producer_settings;

const PATIENCE: Duration = Duration::from_mins(2);
/// Partitions that records are spread over.
pub(crate) const PARTITIONS: u16 = 4;

/// What a floor says when it is through.
fn report(start: CpuTime) -> Result<()> {
    let used = CpuTime::of_process(std::process::id())?.since(start);
    println!("used {} {}", used.user_us, used.system_us);
    Ok(())
}

/// Receives and throws away.
#[derive(Debug, Args)]
pub(crate) struct Sink {
    #[arg(long)]
    bytes: u64,
}

impl Sink {
    pub(crate) fn run(&self) -> Result<()> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let address: SocketAddr = listener.local_addr()?;
        let limits = EngineLimits::from(&RelaySection::default());
        let mut engine = UringEngine::new(limits, Wake::new()?)?;
        engine.listen(ServiceId(0), OwnedFd::from(listener));
        println!("listening {address}");
        let start = CpuTime::of_process(std::process::id())?;
        let mut left = self.bytes;
        while left > 0 {
            engine.wait(PATIENCE)?;
            while let Some(event) = engine.next_event() {
                match event {
                    Event::Accepted { socket, .. } => engine.receive(socket),
                    Event::Received { buffer, length, .. } => {
                        left =
                            left.checked_sub(length as u64).context("more came than was sent")?;
                        engine.recycle(buffer);
                    }
                    Event::ReceiveEnded { socket, end } => {
                        ensure!(matches!(end, ReceiveEnd::EndOfStream), "{end:?}");
                        engine.close(socket);
                    }
                    Event::AcceptFailed { error } => return Err(error.into()),
                    Event::Sent { .. }
                    | Event::Connected { .. }
                    | Event::PeerEnded { .. }
                    | Event::Closed { .. } => {}
                }
            }
        }
        report(start)
    }
}

/// Produces the records that the relay would make of a flood.
#[derive(Debug, Args)]
pub(crate) struct Produce {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    #[arg(long)]
    messages: u64,
    #[arg(long)]
    bytes: usize,
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    per_write: u32,
    #[arg(long)]
    linger_us: u32,
}

impl Produce {
    pub(crate) fn run(&self) -> Result<()> {
        let mut config = kafka::client(&self.brokers);
        for (key, value) in producer_settings(self.linger_us) {
            config.set(key, value);
        }
        let producer: BaseProducer<DefaultProducerContext> = config.create()?;
        producer.client().fetch_metadata(Some(&self.topic), PATIENCE)?;
        let payload: Vec<u8> = (b'a'..=b'z').cycle().take(self.bytes).collect();
        let keys: Vec<_> = (0..self.connections)
            .map(|slot| {
                let (relay, incarnation) = (RelayId(0), Incarnation::new(0x0193_abcd_ef12));
                ConnectionKey { relay, incarnation, worker: 0, slot, generation: slot }.print()
            })
            .collect();
        let clients: Vec<_> =
            (0..self.connections).map(|number| format!("127.0.0.1:{}", 30_000 + number)).collect();

        let start = CpuTime::of_process(std::process::id())?;
        println!("begin");
        let per_write = u64::from(self.per_write);
        for write in 0..self.messages / per_write {
            let connection = usize::try_from(write % u64::from(self.connections))?;
            for _ in 0..per_write {
                let header = |key, value| Header { key, value: Some(value) };
                let headers = OwnedHeaders::new_with_capacity(5)
                    .insert(header("client", clients[connection].as_str()))
                    .insert(header("destination", "127.0.0.1:7000"))
                    .insert(header("protocol", "lines"))
                    .insert(header("reply", "0"))
                    .insert(header("sequence", "1"));
                let mut record = BaseRecord::to(&self.topic)
                    .partition(i32::try_from(connection % usize::from(PARTITIONS))?)
                    .key(&keys[connection][..])
                    .payload(&payload[..])
                    .headers(headers);
                while let Err((error, back)) = producer.send(record) {
                    let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                    ensure!(error == full, "cannot produce: {error}");
                    producer.poll(Duration::from_millis(1));
                    record = back;
                }
            }
            if write % 64 == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(PATIENCE).context("not everything was acknowledged")?;
        report(start)
    }
}
