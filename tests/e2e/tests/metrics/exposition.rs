//! A scrape, as any client of HTTP makes it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// A request's status, fields, and body.
pub(crate) fn get(address: SocketAddr, path: &str, accept: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// All samples of a scrape in a format, by their name with its labels as they are written.
pub(crate) fn scrape(address: SocketAddr, accept: &str) -> Result<BTreeMap<String, f64>> {
    let (head, body) = get(address, "/metrics", accept)?;
    ensure!(head.starts_with("HTTP/1.0 200 ") || head.starts_with("HTTP/1.1 200 "), "{head}");
    let kind = if accept == OPEN_METRICS { OPEN_METRICS } else { "text/plain; version=0.0.4" };
    ensure!(head.to_ascii_lowercase().contains(&format!("content-type: {kind}")), "{head}");
    ensure!(body.ends_with("# EOF\n") == (accept == OPEN_METRICS), "its end is wrong");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}
