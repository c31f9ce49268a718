//! The codec of HTTP beside another implementation, Python's h11, which is of other descent: whatever
//! the relay takes, the other must read in the same way. Where the relay refuses, that is well.
//!
//! `corpus/http` has hostile requests; further ones are made from them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use millrace_harness::dice::Dice;
use millrace_harness::fuzz::generate;
use millrace_harness::fuzz::http::{Connection, header};
use millrace_harness::system::paths;
use serde::Deserialize;

/// What h11 finds wrong, and why the relay does not.
const EXCEPTIONS: &[(&str, &str)] = &[(
    "no request line received",
    "RFC 9112 section 2.2: a server should ignore at least one empty line before a request",
)];
/// What the relay does not pass on.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const GENERATED: u64 = 20_000;

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Request {
    method: String,
    target: String,
    version: String,
    headers: Vec<(String, String)>,
    body: String,
}

#[derive(Debug, Deserialize)]
struct Reading {
    requests: Vec<Request>,
    error: Option<String>,
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/http");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.len() > 50, "the corpus is there");
    files
}

fn read_by_h11(streams: &[&[u8]]) -> Vec<Reading> {
    let peer = paths::peer("h11_reader.py");
    let mut child = Command::new("/usr/bin/python3")
        .arg(peer)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let readings = std::thread::scope(|scope| {
        scope.spawn(move || {
            for stream in streams {
                input.write_all(&u32::try_from(stream.len()).unwrap().to_be_bytes()).unwrap();
                input.write_all(stream).unwrap();
            }
        });
        let lines = BufReader::new(output).lines();
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect::<Vec<_>>()
    });
    assert!(child.wait().unwrap().success(), "is Debian's python3-h11 there?");
    assert_eq!(readings.len(), streams.len());
    readings
}

/// The whole requests that the codec takes, each answered at once.
fn read_by_relay(stream: &[u8]) -> Vec<Request> {
    let mut connection = Connection::new(1024);
    connection.receive(stream);
    for number in 1.. {
        let before = connection.records().count() as u64;
        if number > before {
            break;
        }
        connection.reply(number, b"");
    }
    let latin = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let requests = connection.records().map(|(headers, payload)| {
        let text = |name| latin(header(headers, name).expect("a whole request has it"));
        let fields = headers.iter().filter_map(|(name, value)| {
            let value = String::from_utf8(value.clone()).expect("what stands in a record is text");
            Some((name.strip_prefix("http.header.")?.to_owned(), value))
        });
        Request {
            method: text("http.method"),
            target: text("http.target"),
            version: text("http.version"),
            headers: fields.collect(),
            body: latin(payload),
        }
    });
    requests.collect()
}

/// What a value is whose bytes these are: UTF-8, or ISO-8859-1.
fn text(value: &str) -> String {
    let bytes = value.chars().map(|byte| u8::try_from(byte).expect("h11 gives bytes"));
    String::from_utf8(bytes.collect()).unwrap_or_else(|_| value.to_owned())
}

/// The fields that h11 has seen, less those that end at the relay.
fn passed_on(request: &mut Request) {
    let named: Vec<String> = request
        .headers
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| {
            value.split(',').map(|option| option.trim_ascii().to_ascii_lowercase())
        })
        .collect();
    request
        .headers
        .retain(|(name, _)| !HOP_BY_HOP.contains(&name.as_str()) && !named.contains(name));
    request.headers.iter_mut().for_each(|(_, value)| *value = text(value));
}

/// What is wrong with the two readings of a stream, and whether there was something to compare.
fn compare(stream: &[u8], mut other: Reading) -> Result<bool, String> {
    other.requests.iter_mut().for_each(passed_on);
    let ours = read_by_relay(stream);
    for (index, request) in ours.iter().enumerate() {
        match other.requests.get(index) {
            Some(same) if same == request => {}
            Some(different) => {
                return Err(format!("the relay reads {request:?}, h11 {different:?}"));
            }
            None => {
                // h11 never keeps a connection of HTTP/1.0, whatever the client wants.
                let old = index > 0 && ours[index - 1].version == "1.0";
                let error = other.error.as_deref().unwrap_or_default();
                if !old && !EXCEPTIONS.iter().any(|(excused, _)| error.contains(excused)) {
                    return Err(format!("h11 does not read {request:?}: {error}"));
                }
                return Ok(true);
            }
        }
    }
    Ok(!ours.is_empty())
}

#[test]
fn hostile_requests_are_refused_or_read_alike() {
    let corpus = corpus();
    let streams: Vec<&[u8]> = corpus.iter().map(|(_, stream)| stream.as_slice()).collect();
    let mut compared = 0;
    for ((name, stream), other) in corpus.iter().zip(read_by_h11(&streams)) {
        match compare(stream, other) {
            Ok(some) => {
                // The name says what is expected of the relay.
                let refused = !some;
                assert_eq!(refused, name.starts_with("bad_"), "{name} is refused: {refused}");
                compared += u32::from(some);
            }
            Err(problem) => panic!("{name}: {problem}"),
        }
    }
    assert!(compared > 10, "only {compared} were read by both");
}

#[test]
fn generated_requests_are_refused_or_read_alike() {
    let corpus: Vec<Vec<u8>> = corpus().into_iter().map(|(_, stream)| stream).collect();
    let inputs: Vec<Vec<u8>> = (0..GENERATED)
        .map(|seed| {
            let mut input = Vec::new();
            generate(&mut Dice::new(seed), &corpus, &mut input);
            input
        })
        .collect();
    let streams: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let mut compared = 0;
    for (stream, other) in streams.iter().zip(read_by_h11(&streams)) {
        match compare(stream, other) {
            Ok(some) => compared += u32::from(some),
            Err(problem) => panic!("{problem}; the stream is\n{}", stream.escape_ascii()),
        }
    }
    assert!(compared > 500, "only {compared} of {GENERATED} were read by both");
}
