//! What is measured.

/// Who handles the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The relay: receive, frame, associate, produce.
    Relay,
    /// rsyslog: imptcp to omkafka.
    Rsyslog,
    /// The same records through `rdkafka`'s own producer, from memory.
    Produce,
    /// The same bytes through the `io_uring` engine, and thrown away.
    Sink,
}

impl Subject {
    pub(crate) const ALL: [Self; 4] = [Self::Relay, Self::Rsyslog, Self::Produce, Self::Sink];

    /// As the report names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Rsyslog => "rsyslog",
            Self::Produce => "floor_rdkafka",
            Self::Sink => "floor_io_uring",
        }
    }
}
