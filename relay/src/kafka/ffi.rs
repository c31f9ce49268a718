//! The one place that calls librdkafka itself.
//!
//! `rdkafka`'s own producer takes a C string of the topic's name for every record and wraps every
//! delivery report; here the topic is looked up once, and reports come in arrays. Of its asynchronous
//! commit nobody learns how it ended.
#![allow(unsafe_code)]

mod describe;
mod poll;
mod wait;

pub(crate) use describe::{
    DescribedGroup, DescribedTopic, IdQuestion, Operation, describe_group, describe_rights,
};

use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{IsError, KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;
use sys::rd_kafka_vtype_t as VType;

use crate::model::{HeaderList, Partition, weight_of};
use crate::ring::Wake;

use super::context::{Watched, data_throttled};

/// Headers of most records; those of some protocols have more.
const USUAL_HEADERS: usize = 8;
/// Topic, partition, flags, opaque, key, value, time.
const FIXED_ARGUMENTS: usize = 7;
/// Reports taken from an event at a time.
const REPORT_ARRAY: usize = 256;

/// What became of a record, or of several that follow each other with the same token. librdkafka reports them
/// one by one.
#[derive(Debug)]
pub(crate) struct NativeReport {
    pub(crate) partition: Partition,
    /// How many they are; one, if it was not delivered.
    pub(crate) records: u32,
    /// Of all of them: payload, and headers that are booked if the token says that there are any.
    pub(crate) booked_bytes: usize,
    pub(crate) token: u64,
    /// Where the first of them is; below 0 if it is nowhere, or the broker has not told.
    pub(crate) offset: i64,
    pub(crate) error: Option<(RDKafkaErrorCode, NativeRecord)>,
}

/// A record that was not delivered.
#[derive(Debug)]
pub(crate) struct NativeRecord {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

/// The value of a record's last header of this name. `rdkafka`'s own headers panic at a name that is
/// not UTF-8, which anybody may write.
pub(crate) fn header<'a>(message: &'a BorrowedMessage<'_>, name: &CStr) -> Option<&'a [u8]> {
    let (mut headers, mut value, mut size) = (std::ptr::null_mut(), std::ptr::null(), 0);
    // SAFETY: the message lives as long as the result; headers and value are its own.
    unsafe {
        if sys::rd_kafka_message_headers(message.ptr(), &raw mut headers).is_error()
            || sys::rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut size)
                .is_error()
        {
            return None;
        }
        Some(bytes_at(value, size))
    }
}

/// Adds all headers of a record to a list.
pub(crate) fn add_headers(message: &BorrowedMessage<'_>, list: &mut HeaderList) {
    // SAFETY: the message outlives this call.
    for (name, value) in unsafe { Headers::of(message.ptr()) } {
        list.push(name.to_bytes(), value);
    }
}

/// Asks for a commit. How it ends is told to the context's `commit_callback`, in a later poll.
pub(crate) fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    offsets: &TopicPartitionList,
) -> KafkaResult<()> {
    let client = consumer.client().native_ptr();
    // SAFETY: client and offsets outlive the call, which copies the offsets and holds the queue itself;
    // without a callback the result is an event of the queue, which the consumer's poll takes up.
    let error = unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(client);
        if queue.is_null() {
            return Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownGroup));
        }
        let nothing = std::ptr::null_mut();
        let error = sys::rd_kafka_commit_queue(client, offsets.ptr(), queue, None, nothing);
        sys::rd_kafka_queue_destroy(queue);
        error
    };
    if error.is_error() { Err(KafkaError::ConsumerCommit(error.into())) } else { Ok(()) }
}

/// Gives a client that has lost all brokers those of the configuration. To be called between its polls,
/// again and again: they tell of the loss, and it may be too early to give them anew.
pub fn rejoin<C: Watched>(client: &Client<C>) {
    let watch = client.context().watch();
    if !watch.has_lost() {
        return;
    }
    if let Some(brokers) = watch.to_rejoin(Instant::now()) {
        // SAFETY: the client lives, and librdkafka copies the list.
        let count = unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
        tracing::debug!(count, "a Kafka client had lost all brokers and was given them again");
    }
}

/// What comes when a partition is read.
#[derive(Debug)]
pub(crate) enum Look {
    /// A record.
    Readable,
    /// An error, and the offset that it is about.
    Failed {
        /// librdkafka's word.
        code: RDKafkaErrorCode,
        /// Where.
        offset: i64,
    },
}

/// The next record of a consumer's one partition, or why there is none and where; `rdkafka`'s own poll
/// does not tell the place. The record is thrown away.
pub(crate) fn look<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    patience: Duration,
) -> Option<Look> {
    let client = consumer.client().native_ptr();
    let patience = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client lives; queue, event and place are given back, and not used after that.
    unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(client);
        if queue.is_null() {
            return None;
        }
        let event = sys::rd_kafka_queue_poll(queue, patience);
        sys::rd_kafka_queue_destroy(queue);
        if event.is_null() {
            return None;
        }
        let found = match sys::rd_kafka_event_type(event) {
            sys::RD_KAFKA_EVENT_FETCH => Some(Look::Readable),
            sys::RD_KAFKA_EVENT_ERROR => {
                let code = sys::rd_kafka_event_error(event).into();
                let place = sys::rd_kafka_event_topic_partition(event);
                let offset = place.as_ref().map_or(-1, |place| place.offset);
                if !place.is_null() {
                    sys::rd_kafka_topic_partition_destroy(place);
                }
                Some(Look::Failed { code, offset })
            }
            _ => None,
        };
        sys::rd_kafka_event_destroy(event);
        found
    }
}

/// A record's headers, as librdkafka keeps them.
struct Headers<'a> {
    list: *const sys::rd_kafka_headers_t,
    next: usize,
    record: PhantomData<&'a [u8]>,
}

impl Headers<'_> {
    /// # Safety
    ///
    /// The record is valid for as long as `'a`, and its headers are not changed.
    unsafe fn of(record: *const sys::rd_kafka_message_t) -> Self {
        let mut list = std::ptr::null_mut();
        // SAFETY: as the caller promises. Without headers the pointer stays null.
        if unsafe { sys::rd_kafka_message_headers(record, &raw mut list) }.is_error() {
            list = std::ptr::null_mut();
        }
        Self { list, next: 0, record: PhantomData }
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a CStr, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.list.is_null() {
            return None;
        }
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the list is the record's, which lives; name and value are the list's, and the name
        // is a C string.
        unsafe {
            let found = sys::rd_kafka_header_get_all(
                self.list,
                self.next,
                &raw mut name,
                &raw mut value,
                &raw mut size,
            );
            self.next += 1;
            (!found.is_error()).then(|| (CStr::from_ptr(name), bytes_at(value, size)))
        }
    }
}

/// Bytes that librdkafka points to; none for null.
///
/// # Safety
///
/// `start` is null, or `size` bytes are there for as long as `'a`.
unsafe fn bytes_at<'a>(start: *const c_void, size: usize) -> &'a [u8] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(start.cast(), size) }
}

/// The value of an argument of `rd_kafka_produceva`.
type U = sys::rd_kafka_vu_s__bindgen_ty_1;

/// Writes to the waiter's eventfd (eventfd(2)) are eight bytes, the number to add.
static EVENT_INCREMENT: u64 = 1;

/// An event of librdkafka's, given back when it is dropped.
struct Event(NonNull<sys::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

/// librdkafka's word that a broker has throttled a request.
unsafe extern "C" fn on_throttle(
    _client: *mut sys::rd_kafka_t,
    broker: *const std::ffi::c_char,
    _id: i32,
    throttle_ms: std::ffi::c_int,
    _context: *mut c_void,
) {
    // SAFETY: librdkafka passes the broker's name as a C string.
    let broker = unsafe { CStr::from_ptr(broker) };
    data_throttled(&broker.to_string_lossy(), u64::try_from(throttle_ms).unwrap_or_default());
}

/// A producer for one topic.
pub(crate) struct NativeProducer<C: Watched> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    /// Of the record being produced; empty in between.
    arguments: Vec<sys::rd_kafka_vu_t>,
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// An event with reports that nobody had room for yet.
    unfinished: Option<Event>,
    /// Keeps the eventfd open for as long as librdkafka may write to it.
    _wake: Wake,
    /// Last, so that it is dropped after the two above were given back.
    client: Client<C>,
}

// SAFETY: librdkafka's handles may be used from any thread (INTRODUCTION.md, "Threads and
// callbacks"); the pointers here are such handles.
unsafe impl<C: Watched> Send for NativeProducer<C> {}

impl<C: Watched> NativeProducer<C> {
    /// Creates the producer; `wake`'s eventfd becomes readable when a report comes.
    pub(crate) fn new(
        config: &rdkafka::ClientConfig,
        context: C,
        topic: &str,
        wake: Wake,
    ) -> Result<Self, KafkaError> {
        let name = CString::new(topic)
            .map_err(|_| KafkaError::ClientCreation("a topic name has no NUL".to_owned()))?;
        let native = config.create_native_config()?;
        // SAFETY: a configuration that is ours alone and not yet used.
        unsafe {
            sys::rd_kafka_conf_set_events(
                native.ptr(),
                sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR | sys::RD_KAFKA_EVENT_LOG,
            );
            // No event of the queue: it is called from within the poll.
            sys::rd_kafka_conf_set_throttle_cb(native.ptr(), Some(on_throttle));
        }
        let client = Client::new(config, native, sys::rd_kafka_type_t::RD_KAFKA_PRODUCER, context)?;
        // SAFETY: the client lives; a null configuration means the client's default.
        let topic = unsafe {
            sys::rd_kafka_topic_new(client.native_ptr(), name.as_ptr(), std::ptr::null_mut())
        };
        let topic = NonNull::new(topic)
            .ok_or_else(|| KafkaError::ClientCreation(format!("no handle for topic {name:?}")))?;
        // SAFETY: the client lives; the queue is given back in `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_main(client.native_ptr()) };
        let queue = NonNull::new(queue)
            .ok_or_else(|| KafkaError::ClientCreation("no main queue".to_owned()))?;
        // SAFETY: the queue is valid; the payload is copied; the descriptor stays open as long as
        // `_wake`, which outlives the client.
        unsafe {
            sys::rd_kafka_queue_io_event_enable(
                queue.as_ptr(),
                wake.as_fd().as_raw_fd(),
                (&raw const EVENT_INCREMENT).cast(),
                size_of_val(&EVENT_INCREMENT),
            );
        }
        let arguments = Vec::with_capacity(FIXED_ARGUMENTS + USUAL_HEADERS);
        Ok(Self { topic, arguments, queue, unfinished: None, _wake: wake, client })
    }

    /// Enqueues a record; librdkafka copies key, value and headers.
    pub(crate) fn produce<'a>(
        &mut self,
        partition: Partition,
        key: &[u8],
        value: &[u8],
        unix_ms: i64,
        headers: impl Iterator<Item = (&'a CStr, &'a [u8])>,
        token: u64,
    ) -> Result<(), RDKafkaErrorCode> {
        let bytes = |slice: &[u8]| U {
            mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
                ptr: slice.as_ptr().cast_mut().cast(),
                size: slice.len(),
            },
        };
        let token = std::ptr::without_provenance_mut::<c_void>(
            usize::try_from(token).expect("a 64-bit machine"),
        );
        let arguments = &mut self.arguments;
        arguments.clear();
        arguments.reserve(FIXED_ARGUMENTS + USUAL_HEADERS);
        let mut push = |vtype, u| arguments.push(sys::rd_kafka_vu_t { vtype, u });
        push(VType::RD_KAFKA_VTYPE_RKT, U { rkt: self.topic.as_ptr() });
        push(VType::RD_KAFKA_VTYPE_PARTITION, U { i32_: i32::from(partition.0) });
        push(VType::RD_KAFKA_VTYPE_MSGFLAGS, U { i: sys::RD_KAFKA_MSG_F_COPY });
        push(VType::RD_KAFKA_VTYPE_OPAQUE, U { ptr: token });
        push(VType::RD_KAFKA_VTYPE_KEY, bytes(key));
        push(VType::RD_KAFKA_VTYPE_VALUE, bytes(value));
        push(VType::RD_KAFKA_VTYPE_TIMESTAMP, U { i64_: unix_ms });
        // `for_each` and not a loop: the chain of slices asks at each step which of them it is in.
        headers.for_each(|(name, value)| {
            let header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
                name: name.as_ptr(),
                val: value.as_ptr().cast(),
                size: value.len().cast_signed(),
            };
            push(VType::RD_KAFKA_VTYPE_HEADER, U { header });
        });
        // SAFETY: each argument's tag fits its union member, and everything pointed to lives until
        // the call returns; librdkafka copies it (MSG_F_COPY, rd_kafka_header_add). The error, if
        // any, is ours to destroy.
        unsafe {
            let (arguments, count) = (self.arguments.as_ptr(), self.arguments.len());
            let error = sys::rd_kafka_produceva(self.client.native_ptr(), arguments, count);
            if error.is_null() {
                return Ok(());
            }
            let code = sys::rd_kafka_error_code(error);
            sys::rd_kafka_error_destroy(error);
            Err(code.into())
        }
    }

    /// Takes the reports that have come, without waiting, for as long as there is `room` for what they
    /// tell; the rest stays with librdkafka. The number of events served. `weighed` says of a token
    /// whether the headers of its record are booked.
    pub(crate) fn poll(
        &mut self,
        room: impl Fn() -> bool,
        weighed: impl Fn(u64) -> bool,
        mut on_report: impl FnMut(NativeReport),
    ) -> usize {
        let mut events = 0;
        while room() {
            let next = self.unfinished.take().or_else(|| {
                // SAFETY: the queue is valid; an event is its taker's.
                NonNull::new(unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), 0) }).map(Event)
            });
            let Some(event) = next else { break };
            events += 1;
            // SAFETY: a valid event.
            match unsafe { sys::rd_kafka_event_type(event.0.as_ptr()) } {
                sys::RD_KAFKA_EVENT_DR => {
                    let whole = Self::take_reports(&event, &room, &weighed, &mut on_report);
                    self.unfinished = (!whole).then_some(event);
                }
                sys::RD_KAFKA_EVENT_LOG => self.take_log(event.0.as_ptr()),
                sys::RD_KAFKA_EVENT_ERROR => self.take_error(event.0.as_ptr()),
                _ => {}
            }
        }
        rejoin(&self.client);
        events
    }

    /// False if there was no room for all of them.
    fn take_reports(
        event: &Event,
        room: &impl Fn() -> bool,
        weighed: &impl Fn(u64) -> bool,
        on_report: &mut impl FnMut(NativeReport),
    ) -> bool {
        let mut messages = [std::ptr::null(); REPORT_ARRAY];
        while room() {
            // SAFETY: a valid delivery-report event and an array of the size given. Each call gives
            // those that follow the last one's.
            let count = unsafe {
                sys::rd_kafka_event_message_array(
                    event.0.as_ptr(),
                    messages.as_mut_ptr(),
                    REPORT_ARRAY,
                )
            };
            for message in &messages[..count] {
                // SAFETY: the first `count` are valid until the event is destroyed.
                let message = unsafe { &**message };
                let error = message.err.is_error().then(|| {
                    // SAFETY: a message of this event.
                    (message.err.into(), unsafe { Self::record_of(message) })
                });
                let token = message._private.addr() as u64;
                let mut booked_bytes = message.len;
                if weighed(token) {
                    // SAFETY: as above.
                    for (name, value) in unsafe { Headers::of(message) } {
                        booked_bytes += weight_of(name, value.len());
                    }
                }
                on_report(NativeReport {
                    // We produced it, with a partition that is a u16.
                    partition: Partition(u16::try_from(message.partition).unwrap_or(u16::MAX)),
                    records: 1,
                    booked_bytes,
                    token,
                    offset: message.offset,
                    error,
                });
            }
            if count < REPORT_ARRAY {
                return true;
            }
        }
        false
    }

    /// Copies a record out of its report.
    ///
    /// # Safety
    ///
    /// The message's event is not destroyed yet.
    unsafe fn record_of(message: &sys::rd_kafka_message_t) -> NativeRecord {
        let mut record = NativeRecord { key: Vec::new(), value: Vec::new(), headers: Vec::new() };
        // SAFETY: key, value and headers are the message's, which is valid.
        unsafe {
            record.key.extend_from_slice(bytes_at(message.key, message.key_len));
            record.value.extend_from_slice(bytes_at(message.payload, message.len));
            record.headers.extend(
                Headers::of(message)
                    .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_vec())),
            );
        }
        record
    }

    fn take_log(&self, event: *mut sys::rd_kafka_event_t) {
        let (mut facility, mut text, mut level) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: a valid log event; the strings live until it is destroyed.
        unsafe {
            if sys::rd_kafka_event_log(event, &raw mut facility, &raw mut text, &raw mut level) == 0
            {
                let text_of = |text| CStr::from_ptr(text).to_string_lossy();
                let level = match level {
                    0..=3 => rdkafka::config::RDKafkaLogLevel::Error,
                    4 => rdkafka::config::RDKafkaLogLevel::Warning,
                    5 | 6 => rdkafka::config::RDKafkaLogLevel::Info,
                    _ => rdkafka::config::RDKafkaLogLevel::Debug,
                };
                self.client.context().log(level, &text_of(facility), &text_of(text));
            }
        }
    }

    fn take_error(&self, event: *mut sys::rd_kafka_event_t) {
        // SAFETY: a valid error event; the string lives until it is destroyed.
        let (code, text) = unsafe {
            (
                sys::rd_kafka_event_error(event),
                CStr::from_ptr(sys::rd_kafka_event_error_string(event)).to_string_lossy(),
            )
        };
        self.client.context().error(KafkaError::Global(code.into()), &text);
    }

    /// The error after which this producer will never deliver anything again.
    pub(crate) fn fatal_error(&self) -> Option<String> {
        // SAFETY: the client lives; no text is asked for.
        let code =
            unsafe { sys::rd_kafka_fatal_error(self.client.native_ptr(), std::ptr::null_mut(), 0) };
        code.is_error().then(|| match self.client.fatal_error() {
            Some((code, reason)) => format!("{code}: {reason}"),
            None => RDKafkaErrorCode::from(code).to_string(),
        })
    }

    /// Gives up everything that is not acknowledged; each record is reported as purged.
    pub(crate) fn purge(&self) {
        // SAFETY: the client lives.
        unsafe {
            sys::rd_kafka_purge(
                self.client.native_ptr(),
                sys::RD_KAFKA_PURGE_F_QUEUE | sys::RD_KAFKA_PURGE_F_INFLIGHT,
            );
        }
    }
}

impl<C: Watched> Drop for NativeProducer<C> {
    fn drop(&mut self) {
        drop(self.unfinished.take());
        // SAFETY: both are ours and not used after this; the client, dropped next, waits for its
        // threads and so for the last write to the eventfd, which `_wake` or its clones keep open:
        // fields drop in order, but the pump holds a clone until it has dropped the producer.
        unsafe {
            sys::rd_kafka_queue_io_event_enable(self.queue.as_ptr(), -1, std::ptr::null(), 0);
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
            sys::rd_kafka_topic_destroy(self.topic.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rdkafka::Offset;
    use rdkafka::client::ClientContext;
    use rdkafka::config::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<KafkaResult<()>>>);

    impl ClientContext for Told {}

    impl ConsumerContext for Told {
        fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
            self.0.lock().expect("no panic").push(result);
        }
    }

    #[test]
    fn how_a_commit_ends_is_told() {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("topic", 1, 1).expect("a topic");
        let consumer: BaseConsumer<Told> = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "group")
            .create_with_context(Told::default())
            .expect("a consumer");
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("topic", 0, Offset::Offset(7)).expect("an offset");
        let end = |offsets| {
            commit(&consumer, offsets).expect("asked for");
            let asked = Instant::now();
            loop {
                assert!(consumer.poll(Duration::from_millis(100)).is_none());
                if let Some(result) = consumer.context().0.lock().expect("no panic").pop() {
                    return result;
                }
                assert!(asked.elapsed() < Duration::from_mins(1), "nothing is told");
            }
        };
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[refusal]);
        let refused = end(&offsets).expect_err("the first is refused");
        assert_eq!(refused, KafkaError::ConsumerCommit(RDKafkaErrorCode::GroupAuthorizationFailed));
        end(&offsets).expect("the second is not");
    }
}
