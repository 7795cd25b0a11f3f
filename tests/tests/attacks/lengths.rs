//! Requests of which two servers could think that they end in different places.

use super::http::{BAD, Case, OK, Statuses};
use super::table::{CHAT, CHATS, request};

/// A request that must not be answered: it is inside of another one.
const INSIDE: &str = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";

pub(super) fn post(headers: &str, body: &str) -> Vec<u8> {
    request(&format!("POST {CHATS} HTTP/1.1"), &format!("Content-Type: application/json\r\n{headers}"), body)
}

pub(super) fn lengths() -> Vec<Case> {
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

pub(super) fn chunks() -> Vec<Case> {
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
