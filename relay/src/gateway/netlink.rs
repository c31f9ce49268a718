//! Questions to the kernel over netlink(7): one request, one answer.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// Headers of a message (`struct nlmsghdr`) and of an attribute (`struct nlattr`).
const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Longer than what the kernel says of a device.
const ANSWER_BYTES: usize = 32 << 10;

/// A socket in the network namespace of the calling thread.
pub(super) fn socket(protocol: Option<Protocol>) -> std::io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?)
}

/// A request, to which attributes can be added.
pub(super) struct Request(Vec<u8>);

impl Request {
    /// One of this type, which begins with the header of its family.
    pub(super) fn new(kind: u16, header: &[u8]) -> Self {
        let mut message = vec![0; 4];
        message.extend(kind.to_ne_bytes());
        message.extend(NLM_F_REQUEST.to_ne_bytes());
        // Sequence number and port: one question at a time.
        message.extend([0; 8]);
        message.extend(header);
        Self(message)
    }

    /// With one more attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("a short value");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// As it is sent.
    fn bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a short message");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Sends a request, and gives what the answer has behind its header; `None` if there is nothing of that
/// name, which the kernel says by one of the errors `absent`.
pub(super) fn ask(
    socket: &OwnedFd,
    request: Request,
    absent: &[Errno],
) -> std::io::Result<Option<Vec<u8>>> {
    send(socket, &request.bytes(), SendFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES];
    let (_, length) = recv(socket, answer.as_mut_slice(), RecvFlags::empty())?;
    body(&answer[..length.min(ANSWER_BYTES)], absent)
}

fn body(answer: &[u8], absent: &[Errno]) -> std::io::Result<Option<Vec<u8>>> {
    let body = answer.get(MESSAGE_HEADER..).ok_or_else(malformed)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR {
        let code = body.first_chunk().ok_or_else(malformed)?;
        let errno = Errno::from_raw_os_error(-i32::from_ne_bytes(*code));
        return if absent.contains(&errno) { Ok(None) } else { Err(errno.into()) };
    }
    Ok(Some(body.to_vec()))
}

/// What is made of an answer that has less than it should.
pub(super) fn malformed() -> std::io::Error {
    std::io::Error::other("malformed netlink answer")
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if u16::from_ne_bytes([c, d]) == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others() {
        let mut attributes = Vec::new();
        attributes.extend([5, 0, 9, 0, 1, 0, 0, 0]);
        attributes.extend([6, 0, 1, 0, 7, 8, 0, 0]);
        assert_eq!(attribute(&attributes, 1), Some(&[7, 8][..]));
        assert_eq!(attribute(&attributes, 9), Some(&[1][..]));
        assert_eq!(attribute(&attributes, 2), None);
    }

    #[test]
    fn a_malformed_attribute_ends_the_search() {
        for bytes in [&[0u8, 0, 1, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 5], &[4, 0]] {
            assert_eq!(attribute(bytes, 1), None);
        }
    }

    #[test]
    fn a_request_has_its_length_and_its_attributes() {
        let request = Request::new(18, &[7; 16]).with(3, b"lo\0").with(46, &[1, 0, 0, 0]).bytes();
        assert_eq!(request.len(), MESSAGE_HEADER + 16 + 8 + 8);
        assert_eq!(request[..4], 48_u32.to_ne_bytes());
        let attributes = &request[MESSAGE_HEADER + 16..];
        assert_eq!(attribute(attributes, 3), Some(&b"lo\0"[..]));
        assert_eq!(attribute(attributes, 46), Some(&[1, 0, 0, 0][..]));
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error_and_one_that_refuses_may_say_that_nothing_is_there() {
        let mut answer = Request::new(NLMSG_ERROR, &(-19_i32).to_ne_bytes()).bytes();
        assert!(body(&answer, &[Errno::NODEV]).unwrap().is_none());
        assert!(body(&answer, &[]).is_err());
        answer.truncate(MESSAGE_HEADER + 3);
        for length in [0, 6, MESSAGE_HEADER - 1, MESSAGE_HEADER + 3] {
            assert!(body(&answer[..length], &[Errno::NODEV]).is_err(), "{length}");
        }
    }
}
