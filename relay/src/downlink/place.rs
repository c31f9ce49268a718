//! Where a run begins to read the downlink, and where it goes on if the log is not what it was.
//!
//! An offset means something in one log only. So the log's id (Kafka's topic id, KIP-516) stands beside
//! the committed offset ([`crate::undelivered::note`]): a topic that was deleted and made again has another one, and
//! its first records may well have offsets below the former log's.

use crate::model::reasons;

reasons! {
    /// What is wrong with the place at which the downlink should be read on.
    Break {
        /// Nobody has committed an offset, or the cluster has forgotten it, and there are records.
        Forgotten = "offset_forgotten",
        /// The topic was deleted and made again.
        MadeAnew = "made_anew",
        /// The log ends before the offset: a broker has lost the rest, or an old copy was restored.
        TailLost = "tail_lost",
        /// Retention has deleted records that were not read.
        Deleted = "deleted",
    }
}

/// What is found about the place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// How far the log was read, if that is known.
    pub(crate) read: Option<i64>,
    /// The log in which that counts, if it is known.
    pub(crate) log_read: Option<String>,
    /// The log that is there, if the cluster says so.
    pub(crate) log: Option<String>,
    /// Its oldest offset.
    pub(crate) oldest: i64,
    /// The offset behind its newest record.
    pub(crate) end: i64,
}

/// Where to read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: i64,
    /// What is wrong, and how many records that is about; not 0.
    pub(crate) wrong: Option<(Break, u64)>,
}

impl Found {
    /// Where to read on. What nobody is known to have read is read, though some of it may have been:
    /// a reply may come twice, and none is passed over. Except behind the end of a log that has lost
    /// its tail: what is left of it was read.
    pub(crate) fn place(&self) -> Place {
        let Self { oldest, end, .. } = *self;
        let count = |from: i64, to: i64| u64::try_from(to.saturating_sub(from)).unwrap_or_default();
        let wrong =
            |start, what, records: u64| Place { start, wrong: Some((what, records.max(1))) };
        let is_other = self.log_read.is_some() && self.log.is_some() && self.log_read != self.log;
        match self.read {
            None if oldest < end => wrong(oldest, Break::Forgotten, count(oldest, end)),
            None => Place { start: oldest, wrong: None },
            Some(_) if is_other => wrong(oldest, Break::MadeAnew, count(oldest, end)),
            Some(read) if read > end => wrong(end, Break::TailLost, count(end, read)),
            Some(read) if read < oldest => wrong(oldest, Break::Deleted, count(read, oldest)),
            Some(read) => Place { start: read, wrong: None },
        }
    }
}

/// Says it, so that nobody can pass over it.
pub(crate) fn tell(place: Place, found: &Found, topic: &str, partition: i32) {
    let Some((what, records)) = place.wrong else { return };
    let (start, read) = (place.start, found.read);
    match what {
        Break::Forgotten => tracing::error!(
            topic,
            partition,
            start,
            records,
            "the cluster has no committed offset of this relay, but its partition has records: \
             the relay reads them from the oldest on, and those that were handled before become \
             dead letters, or are sent again to clients that come back. The group or the topic is \
             new or was deleted, or the relay was down for longer than the brokers keep offsets \
             (offsets.retention.minutes)"
        ),
        Break::MadeAnew => tracing::error!(
            topic,
            partition,
            start,
            records,
            read,
            "the topic was deleted and recreated since the relay last read it: the relay reads it \
             from its beginning, and what it had not read of the former topic is lost"
        ),
        Break::TailLost => tracing::error!(
            topic,
            partition,
            start,
            records,
            read,
            "the partition ends before what the relay has read of it: the relay reads on from the \
             end that exists. The cluster has lost records (an unclean election, a broker without \
             its data, an old copy); replies among them that waited for their clients are lost"
        ),
        Break::Deleted => tracing::error!(
            topic,
            partition,
            start,
            records,
            read,
            "retention has deleted records that this relay had not read: their replies are lost. The \
             topic's retention.ms or retention.bytes is too small for how long the relay was away"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(read: Option<i64>, oldest: i64, end: i64) -> Found {
        Found { read, oldest, end, ..Found::default() }
    }

    #[test]
    fn a_place_that_is_there_is_taken_without_a_word() {
        for (read, oldest, end, start) in
            [(Some(5), 0, 9, 5), (Some(9), 0, 9, 9), (Some(3), 3, 3, 3), (None, 4, 4, 4)]
        {
            let place = Place { start, wrong: None };
            assert_eq!(found(read, oldest, end).place(), place);
        }
    }

    #[test]
    fn each_break_is_told_and_the_safe_side_taken() {
        for (read, start, wrong) in [
            (None, 10, (Break::Forgotten, 10)),
            (Some(25), 20, (Break::TailLost, 5)),
            (Some(7), 10, (Break::Deleted, 3)),
        ] {
            assert_eq!(found(read, 10, 20).place(), Place { start, wrong: Some(wrong) });
        }
    }

    #[test]
    fn another_log_is_read_from_its_beginning_wherever_the_offset_would_be() {
        let log = |name: &str| Some(name.to_owned());
        for read in [0, 15, 100] {
            let found = Found { log_read: log("a"), log: log("b"), ..found(Some(read), 0, 20) };
            let wrong = Some((Break::MadeAnew, 20));
            assert_eq!(found.place(), Place { start: 0, wrong });
        }
        // As long as one of them is not known, it passes for the same.
        for (log_read, log) in [(None, log("b")), (log("a"), None), (log("a"), log("a"))] {
            let found = Found { log_read, log, ..found(Some(15), 0, 20) };
            assert_eq!(found.place(), Place { start: 15, wrong: None });
        }
    }
}
