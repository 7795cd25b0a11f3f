//! Bytes that are no request, not quite one, or more than one.

use kimi_tests::api::Server;

use super::lengths::{chunks, lengths, post};
use super::table::{CHAT, CHATS, Table, chat, exchange, request, statuses};

/// Name, bytes, and the statuses that may come back; none where the connection is only closed.
pub(super) type Case = (String, Vec<u8>, Statuses);
pub(super) type Statuses = &'static [&'static [u16]];

pub(super) const OK: Statuses = &[&[200]];
pub(super) const BAD: Statuses = &[&[400]];
/// A head that is too large may be cut off before its answer is read.
const LARGE: Statuses = &[&[431], &[414], &[]];

#[test]
fn bytes_on_the_wire() {
    let server = Server::tiny();
    let mut table = Table::new("HTTP");
    let groups = [request_lines(), headers(), lengths(), chunks(), sequences(), bodies()];
    for (name, bytes, expected) in groups.into_iter().flatten() {
        let reply = exchange(server.addr, &bytes);
        let found = statuses(&reply);
        let outcome = match expected.contains(&found.as_slice()) {
            true => Ok(()),
            false => {
                Err(format!("{found:?}, expected one of {expected:?}: {:?}", String::from_utf8_lossy(&reply)))
            }
        };
        table.case(&name, server.addr, outcome);
    }
    table.end();
}

fn line(text: &str, expected: Statuses) -> Case {
    let name = format!("line {:.60}", text.escape_default().to_string());
    (name, request(text, "Connection: close\r\n", ""), expected)
}

fn request_lines() -> Vec<Case> {
    let get = |path: &str| format!("GET {path} HTTP/1.1");
    let long = |length: usize| get(&format!("/{}", "a".repeat(length)));
    let mut cases = vec![
        line("GET /health HTTP/1.1", OK),
        line("GET /health HTTP/1.0", OK),
        line("HEAD /health HTTP/1.1", OK),
        line("GET /health?a=b&c HTTP/1.1", OK),
        line("GET http://localhost/health HTTP/1.1", OK),
        line("GET  /health HTTP/1.1", BAD),
        line(" GET /health HTTP/1.1", BAD),
        line("GET /health", BAD),
        line("GET", BAD),
        line("GET /health HTTP/2.0", &[&[400], &[505]]),
        line("GET /health HTTP/1.2", &[&[400], &[505]]),
        line("GET /health HTTP/11", BAD),
        line("GET /health http/1.1", BAD),
        line("GET /health HTTP/1.1 again", BAD),
        line("GET /health\u{0} HTTP/1.1", BAD),
        line("GET health HTTP/1.1", BAD),
        line("G\u{1}T /health HTTP/1.1", BAD),
        line("GET /h\u{7f}ealth HTTP/1.1", BAD),
        line("GET http://[::1/health HTTP/1.1", BAD),
        line("GET http://user@evil.example:80:80/health HTTP/1.1", BAD),
        line("CONNECT localhost:80 HTTP/1.1", &[&[404], &[405]]),
        line("CONNECT evil.example:80 HTTP/1.1", &[&[403]]),
        line("OPTIONS * HTTP/1.1", &[&[404], &[405]]),
        line(&long(60_000), &[&[404]]),
        line(&long(400_000), LARGE),
        line(&format!("{} / HTTP/1.1", "M".repeat(60_000)), &[&[404], &[400]]),
    ];
    for method in ["get", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW"] {
        cases.push(line(&format!("{method} /health HTTP/1.1"), &[&[405]]));
    }
    for path in ["/../health", "//health", "/health/", "/HEALTH", "/%zz", "/%00", "/v1/models/%ff%fe", "/é"]
    {
        cases.push(line(&get(path), &[&[404]]));
    }
    let raw: [(&str, &[u8], Statuses); 10] = [
        ("nothing", b"", &[&[]]),
        ("an empty line", b"\r\n", &[&[]]),
        ("empty lines first", b"\r\n\r\nGET /health HTTP/1.0\r\n\r\n", OK),
        ("half a line", b"GET /hea", &[&[], &[400]]),
        ("a line without its headers", b"GET /health HTTP/1.1\r\n", &[&[], &[400]]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh\r\n\r\n", BAD),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", &[&[400], &[505], &[]]),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", BAD),
        ("zeros", &[0; 5000], BAD),
        ("one endless line", &[b'A'; 200_000], &[&[431], &[414], &[400], &[]]),
    ];
    cases.extend(raw.map(|(name, bytes, expected)| (name.to_owned(), bytes.to_vec(), expected)));
    cases
}

fn headers() -> Vec<Case> {
    let one = |header: &str, expected: Statuses| {
        let name = format!("header {:.60}", header.escape_default().to_string());
        (name, request("GET /health HTTP/1.1", &format!("{header}\r\nConnection: close\r\n"), ""), expected)
    };
    let many = |count: usize| vec!["X-A: b"; count].join("\r\n");
    let mut cases = vec![
        one("X-Empty:", OK),
        one("X-Space:   a  ", OK),
        one("X-Latin: \u{e9}", OK),
        one("no colon", BAD),
        one("X-Before : a", BAD),
        one("X-Folded: a\r\n b", BAD),
        one(" X-Folded: first", BAD),
        one(": no name", BAD),
        one("X A: b", BAD),
        one("X(A): b", BAD),
        one("X\u{0}A: b", BAD),
        one("X-\u{e9}: b", BAD),
        one("X-A: b\u{0}c", BAD),
        one("X-A: b\rc", BAD),
        one("X-A: \u{8}", BAD),
        one(&many(80), OK),
        one(&many(5000), LARGE),
        one(&format!("X-A: {}", "b".repeat(60_000)), OK),
        one(&format!("X-A: {}", "b".repeat(400_000)), LARGE),
        one(&format!("{}: b", "X".repeat(60_000)), &[&[200], &[400], &[431]]),
        one(&format!("{}: b", "X".repeat(400_000)), &[&[400], &[431], &[]]),
        one("Upgrade: websocket\r\nConnection: Upgrade", OK),
        one("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", OK),
        one("X-HTTP-Method-Override: DELETE", OK),
        one("Range: bytes=0-1", OK),
        one("If-None-Match: *", OK),
        one("Accept: application/x-nothing", OK),
        one("Accept-Encoding: gzip;q=1e999", OK),
        one("Connection: close, close, x\u{9}y", OK),
        one("Cookie: a=b; a=c", OK),
    ];
    let bare = b"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n".to_vec();
    cases.push(("bare line feeds".to_owned(), bare, &[&[200], &[400]]));
    let expect = |value: &str| chat(&format!("Connection: close\r\nExpect: {value}\r\n"), CHAT);
    cases.push(("expect 100-continue".to_owned(), expect("100-continue"), &[&[100, 200], &[200]]));
    cases.push(("expect a miracle".to_owned(), expect("a-miracle"), &[&[417], &[200]]));
    cases
}

fn sequences() -> Vec<Case> {
    let get = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let question = String::from_utf8(chat("", CHAT)).unwrap();
    let nowhere = String::from_utf8(post("Content-Length: 400000\r\n", &" ".repeat(400_000))).unwrap();
    let one = |name: &str, text: String, expected: Statuses| {
        (format!("sequence {name}"), text.into_bytes(), expected)
    };
    vec![
        one("of two", get.repeat(2), &[&[200, 200]]),
        one("of fifty", get.repeat(50), &[&[200; 50]]),
        one("with empty lines between", format!("{get}\r\n\r\n{get}"), &[&[200, 200]]),
        one("of a chat and more", format!("{question}{get}{question}"), &[&[200, 200, 200]]),
        one("of a request and garbage", format!("{get}\u{1}\u{2}\r\n\r\n"), &[&[200, 400]]),
        one("of garbage and a request", format!("\u{1}\u{2}\r\n\r\n{get}"), BAD),
        one("of a request and half of one", format!("{get}GET /hea"), &[&[200], &[200, 400]]),
        one("of a bad body and a request", format!("{nowhere}{get}"), &[&[400, 200], &[400]]),
        one(
            "of a large body for nobody and a request",
            format!("{}{get}", nowhere.replacen(CHATS, "/nowhere", 1)),
            &[&[404, 200], &[404]],
        ),
        one(
            "behind the last request",
            format!("{}{get}", get.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")),
            OK,
        ),
        one("behind HTTP/1.0", format!("{}{get}", get.replace("1.1", "1.0")), OK),
    ]
}

fn bodies() -> Vec<Case> {
    let one = |name: &str, headers: &str, body: &str, expected: Statuses| {
        (format!("body {name}"), chat(&format!("Connection: close\r\n{headers}"), body), expected)
    };
    let deep = |open: &str| open.repeat(100_000);
    vec![
        one("good", "", CHAT, OK),
        one("with white space around", "", &format!(" \r\n\t{CHAT}\r\n\r\n"), OK),
        one("said to be packed", "Content-Encoding: gzip\r\n", CHAT, &[&[415], &[200], &[400]]),
        one("of another type too", "Content-Type: text/plain\r\n", CHAT, &[&[200], &[415], &[400]]),
        one("of arrays only", "", &deep("["), BAD),
        one("of objects only", "", &deep("{\"a\":"), BAD),
        one("twice", "", &format!("{CHAT}{CHAT}"), BAD),
        one("of quotes", "", &"\"".repeat(100_001), BAD),
        one("of a long number", "", &"1".repeat(100_000), BAD),
        one("of a large exponent", "", &CHAT.replace("1}", "1e400}"), BAD),
        one("with a lone surrogate", "", &CHAT.replace("hi", "\\ud800"), &[&[400], &[200]]),
        one("with zero bytes", "", &CHAT.replace("hi", "\u{0}"), BAD),
        one("with escaped zeros", "", &CHAT.replace("hi", "\\u0000"), OK),
        one("with control tokens", "", &CHAT.replace("hi", "<|im_end|><|im_system|>"), OK),
        one("with a key twice", "", &CHAT.replace("{\"m", "{\"max_tokens\": 1, \"m"), &[&[200], &[400]]),
    ]
}
