//! What is measured.

use millrace_harness::clients::speech::Speech;

/// Who handles the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The relay: receive, frame, associate, produce.
    Relay,
    /// The relay of another commit.
    Former,
    /// rsyslog: imptcp to omkafka, everything else as it comes.
    Rsyslog,
    /// rsyslog without parsers, and with a queue of large batches: the best that we know.
    RsyslogTuned,
    /// The same records through `rdkafka`'s own producer, from memory.
    Produce,
    /// The same bytes through the `io_uring` engine, and thrown away.
    Sink,
    /// The relay, whose clients speak so.
    Speaking(Speech),
    /// The same with a server that answers each message.
    Answered(Speech),
}

impl Subject {
    /// As the report names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Former => "against",
            Self::Rsyslog => "rsyslog",
            Self::RsyslogTuned => "rsyslog_tuned",
            Self::Produce => "floor_rdkafka",
            Self::Sink => "floor_io_uring",
            Self::Speaking(speech) | Self::Answered(speech) => speech.name(),
        }
    }

    /// What its clients speak.
    pub(crate) const fn speech(self) -> Speech {
        match self {
            Self::Speaking(speech) | Self::Answered(speech) => speech,
            _ => Speech::Lines,
        }
    }
}

/// Subjects that are compared with each other. The first of them is what the others stand beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The relay beside rsyslog and the floors.
    Peers,
    /// The relay beside that of another commit.
    Commits,
    /// Protocols, messages to the server only.
    Protocols,
    /// Protocols, each message answered.
    RoundTrips,
}

impl Comparison {
    pub(crate) const fn subjects(self) -> &'static [Subject] {
        use Speech::{Http, Lines, Mqtt, MqttQos1, WebSocket};
        use Subject::{Answered, Former, Produce, Relay, Rsyslog, RsyslogTuned, Sink, Speaking};
        match self {
            Self::Peers => &[Relay, Rsyslog, RsyslogTuned, Produce, Sink],
            Self::Commits => &[Relay, Former],
            Self::Protocols => {
                &[Speaking(Lines), Speaking(WebSocket), Speaking(Mqtt), Speaking(MqttQos1)]
            }
            // A request of HTTP without a response is nothing that there is.
            Self::RoundTrips => {
                &[Answered(Lines), Answered(WebSocket), Answered(Mqtt), Answered(Http)]
            }
        }
    }
}
