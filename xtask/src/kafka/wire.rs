//! The only query that xtask itself sends to a broker: whether a broker serves at an address.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};

const METADATA: i16 = 3;
const METADATA_VERSION: i16 = 1;
const CORRELATION: i32 = 0x6d69_6c6c;
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Asks for the cluster's metadata without topics. Returns the number of brokers in service. A broker that
/// listens but is still fenced by its controller does not count itself, so a number above 0 means that
/// topics can be created and written.
///
/// Format: the Kafka protocol guide, Metadata request version 1 with request header version 1.
pub(crate) fn brokers_in_service(address: SocketAddr, timeout: Duration) -> Result<usize> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(&metadata_request())?;

    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let size = usize::try_from(i32::from_be_bytes(size))?;
    ensure!(
        (8..=MAX_ANSWER_BYTES).contains(&size),
        "not a Kafka broker: its answer has {size} bytes"
    );
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    broker_count(&answer)
}

fn metadata_request() -> Vec<u8> {
    let client = b"xtask";
    let mut body = Vec::new();
    body.extend(METADATA.to_be_bytes());
    body.extend(METADATA_VERSION.to_be_bytes());
    body.extend(CORRELATION.to_be_bytes());
    body.extend(i16::to_be_bytes(5));
    body.extend(client);
    body.extend(i32::to_be_bytes(0));
    let mut request = i32::try_from(body.len()).expect("a short request").to_be_bytes().to_vec();
    request.extend(body);
    request
}

fn broker_count(answer: &[u8]) -> Result<usize> {
    let field = |at: usize| answer[at..at + 4].try_into().map(i32::from_be_bytes);
    ensure!(field(0)? == CORRELATION, "not a Kafka broker: it answered something else");
    Ok(usize::try_from(field(4)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_carries_its_own_length() {
        let request = metadata_request();
        let length = i32::from_be_bytes(request[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), request.len() - 4);
    }

    #[test]
    fn only_the_answer_to_our_question_counts() {
        let mut answer = CORRELATION.to_be_bytes().to_vec();
        answer.extend(i32::to_be_bytes(1));
        assert_eq!(broker_count(&answer).unwrap(), 1);
        answer[0] ^= 1;
        assert!(broker_count(&answer).is_err());
    }
}
