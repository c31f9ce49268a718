//! The head of a response, and what a server may put there.

use std::time::{Duration, Instant, SystemTime};

use crate::Unencodable;
use millrace_model::{Decimal, Headers};

use super::head::{ends_here, is_token_byte};
use super::refused::Refused;

/// Fields that are the relay's to write.
const OWN: [&[u8]; 2] = [b"content-length", b"date"];
const FIELD: &[u8] = b"http.header.";
/// When to come again after a 503, in seconds.
const RETRY_AFTER: &[u8] = b"retry-after: 5\r\n";

/// How the client knows where a response's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none, whatever the head says.
    Nothing,
    /// So many bytes, less those that were written.
    Known(u64),
    /// It says so at its end.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// What follows the response on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Another one, which goes without saying.
    Usual,
    /// Another one, which a client of HTTP/1.0 must be told.
    KeepAlive,
    /// Nothing.
    Close,
}

/// What the headers of a server's record say.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
    date: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> Parsed<'a> {
    /// Refuses what would not be a response, or would be more than one.
    pub(super) fn new(headers: Headers<'a>) -> Result<Self, Unencodable> {
        let status = match headers.get(c"http.status") {
            None => 200,
            Some([a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                [a, b, c].iter().fold(0, |status, digit| status * 10 + u16::from(**digit - b'0'))
            }
            Some(_) => return Err(Unencodable),
        };
        // The connection stays one of HTTP.
        if status == 101 {
            return Err(Unencodable);
        }
        let mut parsed = Self { status, content_length: None, date: None, headers };
        for (name, value) in fields(headers) {
            if name.is_empty()
                || !name.iter().all(|byte| is_token_byte(*byte))
                || !value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
            {
                return Err(Unencodable);
            }
            if name.eq_ignore_ascii_case(b"content-length") {
                let length = Some(value).filter(|value| value.iter().all(u8::is_ascii_digit));
                let length = length.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                let Some(length) = length else { return Err(Unencodable) };
                if parsed.content_length.replace(length).is_some_and(|other| other != length) {
                    return Err(Unencodable);
                }
            } else if name.eq_ignore_ascii_case(b"date") {
                parsed.date = Some(value);
            }
        }
        Ok(parsed)
    }

    /// True if there can be no body (RFC 9110 section 6.4.1).
    pub(super) fn is_bodiless(&self) -> bool {
        matches!(self.status, 100..200 | 204 | 205 | 304)
    }

    /// Writes the head. `length` is what its Content-Length says.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        length: Option<u64>,
        framing: Framing,
        persistence: Persistence,
        date: &Date,
    ) {
        write_status(out, self.status);
        for (name, value) in fields(self.headers) {
            if !ends_here(name) && !OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                write_field(out, name, value);
            }
        }
        if self.status >= 200 {
            write_field(out, b"date", self.date.unwrap_or(&date.0));
            if let Some(length) = length {
                write_field(out, b"content-length", Decimal::new(length).as_bytes());
            }
            if framing == Framing::Chunked {
                write_field(out, b"transfer-encoding", b"chunked");
            }
            match persistence {
                Persistence::Usual => {}
                Persistence::KeepAlive => write_field(out, b"connection", b"keep-alive"),
                Persistence::Close => write_field(out, b"connection", b"close"),
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// The fields that a record's headers name.
fn fields(headers: Headers<'_>) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().filter_map(|(name, value)| Some((name.to_bytes().strip_prefix(FIELD)?, value)))
}

/// The relay's own answer, after which the connection is closed.
pub(super) fn write_refusal(out: &mut Vec<u8>, refused: Refused, head_only: bool, date: &Date) {
    write_status(out, refused.status);
    write_field(out, b"date", &date.0);
    write_field(out, b"content-type", b"text/plain; charset=utf-8");
    write_field(out, b"content-length", Decimal::new(refused.why.len() as u64 + 1).as_bytes());
    if refused.status == 503 {
        out.extend_from_slice(RETRY_AFTER);
    }
    write_field(out, b"connection", b"close");
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(refused.why.as_bytes());
        out.push(b'\n');
    }
}

/// Leave to send the body (RFC 9110 section 10.1.1).
pub(super) fn write_continue(out: &mut Vec<u8>) {
    write_status(out, 100);
    out.extend_from_slice(b"\r\n");
}

fn write_status(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(Decimal::new(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// What people read. Clients must not (RFC 9112 section 4), so the rare ones have none.
const fn phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// The two clocks at one moment, so that the time of day follows from the one that a codec is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    pub(super) const fn new(instant: Instant, time: SystemTime) -> Self {
        Self { instant, time }
    }

    pub(super) fn date(&self, now: Instant) -> Date {
        let time = self.time + now.saturating_duration_since(self.instant);
        Date::new(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

/// A time as HTTP has it (`IMF-fixdate`, RFC 9110 section 5.6.7).
#[derive(Debug)]
pub(super) struct Date(Vec<u8>);

impl Date {
    /// From the time since 1970.
    fn new(since: Duration) -> Self {
        const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
        let seconds = since.as_secs();
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Years that begin in March have the leap day at their end; 719468 days from the March of
        // the year 0 to 1970, 146097 in 400 years.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let year = era * 400 + year_of_era + u64::from(month >= 10);
        let (weekday, month) = (WEEKDAYS[index(days % 7)], MONTHS[index(month)]);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        Self(
            format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
                .into_bytes(),
        )
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            // The example of RFC 9110 section 5.6.7.
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_102_444_800, "Fri, 01 Jan 2100 00:00:00 GMT"),
        ] {
            let date = Date::new(Duration::from_secs(seconds));
            assert_eq!(String::from_utf8(date.0).unwrap(), text);
        }
    }
}
