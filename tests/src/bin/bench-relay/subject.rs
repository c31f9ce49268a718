//! What is measured.

/// Who handles the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The relay: receive, frame, associate, produce.
    Relay,
    /// rsyslog: imptcp to omkafka, everything else as it comes.
    Rsyslog,
    /// rsyslog without parsers, and with a queue of large batches: the best that we know.
    RsyslogTuned,
    /// The same records through `rdkafka`'s own producer, from memory.
    Produce,
    /// The same bytes through the `io_uring` engine, and thrown away.
    Sink,
}

impl Subject {
    pub(crate) const ALL: [Self; 5] =
        [Self::Relay, Self::Rsyslog, Self::RsyslogTuned, Self::Produce, Self::Sink];

    /// As the report names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Rsyslog => "rsyslog",
            Self::RsyslogTuned => "rsyslog_tuned",
            Self::Produce => "floor_rdkafka",
            Self::Sink => "floor_io_uring",
        }
    }
}
