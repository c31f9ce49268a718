//! Asks the cluster to describe topics and groups, for what librdkafka's metadata does not tell.
//!
//! Their ids (KIP-516) say which log a name stands for now. librdkafka (2.12.1) reads on at the former
//! offset when a topic was deleted and made again, unless that is beyond the new log's end
//! (`rd_kafka_topic_metadata_update`, "an offset reset must be triggered"), so they must be asked for.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{IsError, KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka_sys as sys;

/// What one may do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Read,
    Write,
}

impl Operation {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
        }
    }
}

/// A topic as the cluster describes it.
#[derive(Clone, Debug)]
pub(crate) struct DescribedTopic {
    pub(crate) name: String,
    /// Why it is not described.
    pub(crate) error: Option<RDKafkaErrorCode>,
    /// None: it has none, or the brokers give topics none.
    pub(crate) id: Option<String>,
    /// What the client may do with it. None: it was not asked for, or is not told.
    pub(crate) operations: Option<Vec<Operation>>,
}

/// A consumer group as its coordinator describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DescribedGroup {
    /// Why it is not described.
    pub(crate) error: Option<RDKafkaErrorCode>,
    /// What the client may do with it. None: it is not told.
    pub(crate) operations: Option<Vec<Operation>>,
}

type Queue = *mut sys::rd_kafka_queue_t;

/// A question under way. It must not outlive the client that it was asked by.
struct Question(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's handles may be used from any thread (INTRODUCTION.md, "Threads and callbacks").
unsafe impl Send for Question {}

impl Question {
    /// Asks a broker, or whoever librdkafka takes for the right one; `put` puts the question, and may use
    /// the client, the options and the queue while it runs.
    fn ask<C: ClientContext>(
        client: &Client<C>,
        operation: sys::rd_kafka_admin_op_t,
        (broker, with_rights): (Option<i32>, bool),
        patience: Duration,
        put: impl FnOnce(*mut sys::rd_kafka_t, *const sys::rd_kafka_AdminOptions_t, Queue),
    ) -> Option<Self> {
        let rk = client.native_ptr();
        // SAFETY: the client lives; the options are destroyed behind the call that copies them; the queue is
        // ours, and given back in `drop`. An error of an option is null or ours to destroy, which
        // `rd_kafka_error_destroy` does for both.
        unsafe {
            let queue = NonNull::new(sys::rd_kafka_queue_new(rk))?;
            let options = sys::rd_kafka_AdminOptions_new(rk, operation);
            let (none, patience_ms) = (std::ptr::null_mut(), milliseconds(patience));
            sys::rd_kafka_AdminOptions_set_request_timeout(options, patience_ms, none, 0);
            if let Some(broker) = broker {
                sys::rd_kafka_AdminOptions_set_broker(options, broker, none, 0);
            }
            let rights = i32::from(with_rights);
            let error =
                sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, rights);
            sys::rd_kafka_error_destroy(error);
            put(rk, options, queue.as_ptr());
            sys::rd_kafka_AdminOptions_destroy(options);
            Some(Self(queue))
        }
    }

    fn about_topics<C: ClientContext>(
        client: &Client<C>,
        topics: &[&str],
        asked: (Option<i32>, bool),
        patience: Duration,
    ) -> Option<Self> {
        let topics: Vec<_> = topics.iter().filter_map(|name| CString::new(*name).ok()).collect();
        let mut names: Vec<_> = topics.iter().map(|name| name.as_ptr()).collect();
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        Self::ask(client, operation, asked, patience, |rk, options, queue| {
            // SAFETY: client, options and queue are valid, as `ask` says; the names are copied by the call,
            // and their collection destroyed behind it.
            unsafe {
                let topics =
                    sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
                sys::rd_kafka_DescribeTopics(rk, topics, options, queue);
                sys::rd_kafka_TopicCollection_destroy(topics);
            }
        })
    }

    fn about_group<C: ClientContext>(
        client: &Client<C>,
        group: &str,
        patience: Duration,
    ) -> Option<Self> {
        let group = CString::new(group).ok()?;
        let mut names = [group.as_ptr()];
        let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
        Self::ask(client, operation, (None, true), patience, |rk, options, queue| {
            // SAFETY: client, options and queue are valid, as `ask` says; the name is copied by the call.
            unsafe {
                sys::rd_kafka_DescribeConsumerGroups(rk, names.as_mut_ptr(), 1, options, queue);
            }
        })
    }

    /// The answer, if it has come within `patience`. `read` is given a valid event without an error.
    fn answer<T>(
        &self,
        patience: Duration,
        read: unsafe fn(*mut sys::rd_kafka_event_t) -> T,
    ) -> Option<KafkaResult<T>> {
        // SAFETY: the queue is valid; the event is ours until it is destroyed, and what it has is copied
        // before that.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.0.as_ptr(), milliseconds(patience));
            if event.is_null() {
                return None;
            }
            let error = sys::rd_kafka_event_error(event);
            let answer = if error.is_error() {
                Err(KafkaError::MetadataFetch(error.into()))
            } else {
                Ok(read(event))
            };
            sys::rd_kafka_event_destroy(event);
            Some(answer)
        }
    }

    /// # Safety
    ///
    /// A valid event.
    unsafe fn topics(event: *mut sys::rd_kafka_event_t) -> Vec<DescribedTopic> {
        // SAFETY: the event is valid, and what it points to lives as long; of each array the call before
        // has told the length.
        unsafe {
            let result = sys::rd_kafka_event_DescribeTopics_result(event);
            if result.is_null() {
                return Vec::new();
            }
            let mut count = 0;
            let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            if topics.is_null() {
                return Vec::new();
            }
            let topics = std::slice::from_raw_parts(topics, count);
            topics.iter().map(|topic| topic_of(*topic)).collect()
        }
    }

    /// # Safety
    ///
    /// A valid event.
    unsafe fn group(event: *mut sys::rd_kafka_event_t) -> Option<DescribedGroup> {
        // SAFETY: as in `topics`.
        unsafe {
            let result = sys::rd_kafka_event_DescribeConsumerGroups_result(event);
            if result.is_null() {
                return None;
            }
            let mut count = 0;
            let groups = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            if groups.is_null() || count == 0 {
                return None;
            }
            let group = *groups;
            let error = sys::rd_kafka_ConsumerGroupDescription_error(group);
            let error = sys::rd_kafka_error_code(error);
            let mut count = 0;
            let granted =
                sys::rd_kafka_ConsumerGroupDescription_authorized_operations(group, &raw mut count);
            Some(DescribedGroup {
                error: error.is_error().then(|| error.into()),
                operations: operations_of(granted, count),
            })
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

fn milliseconds(patience: Duration) -> i32 {
    i32::try_from(patience.as_millis()).unwrap_or(i32::MAX)
}

/// # Safety
///
/// A description that lives.
unsafe fn topic_of(topic: *const sys::rd_kafka_TopicDescription_t) -> DescribedTopic {
    // SAFETY: as the caller promises; names are C strings, and arrays as long as they say.
    unsafe {
        let text = |text: *const std::ffi::c_char| {
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let error = sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(topic));
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let has_id = !id.is_null()
            && (sys::rd_kafka_Uuid_most_significant_bits(id) != 0
                || sys::rd_kafka_Uuid_least_significant_bits(id) != 0);
        let mut count = 0;
        let granted = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        let operations = operations_of(granted, count);
        DescribedTopic {
            name: text(sys::rd_kafka_TopicDescription_name(topic)).unwrap_or_default(),
            error: error.is_error().then(|| error.into()),
            id: if has_id { text(sys::rd_kafka_Uuid_base64str(id)) } else { None },
            operations,
        }
    }
}

/// # Safety
///
/// Null, or an array of that length.
unsafe fn operations_of(
    granted: *const sys::rd_kafka_AclOperation_t,
    count: usize,
) -> Option<Vec<Operation>> {
    if granted.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    let granted = unsafe { std::slice::from_raw_parts(granted, count) };
    Some(granted.iter().filter_map(|granted| operation_of(*granted)).collect())
}

fn operation_of(operation: sys::rd_kafka_AclOperation_t) -> Option<Operation> {
    match operation {
        sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ => Some(Operation::Read),
        sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE => Some(Operation::Write),
        _ => None,
    }
}

/// Which of the topics are there, and what the client may do with them. Blocks.
pub(crate) fn describe_rights<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    broker: Option<i32>,
    patience: Duration,
) -> KafkaResult<Vec<DescribedTopic>> {
    let answer = Question::about_topics(client, topics, (broker, true), patience)
        .and_then(|question| question.answer(patience, Question::topics));
    answer.unwrap_or(Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut)))
}

/// What the client may do with a consumer group; none if that is not told. Blocks.
pub(crate) fn describe_group<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    patience: Duration,
) -> KafkaResult<Option<DescribedGroup>> {
    let answer = Question::about_group(client, group, patience)
        .and_then(|question| question.answer(patience, Question::group));
    answer.unwrap_or(Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut)))
}

/// The question for a topic's id. It must not outlive the client that it was asked by.
pub(crate) struct IdQuestion(Question);

impl IdQuestion {
    /// Asks a broker, or the controller; the answer comes within `patience`, or that there is none. None:
    /// it cannot be asked.
    pub(crate) fn ask<C: ClientContext>(
        client: &Client<C>,
        topic: &str,
        broker: Option<i32>,
        patience: Duration,
    ) -> Option<Self> {
        Question::about_topics(client, &[topic], (broker, false), patience).map(Self)
    }

    /// The answer, if it has come within `patience`: the id, unless the brokers give topics none.
    pub(crate) fn answer(&self, patience: Duration) -> Option<KafkaResult<Option<String>>> {
        let told = self.0.answer(patience, Question::topics)?;
        Some(told.and_then(|topics| match topics.into_iter().next() {
            Some(DescribedTopic { error: Some(code), .. }) => Err(KafkaError::MetadataFetch(code)),
            topic => Ok(topic.and_then(|topic| topic.id)),
        }))
    }
}
