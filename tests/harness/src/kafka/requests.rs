//! What no client library here asks of a broker: rights, quotas, elections and passwords. Requests as the Kafka
//! protocol guide has them, in versions without tagged fields where there are some.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_wire::primitive::{NO_TAGS, Reader, put_str, put_unsigned};
use millrace_wire::sasl::{Mechanism, salted_password};

const PATIENCE: Duration = Duration::from_secs(20);
const MOST_BYTES: usize = 1 << 20;
const CREATE_ACLS: (i16, i16) = (30, 1);
const DELETE_ACLS: (i16, i16) = (31, 1);
const ELECT_LEADERS: (i16, i16) = (43, 1);
const ALTER_CLIENT_QUOTAS: (i16, i16) = (49, 0);
const ALTER_USER_SCRAM_CREDENTIALS: (i16, i16) = (51, 0);

/// What a right is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read records, or join and commit.
    Read,
    /// Write records.
    Write,
    /// Make topics.
    Create,
    /// Add partitions.
    Alter,
    /// Look.
    Describe,
}

/// A right of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// Of what kind the thing is.
    pub resource: Resource,
    /// Its name, or how its name begins.
    pub name: String,
    /// Whether the name is only the beginning.
    pub is_prefix: bool,
    /// What is allowed.
    pub operation: Operation,
}

impl Right {
    /// For the thing with this name.
    pub fn new(resource: Resource, name: impl Into<String>, operation: Operation) -> Self {
        Self { resource, name: name.into(), is_prefix: false, operation }
    }

    /// For all whose names begin like this.
    pub fn on_prefix(resource: Resource, name: impl Into<String>, operation: Operation) -> Self {
        Self { is_prefix: true, ..Self::new(resource, name, operation) }
    }

    fn resource_code(&self) -> u8 {
        match self.resource {
            Resource::Topic => 2,
            Resource::Group => 3,
        }
    }

    fn operation_code(&self) -> u8 {
        match self.operation {
            Operation::Read => 3,
            Operation::Write => 4,
            Operation::Create => 5,
            Operation::Alter => 7,
            Operation::Describe => 8,
        }
    }
}

/// Allows a user these.
pub fn allow(broker: &str, user: &str, rights: &[Right]) -> Result<()> {
    let mut body = count(rights.len())?;
    for right in rights {
        entry(&mut body, user, right)?;
    }
    let answer = ask(broker, CREATE_ACLS, &body)?;
    // throttle_time_ms, and of each its error and the message.
    let mut rest = answer.get(8..).context("a short answer")?;
    for right in rights {
        let (code, text) = (number(&mut rest)?, string(&mut rest)?);
        ensure!(code == 0, "the broker does not allow {right:?}: error {code} ({text})");
    }
    Ok(())
}

/// Takes one of them back.
pub fn forbid(broker: &str, user: &str, right: &Right) -> Result<()> {
    let mut body = count(1)?;
    entry(&mut body, user, right)?;
    let answer = ask(broker, DELETE_ACLS, &body)?;
    let mut rest = answer.get(8..).context("a short answer")?;
    let (code, text) = (number(&mut rest)?, string(&mut rest)?);
    ensure!(code == 0, "the broker does not take back {right:?}: error {code} ({text})");
    let taken = rest.first_chunk().map(|bytes| i32::from_be_bytes(*bytes));
    ensure!(taken == Some(1), "{taken:?} rights were taken back for {right:?}");
    Ok(())
}

/// Sets how many bytes a second clients with this name may write, or takes the quota away.
pub fn set_write_quota(broker: &str, client: &str, bytes_per_second: Option<f64>) -> Result<()> {
    let mut body = count(1)?;
    body.extend(count(1)?);
    put(&mut body, "client-id")?;
    put(&mut body, client)?;
    body.extend(count(1)?);
    put(&mut body, "producer_byte_rate")?;
    body.extend(bytes_per_second.unwrap_or_default().to_be_bytes());
    body.push(u8::from(bytes_per_second.is_none()));
    // Not only to see whether it would be taken.
    body.push(0);
    let answer = ask(broker, ALTER_CLIENT_QUOTAS, &body)?;
    let mut rest = answer.get(8..).context("a short answer")?;
    let (code, text) = (number(&mut rest)?, string(&mut rest)?);
    ensure!(code == 0, "the broker does not set the quota: error {code} ({text})");
    Ok(())
}

/// Has any replica that lives lead a partition, whatever it lacks.
pub fn elect_unclean(broker: &str, topic: &str, partition: i32) -> Result<()> {
    const UNCLEAN: u8 = 1;
    let mut body = vec![UNCLEAN];
    body.extend(count(1)?);
    put(&mut body, topic)?;
    body.extend(count(1)?);
    body.extend(partition.to_be_bytes());
    body.extend(i32::try_from(PATIENCE.as_millis())?.to_be_bytes());
    let answer = ask(broker, ELECT_LEADERS, &body)?;
    let mut rest = answer.get(4..).context("a short answer")?;
    let code = number(&mut rest)?;
    ensure!(code == 0, "no election: error {code}");
    // One topic with its name, and of it one partition.
    let mut rest = rest.get(4..).context("a short answer")?;
    string(&mut rest)?;
    let mut rest = rest.get(8..).context("a short answer")?;
    let (code, text) = (number(&mut rest)?, string(&mut rest)?);
    ensure!(code == 0, "{topic} [{partition}] has no new leader: error {code} ({text})");
    Ok(())
}

/// Has a broker know a user by this password, with a mechanism of the SCRAM family.
pub fn set_password(broker: &str, mechanism: Mechanism, user: &str, password: &str) -> Result<()> {
    const ROUNDS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
    const SALT: &[u8] = b"a salt of the tests";
    let salted = salted_password(mechanism, password, SALT, ROUNDS);
    let salted = salted.with_context(|| format!("{mechanism} knows no salt"))?;
    // The header's tags; nothing to delete, and one to set.
    let mut body = vec![NO_TAGS, 1, 2];
    put_str(&mut body, user);
    body.push(if mechanism == Mechanism::ScramSha256 { 1 } else { 2 });
    body.extend(ROUNDS.get().to_be_bytes());
    for bytes in [SALT, &salted] {
        put_unsigned(&mut body, bytes.len() as u64 + 1);
        body.extend_from_slice(bytes);
    }
    body.extend([NO_TAGS, NO_TAGS]);
    let answer = ask(broker, ALTER_USER_SCRAM_CREDENTIALS, &body)?;
    let mut reader = Reader::new(&answer);
    reader.skip_tags()?;
    reader.i32()?;
    ensure!(reader.array_length()? == 1, "an answer about one user was expected");
    reader.compact_str()?;
    let (code, text) = (reader.i16()?, reader.compact_str()?);
    ensure!(code == 0, "the broker does not take the password: error {code} ({text:?})");
    Ok(())
}

/// A right, in a request to make it and in one to find it.
fn entry(body: &mut Vec<u8>, user: &str, right: &Right) -> Result<()> {
    const ALLOW: u8 = 3;
    body.push(right.resource_code());
    put(body, &right.name)?;
    body.push(if right.is_prefix { 4 } else { 3 });
    put(body, &format!("User:{user}"))?;
    put(body, "*")?;
    body.extend([right.operation_code(), ALLOW]);
    Ok(())
}

fn count(length: usize) -> Result<Vec<u8>> {
    Ok(i32::try_from(length)?.to_be_bytes().to_vec())
}

fn put(body: &mut Vec<u8>, text: &str) -> Result<()> {
    body.extend(i16::try_from(text.len())?.to_be_bytes());
    body.extend(text.as_bytes());
    Ok(())
}

fn number(rest: &mut &[u8]) -> Result<i16> {
    let (bytes, behind) = rest.split_first_chunk().context("a short answer")?;
    *rest = behind;
    Ok(i16::from_be_bytes(*bytes))
}

fn string(rest: &mut &[u8]) -> Result<String> {
    // -1: none.
    let length = usize::try_from(number(rest)?).unwrap_or_default();
    let (text, behind) = rest.split_at_checked(length).context("a short answer")?;
    *rest = behind;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Asks one broker and returns the answer behind its correlation id.
fn ask(broker: &str, (api, version): (i16, i16), body: &[u8]) -> Result<Vec<u8>> {
    const CORRELATION: i32 = 1;
    let mut request = Vec::new();
    request.extend(api.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(CORRELATION.to_be_bytes());
    put(&mut request, "tests")?;
    request.extend(body);
    let mut stream =
        TcpStream::connect(broker).with_context(|| format!("no broker at {broker}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&count(request.len())?)?;
    stream.write_all(&request)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size).context("the broker closes the connection")?;
    let size = usize::try_from(i32::from_be_bytes(size))?;
    ensure!((4..=MOST_BYTES).contains(&size), "an answer of {size} bytes");
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    Ok(answer.split_off(4))
}
