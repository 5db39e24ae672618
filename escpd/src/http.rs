//! The small HTTP server for /metrics and /healthz.
//!
//! Whoever can reach the address may ask; nobody can hold it: a connection answers one request, lives a few
//! seconds, and at the bound on connections the oldest goes, so a scraper always gets its turn.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Largest head of a request, in bytes; the least that hyper allows.
const MAX_HEAD: usize = 8192;
/// Most headers of a request.
const MAX_HEADERS: usize = 32;
/// Time for the head of a request to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a connection as a whole: a page of metrics is a few KiB.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an error of accept(2), which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The text format of Prometheus, as its documentation names it.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is served.
pub(crate) trait Site: Send + Sync + 'static {
    /// The metrics in the text format, or why there are none.
    fn metrics(&self) -> Result<String, String>;

    /// `Ok` while new sessions are taken; else one word why not.
    fn health(&self) -> Result<(), &'static str>;
}

/// Serves `site` until the future is dropped, which closes every connection.
pub(crate) async fn serve(listener: TcpListener, site: Arc<dyn Site>) {
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("cannot accept a connection for metrics: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= MAX_CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        oldest_first.push_back(connections.spawn(answer(stream, Arc::clone(&site))));
    }
}

async fn answer(stream: TcpStream, site: Arc<dyn Site>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &*site);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // However it ends, nobody is left who could be told.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond(method: &Method, path: &str, site: &dyn Site) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/healthz") {
        return text(StatusCode::NOT_FOUND, "not found: try /metrics or /healthz\n".to_owned());
    }
    if method != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    if path == "/healthz" {
        return match site.health() {
            Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        };
    }
    match site.metrics() {
        Ok(metrics) => {
            let mut response = text(StatusCode::OK, metrics);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EXPOSITION));
            response
        }
        Err(why) => {
            tracing::warn!("no metrics: {why}");
            text(StatusCode::INTERNAL_SERVER_ERROR, "no metrics: see the log\n".to_owned())
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fixed(Result<(), &'static str>);

    impl Site for Fixed {
        fn metrics(&self) -> Result<String, String> {
            Ok("escp_up 1\n".to_owned())
        }

        fn health(&self) -> Result<(), &'static str> {
            self.0
        }
    }

    async fn start(health: Result<(), &'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(Fixed(health))));
        address
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn two_pages_and_one_method() {
        let address = start(Ok(())).await;
        let metrics = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
        assert!(metrics.ends_with("\r\n\r\nescp_up 1\n"), "{metrics}");
        for (request, status) in [
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200"),
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("GET /metrics/../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", "405"),
            ("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request).await;
            assert!(answer.split(' ').nth(1) == Some(status), "{request:?}: {answer}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
        assert!(!ask(address, &long).await.contains("200 OK"));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(!ask(address, &many).await.contains("200 OK"));
    }

    #[tokio::test]
    async fn a_daemon_that_drains_says_so() {
        let answer = ask(start(Err("draining")).await, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"), "{answer}");
    }

    #[tokio::test]
    async fn slow_clients_hold_nothing() {
        let address = start(Ok(())).await;
        let mut slow = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /met").await.unwrap();
            slow.push(stream);
        }
        let begun = Instant::now();
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.contains("200 OK"), "{answer}");
        assert!(begun.elapsed() < HEAD_TIMEOUT, "{:?}", begun.elapsed());
        // And the slow ones are gone soon.
        let mut last = slow.pop().unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(2 * HEAD_TIMEOUT, last.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open");
    }
}
