//! The configuration files of a node: its properties and its logging.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, Result};

/// Any valid cluster id: clients only compare it with itself.
pub(crate) const CLUSTER_ID: &str = "bWlsbHJhY2Uta2Fma2EtMQ";

/// `server.properties` of a single node that is broker and controller, on loopback. Tuned for a short start, few
/// threads and little work while idle.
pub(crate) fn properties(
    data: &Path,
    port: u16,
    controller_port: u16,
    session_timeout_ms: u32,
) -> String {
    let data = data.display().to_string();
    let (clients, controller) =
        (format!("127.0.0.1:{port}"), format!("127.0.0.1:{controller_port}"));
    let lines: &[(&str, &str)] = &[
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.quorum.voters", &format!("1@{controller}")),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("inter.broker.listener.name", "CLIENTS"),
        ("listeners", &format!("CLIENTS://{clients},CONTROLLER://{controller}")),
        ("advertised.listeners", &format!("CLIENTS://{clients}")),
        ("log.dirs", &data),
        // The use of a topic that nobody created is a mistake, and must fail.
        ("auto.create.topics.enable", "false"),
        ("num.partitions", "1"),
        ("default.replication.factor", "1"),
        ("min.insync.replicas", "1"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "1"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        ("share.coordinator.state.topic.num.partitions", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
        ("broker.heartbeat.interval.ms", "1000"),
        ("broker.session.timeout.ms", &session_timeout_ms.to_string()),
        // Enough for the records of a day's tests.
        ("log.retention.hours", "24"),
        ("log.segment.bytes", "268435456"),
        ("log.segment.delete.delay.ms", "1000"),
        // The cleaner's table of keys is on the heap: 128 MiB by default.
        ("log.cleaner.threads", "1"),
        ("log.cleaner.dedupe.buffer.size", "8388608"),
        ("num.network.threads", "2"),
        ("num.io.threads", "4"),
        ("background.threads", "2"),
        ("num.recovery.threads.per.data.dir", "1"),
        // The controller writes an empty record each time this runs out: 500 ms by default.
        ("metadata.max.idle.interval.ms", "5000"),
    ];
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}={value}");
        text
    })
}

/// Parses properties of the form `NAME=VALUE`.
pub(crate) fn overrides(given: &[String]) -> Result<Vec<(String, String)>> {
    let pair = |text: &String| {
        let (name, value) = text
            .split_once('=')
            .with_context(|| format!("--set needs NAME=VALUE, not `{text}`"))?;
        Ok((name.trim().to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

/// The properties, some of them replaced by others; the remaining others follow.
pub(crate) fn replaced(text: &str, others: &[(String, String)]) -> String {
    let is_replaced = |line: &&str| {
        let name = line.split_once('=').map_or(*line, |(name, _)| name);
        others.iter().any(|(other, _)| other == name)
    };
    let kept = text.lines().filter(|line| !is_replaced(line));
    let mut text = kept.fold(String::new(), |text, line| text + line + "\n");
    for (name, value) in others {
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

/// Log4j's configuration: everything from INFO up, in a file that is rotated.
pub(crate) fn logging(log: &Path) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <RollingFile name="file" fileName="{log}" filePattern="{log}.%i">
      <PatternLayout pattern="%d{{ISO8601}} %-5p %m (%c{{1}})%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="file"/></Root>
  </Loggers>
</Configuration>
"#,
        log = log.display()
    )
}

/// The same for Kafka 3, which uses log4j 1.
pub(crate) fn former_logging(log: &Path) -> String {
    format!(
        "log4j.rootLogger=INFO, file\n\
         log4j.appender.file=org.apache.log4j.RollingFileAppender\n\
         log4j.appender.file.File={log}\n\
         log4j.appender.file.MaxFileSize=10MB\n\
         log4j.appender.file.MaxBackupIndex=3\n\
         log4j.appender.file.layout=org.apache.log4j.PatternLayout\n\
         log4j.appender.file.layout.ConversionPattern=%d{{ISO8601}} %-5p %m (%c{{1}})%n\n",
        log = log.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_is_given_stands_in_place_of_ours() {
        let given = ["num.partitions=3".to_owned(), "a.new=b=c".to_owned()];
        let given = overrides(&given).unwrap();
        let text = replaced("num.partitions=1\nx=y\n", &given);
        assert_eq!(text, "x=y\nnum.partitions=3\na.new=b=c\n");
        let refused = overrides(&["num.partitions".to_owned()]).unwrap_err().to_string();
        assert!(refused.contains("num.partitions"), "{refused}");
    }

    #[test]
    fn every_property_is_given_once() {
        let text = properties(Path::new("/data"), 9092, 9093, 4000);
        let mut names: Vec<_> = text.lines().map(|line| line.split_once('=').unwrap().0).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(text.contains("listeners=CLIENTS://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"));
    }
}
