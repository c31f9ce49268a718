//! Round trips: clients that send the next message when the last one is answered, and the server that
//! answers.

use std::net::TcpStream as StdStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use millrace_harness::clients::speech::{END, Speech, payload};
use millrace_harness::kafka;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::floors::PARTITIONS;
use crate::rsyslog::producer as producer_settings;

const PATIENCE: Duration = Duration::from_mins(1);

/// Sends every message back, as a process of its own, until it is ended.
#[derive(Debug, Args)]
pub(crate) struct Answer {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    prefix: String,
    #[arg(long)]
    linger_us: u32,
}

impl Answer {
    pub(crate) fn run(&self) -> Result<()> {
        let mut config = kafka::client(&self.brokers);
        let consumer: BaseConsumer = config.set("group.id", &self.prefix).create()?;
        let (uplink, downlink) =
            (format!("{}uplink", self.prefix), format!("{}downlink", self.prefix));
        let mut all = TopicPartitionList::new();
        for partition in 0..i32::from(PARTITIONS) {
            all.add_partition_offset(&uplink, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        let mut config = kafka::client(&self.brokers);
        for (key, value) in producer_settings(self.linger_us) {
            config.set(key, value);
        }
        let producer: BaseProducer = config.create()?;
        producer.client().fetch_metadata(Some(&downlink), PATIENCE)?;
        println!("begin");
        loop {
            producer.poll(Duration::ZERO);
            let Some(record) = consumer.poll(Duration::from_millis(1)) else { continue };
            let record = record?;
            let Some(of) = record.headers() else { continue };
            let value = |name| of.iter().find(|header| header.key == name).and_then(|of| of.value);
            if value("kind").is_some() {
                continue;
            }
            let reply = value("reply").context("a message without the header `reply`")?;
            let kept = Speech::ALL.iter().filter_map(|speech| speech.correlation());
            let headers = kept.filter_map(|key| Some(Header { key, value: Some(value(key)?) }));
            let headers = headers.fold(OwnedHeaders::new(), OwnedHeaders::insert);
            let reply = BaseRecord::to(&downlink)
                .partition(std::str::from_utf8(reply)?.parse()?)
                .key(record.key().unwrap_or_default())
                .payload(record.payload().unwrap_or_default())
                .headers(headers);
            producer.send(reply).map_err(|(error, _)| error)?;
        }
    }
}

/// Connections whose server answers.
pub(crate) struct Trips {
    runtime: tokio::runtime::Runtime,
    message: Vec<u8>,
    streams: Vec<TcpStream>,
}

impl Trips {
    /// Takes connections that have greeted.
    pub(crate) fn new(speech: Speech, size: usize, streams: Vec<StdStream>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let message = speech.message(&payload(size));
        let streams = {
            let _here = runtime.enter();
            streams
                .into_iter()
                .map(|stream| {
                    stream.set_nonblocking(true)?;
                    TcpStream::from_std(stream)
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Self { runtime, message, streams })
    }

    /// So many round trips on each connection.
    pub(crate) fn make(&mut self, each: u64) -> Result<()> {
        let Self { runtime, message, streams } = self;
        let all = async {
            let trips = std::mem::take(streams).into_iter().map(|mut stream| {
                let message = message.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        stream.write_all(&message).await?;
                        reply(&mut stream).await?;
                    }
                    Ok::<_, anyhow::Error>(stream)
                })
            });
            for trips in trips.collect::<Vec<_>>() {
                streams.push(trips.await??);
            }
            Ok(())
        };
        let all = async { tokio::time::timeout(PATIENCE * 3, all).await.context("too slow")? };
        runtime.block_on(all)
    }
}

/// Reads one reply, whose last byte is [`END`].
async fn reply(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = [0; 4 << 10];
    loop {
        let length = stream.read(&mut bytes).await?;
        ensure!(length > 0, "the relay has closed a connection");
        let read = &bytes[..length];
        match read.iter().position(|byte| *byte == END) {
            None => {}
            // A line has its line feed behind it.
            Some(at) if read[at + 1..].iter().all(|byte| *byte == b'\n') => return Ok(()),
            Some(_) => anyhow::bail!(
                "`{}` within a reply: take another --size: {}",
                char::from(END),
                read.escape_ascii()
            ),
        }
    }
}
