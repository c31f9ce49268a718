//! The HTTP server of the metrics: one resource, and a bound for everything that a client may do.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

use super::sheet::Format;

/// Connections that are served at once; further ones wait in the kernel.
const MOST_CONNECTIONS: usize = 16;
/// Time for a connection: its request, the metrics, and the sending of the answer.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Of a request's line and fields.
const MOST_HEAD_BYTES: usize = 16 << 10;
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;

/// Makes the metrics.
pub(super) trait Source: Clone + Send + Sync + 'static {
    /// In a format. None if that cannot be done any more.
    fn metrics(&self, format: Format) -> impl Future<Output = Option<String>> + Send;
}

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, source: impl Source) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    // One scrape at a time, whoever asks.
    let turn = Arc::new(Mutex::new(()));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // For example while too many files are open. Clients wait meanwhile.
            Err(error) => {
                tracing::warn!(%error, "no scrape can be accepted now; retrying");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (source, turn) = (source.clone(), turn.clone());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_TIME, connection(stream, source, turn)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, source: impl Source, turn: Arc<Mutex<()>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (source, turn) = (source.clone(), turn.clone());
        async move { Ok::<_, Infallible>(answer(&request, &source, &turn).await) }
    });
    // A scraper connects again a while later: a connection that is kept would only take a place.
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MOST_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scrape failed");
    }
}

async fn answer(request: &Request<Incoming>, source: &impl Source, turn: &Mutex<()>) -> Answer {
    if request.uri().path() != "/metrics" {
        return words(
            StatusCode::NOT_FOUND,
            "there is nothing here; the metrics are at /metrics\n",
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused =
            words(StatusCode::METHOD_NOT_ALLOWED, "the metrics can only be read: use GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let format = wanted(request.headers());
    let _turn = turn.lock().await;
    match source.metrics(format).await {
        Some(text) => with_type(StatusCode::OK, format.content_type(), text),
        None => words(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping\n"),
    }
}

fn words(status: StatusCode, text: &'static str) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// The format that a client would rather have (RFC 9110 section 12.5.1). Whoever does not say, or wants
/// something else, gets the one that everybody reads.
fn wanted(headers: &HeaderMap) -> Format {
    let (mut open, mut text) = (0.0_f32, 0.0_f32);
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1.0_f32, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.parse().unwrap_or(0.0),
                "version" => version = Some(value),
                _ => {}
            }
        }
        match &*kind {
            "application/openmetrics-text" if matches!(version, None | Some("1.0.0")) => {
                open = open.max(quality);
            }
            "text/plain" if matches!(version, None | Some("0.0.4")) => text = text.max(quality),
            "text/*" | "*/*" => text = text.max(quality),
            _ => {}
        }
    }
    if open > 0.0 && open >= text { Format::OpenMetrics } else { Format::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &[&'static str]) -> Format {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, HeaderValue::from_static(value));
        }
        wanted(&headers)
    }

    #[test]
    fn the_format_is_the_one_that_is_preferred() {
        for (accept, expected) in [
            (&[][..], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/html"], Format::Text),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["application/openmetrics-text; version=2.0.0"], Format::Text),
            (&["application/openmetrics-text;q=0"], Format::Text),
            (&["text/plain, application/openmetrics-text;q=0.9"], Format::Text),
            (&["text/plain;q=0.5", "application/openmetrics-text;q=0.9"], Format::OpenMetrics),
            (&["APPLICATION/OpenMetrics-Text;Version=\"1.0.0\""], Format::OpenMetrics),
            (&["application/openmetrics-text;q=nonsense, */*;q=0.1"], Format::Text),
            // Prometheus 2.42
            (
                &["application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                   version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
                Format::OpenMetrics,
            ),
            // Prometheus 3
            (
                &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                   application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
                   escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1"],
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(format(accept), expected, "{accept:?}");
        }
    }
}
