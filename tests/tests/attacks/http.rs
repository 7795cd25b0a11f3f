//! Bytes that are no request, not quite one, or more than one.

use kimi_tests::api::Server;

use super::table::{CHAT, CHATS, Table, chat, exchange, request, statuses};

/// Name, bytes, and the statuses that may come back; none where the connection is only closed.
type Case = (String, Vec<u8>, Statuses);
type Statuses = &'static [&'static [u16]];

const OK: Statuses = &[&[200]];
const BAD: Statuses = &[&[400]];
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

/// A request that must not be answered: it is inside of another one.
const INSIDE: &str = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn post(headers: &str, body: &str) -> Vec<u8> {
    request(&format!("POST {CHATS} HTTP/1.1"), &format!("Content-Type: application/json\r\n{headers}"), body)
}

fn lengths() -> Vec<Case> {
    let length = CHAT.len();
    let one = |name: &str, headers: &str, body: &str, expected: Statuses| {
        (format!("length {name}"), post(&format!("Connection: close\r\n{headers}"), body), expected)
    };
    let of =
        |value: &str, expected: Statuses| one(value, &format!("Content-Length: {value}\r\n"), CHAT, expected);
    let both = |te: &str| format!("Content-Length: {length}\r\nTransfer-Encoding: {te}\r\n");
    let chunked = format!("{length:x}\r\n{CHAT}\r\n0\r\n\r\n");
    vec![
        one("none", "", "", &[&[400], &[411]]),
        one("none, with a body", "", CHAT, &[&[400], &[411]]),
        of("0", BAD),
        of("5", BAD),
        of(&(length + 1).to_string(), BAD),
        of("1000000", BAD),
        of("33554433", &[&[413]]),
        of("9999999999999999999", &[&[413], &[400]]),
        of("18446744073709551616", BAD),
        of("-1", BAD),
        of("+5", BAD),
        of("0x10", BAD),
        of("1e2", BAD),
        of("5.0", BAD),
        of("", BAD),
        of("many", BAD),
        of("5 5", BAD),
        of("5, 6", BAD),
        of("\u{0665}", BAD),
        one("twice, the same", &format!("Content-Length: {length}\r\n").repeat(2), CHAT, &[&[200], &[400]]),
        one("twice, another", &format!("Content-Length: {length}\r\nContent-Length: 5\r\n"), CHAT, BAD),
        one("and chunked", &both("chunked"), &chunked, &[&[400], &[200]]),
        one("and chunked, which it is not", &both("chunked"), CHAT, BAD),
        one("encoding identity", "Transfer-Encoding: identity\r\n", CHAT, &[&[400], &[501]]),
        one("encoding gzip", "Transfer-Encoding: gzip\r\n", CHAT, &[&[400], &[501]]),
        one("chunked, then gzip", "Transfer-Encoding: chunked, gzip\r\n", &chunked, &[&[400], &[501]]),
        one("encoding xchunked", "Transfer-Encoding: xchunked\r\n", &chunked, &[&[400], &[501]]),
        one("encoding \"chunked\"", "Transfer-Encoding: \"chunked\"\r\n", &chunked, &[&[400], &[501]]),
        one("encoding of nothing", "Transfer-Encoding:\r\n", CHAT, &[&[400], &[501]]),
        one("encoding CHUNKED", "Transfer-Encoding: CHUNKED\r\n", &chunked, OK),
        one(
            "encodings chunked and identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            &chunked,
            &[&[400], &[501]],
        ),
        (
            "length chunked in HTTP/1.0".to_owned(),
            request(
                &format!("POST {CHATS} HTTP/1.0"),
                "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
                &chunked,
            ),
            &[&[400], &[501]],
        ),
        (
            "length of a GET".to_owned(),
            request("GET /health HTTP/1.1", &format!("Content-Length: {}\r\n", INSIDE.len()), INSIDE),
            OK,
        ),
        (
            "length of a GET that is too long".to_owned(),
            request("GET /health HTTP/1.1", "Content-Length: 100000\r\n", INSIDE),
            OK,
        ),
        // Two readings of where a request ends: the one inside must not be answered.
        (
            "length 0 and chunked".to_owned(),
            post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &format!("{chunked}{INSIDE}")),
            &[&[400], &[200]],
        ),
        (
            "chunked and a length behind it".to_owned(),
            post(&both("chunked"), &format!("0\r\n\r\n{INSIDE}")),
            BAD,
        ),
        (
            "an encoding with a space before its colon".to_owned(),
            post(
                &format!("Content-Length: {}\r\nTransfer-Encoding : chunked\r\n", 5 + INSIDE.len()),
                &format!("0\r\n\r\n{INSIDE}"),
            ),
            BAD,
        ),
        (
            "an encoding on a second line".to_owned(),
            post("Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n", &format!("0\r\n\r\n{INSIDE}")),
            BAD,
        ),
        (
            "an encoding behind a vertical tab".to_owned(),
            post("Content-Length: 5\r\nTransfer-Encoding: \u{b}chunked\r\n", &format!("0\r\n\r\n{INSIDE}")),
            BAD,
        ),
        (
            "a length with a bare carriage return".to_owned(),
            post("Content-Length: 5\rTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{INSIDE}")),
            BAD,
        ),
    ]
}

fn chunks() -> Vec<Case> {
    let length = CHAT.len();
    let one = |name: &str, body: &str, expected: Statuses| {
        let headers = "Connection: close\r\nTransfer-Encoding: chunked\r\n";
        (format!("chunks {name}"), post(headers, body), expected)
    };
    let (first, second) = CHAT.split_at(20);
    let whole = |size: &str| format!("{size}\r\n{CHAT}\r\n0\r\n\r\n");
    let single: String = CHAT.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    vec![
        one("two", &format!("14\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", second.len()), OK),
        one("of one byte", &format!("{single}0\r\n\r\n"), OK),
        one("capital size", &whole(&format!("{length:X}")), OK),
        one("size with zeros", &whole(&format!("000{length:x}")), OK),
        one("with an extension", &whole(&format!("{length:x};a=\"b\"")), OK),
        one("with a trailer", &format!("{length:x}\r\n{CHAT}\r\n0\r\nX-A: b\r\n\r\n"), OK),
        one(
            "with a length as trailer",
            &format!("{length:x}\r\n{CHAT}\r\n0\r\nContent-Length: 3\r\n\r\n"),
            OK,
        ),
        one("none", "0\r\n\r\n", BAD),
        one("no end", &format!("{length:x}\r\n{CHAT}\r\n"), BAD),
        one("no end of the end", &format!("{length:x}\r\n{CHAT}\r\n0\r\n"), BAD),
        one("no size", &whole(""), BAD),
        one("size in letters", &whole("many"), BAD),
        one("size -1", &whole("-1"), BAD),
        one("size +5", &whole("+5"), BAD),
        one("size 0x5", &whole("0x5"), BAD),
        one("size with a space first", &whole(&format!(" {length:x}")), BAD),
        one("size of 17 digits", &whole("fffffffffffffffff"), BAD),
        one("size of 16 digits", &whole("ffffffffffffffff"), &[&[400], &[413]]),
        one("too short", &whole(&format!("{:x}", length - 1)), BAD),
        one("too long", &whole(&format!("{:x}", length + 1)), BAD),
        one("no line end behind", &format!("{length:x}\r\n{CHAT}0\r\n\r\n"), BAD),
        one("bare line feeds", &format!("{length:x}\n{CHAT}\n0\n\n"), &[&[400], &[200]]),
        one("an endless extension", &whole(&format!("{length:x};{}", "a".repeat(200_000))), &[&[400], &[]]),
        one(
            "many extensions",
            &format!("{}0\r\n\r\n", format!("1;{}\r\n \r\n", "a".repeat(1000)).repeat(100)),
            BAD,
        ),
        one(
            "endless trailers",
            &format!("{length:x}\r\n{CHAT}\r\n0\r\n{}\r\n", "X-A: b\r\n".repeat(20_000)),
            &[&[400], &[]],
        ),
        one("a trailer that is none", &format!("{length:x}\r\n{CHAT}\r\n0\r\nno colon\r\n\r\n"), BAD),
        one("garbage", &"\u{1}\u{2}\u{3}".repeat(1000), BAD),
    ]
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
