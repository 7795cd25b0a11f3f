//! A client of the HTTP API: enough to read a page and to stream an answer.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Most bytes of one event.
const MAX_EVENT: usize = 1 << 20;

/// Most bytes of a page.
const MAX_PAGE: usize = 8 << 20;

/// Status and body of `GET path`; `address` is host and port.
///
/// # Errors
/// If the server can't be reached, or does not answer in HTTP.
pub async fn get(address: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let socket = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", address).body(Full::new(Bytes::new()))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_PAGE).collect().await.map_err(anyhow::Error::from_boxed)?;
    Ok((head.status, body.to_bytes()))
}

/// A streamed answer.
pub struct Stream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

/// Asks for a chat completion. `request` should have `"stream": true`.
///
/// # Errors
/// If the server can't be reached or answers with an error, whose text is shown.
pub async fn chat(addr: SocketAddr, request: &Value) -> anyhow::Result<Stream> {
    let socket = TcpStream::connect(addr).await.with_context(|| format!("can't connect to {addr}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = Request::post("/v1/chat/completions")
        .header("host", addr.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(request)?)))?;
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        let text = body.collect().await?.to_bytes();
        anyhow::bail!("the server answered {}: {}", head.status, String::from_utf8_lossy(&text));
    }
    Ok(Stream { body, buffer: Vec::new() })
}

impl Stream {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// If the connection is lost, an event is not JSON, or the server sends an error.
    pub async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let Some(data) = line.trim().strip_prefix("data:") else { continue };
                if data.trim() == "[DONE]" {
                    return Ok(None);
                }
                let event: Value = serde_json::from_str(data).context("an event is not JSON")?;
                if let Some(error) = event.get("error") {
                    anyhow::bail!("the server reports: {}", error["message"].as_str().unwrap_or("an error"));
                }
                return Ok(Some(event));
            }
            anyhow::ensure!(self.buffer.len() <= MAX_EVENT, "an event is over {MAX_EVENT} bytes");
            match self.body.frame().await.transpose()? {
                Some(frame) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
                None => anyhow::bail!("the stream ended before the answer did"),
            }
        }
    }
}
