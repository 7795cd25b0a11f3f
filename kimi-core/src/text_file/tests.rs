use serde_json::Value;

use super::*;

const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n";

fn utf16(text: &str, mark: bool) -> Vec<u8> {
    let mark = mark.then_some('\u{feff}').into_iter();
    mark.chain(text.chars()).flat_map(|c| (c as u16).to_le_bytes()).collect()
}

#[test]
fn a_byte_order_mark_is_stripped() {
    assert_eq!(json_text(b"\xef\xbb\xbf{}"), Ok(&b"{}"[..]));
    assert_eq!(from_json::<Value>(b"\xef\xbb\xbf [1] \n"), Ok(serde_json::json!([1])));
    assert_eq!(text(b"\xef\xbb\xbf"), Err(NotText::Empty));
}

#[test]
fn each_kind_of_file_is_named_with_what_to_do() {
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["is empty"]),
        (b" \n".to_vec(), &["is empty"]),
        (vec![0; 700], &["zeros", "download it again"]),
        (LFS.into(), &["Git LFS pointer", "5.0 GB", "git lfs pull", "hf download"]),
        (b"/annex/objects/SHA256E-s1--2\n".to_vec(), &["git-annex pointer", "git annex get"]),
        (b"../../blobs/4d7a21".to_vec(), &["symbolic link", "../../blobs/4d7a21", "rsync -rL"]),
        (
            b"<!doctype html><html><head><title>429 Too Many Requests</title>".to_vec(),
            &["web page", "429 Too Many Requests", "download it again"],
        ),
        (b"\n <HTML><body>".to_vec(), &["web page"]),
        (
            b"<?xml version='1'?><Error><Message>Access Denied</Message>".to_vec(),
            &["XML page", "Access Denied"],
        ),
        (b"Entry not found".to_vec(), &["server's answer", "Entry not found"]),
        (b"{\\rtf1\\ansi {\"peers\": {}}}".to_vec(), &["rich text", "Make Plain Text"]),
        (utf16("{\"peers\": {}}", true), &["UTF-16", "save it again as UTF-8"]),
        (utf16("{\"peers\": {}}", false), &["UTF-16", "save it again as UTF-8"]),
        (b"\xff\xfe\0\0{\0\0\0".to_vec(), &["UTF-32"]),
        (b"\x1f\x8b\x08\0".to_vec(), &["gzip", "gunzip"]),
        (b"PK\x03\x04..".to_vec(), &["zip"]),
        (b"GGUF\x03\0\0\0".to_vec(), &["GGUF", "safetensors"]),
        (b"\0\x05\x16\x07\0\x02".to_vec(), &["AppleDouble", "delete it"]),
        (b"\x10\0\0\0\0\0\0\0{\"a\": {}}".to_vec(), &["safetensors"]),
        (b"{\"a\": \"\xe4\"}".to_vec(), &["not UTF-8", "0xe4", "offset 7"]),
    ];
    for (bytes, parts) in cases {
        let message = from_json::<Value>(&bytes).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}

#[test]
fn each_mistake_in_json_is_named_with_its_line() {
    let cases = [
        ("{\n\u{201c}a\u{201d}: 1}", "line 2: \u{201c} is a typographic quotation mark"),
        ("{\"a\u{201d}: 1,\n\"b\": 2}", "line 1: \u{201d} is a typographic quotation mark"),
        ("{\"a\": 1,\n}", "line 2: a comma stands before }"),
        ("[1, 2,]", "line 1: a comma stands before ]"),
        ("{\n\n// the machines\n\"a\": 1}", "line 3: // begins a comment"),
        ("{/* a */}", "line 1: /* begins a comment"),
        ("# machines\n{}", "line 1: # begins a comment"),
        ("{'a': 1}", "line 1: ' marks a text"),
        ("{\"a\": True}", "line 1: True is not JSON; write true"),
        ("{\"a\": -Infinity}", "JSON has no infinity"),
        ("{\"a\": NaN}", "JSON has no NaN"),
        ("{a: 1}", "line 1: a stands without quotes; write \"a\""),
        ("{\"a\": 1\n\"b\": 2}", "line 2: a comma or a colon is missing"),
        ("{\"a\": 512 GB}", "line 1: a comma or a colon is missing"),
        ("{\"a\" 1}", "line 1: a comma or a colon is missing"),
        ("{}{}", "something follows the end"),
        ("{\"a\":\u{a0}1}", "U+00A0"),
        ("{\"a\": 1}\0\0\0", "zeros follow"),
        ("{\"a\": \"b\n}", "line 1: a text is not closed"),
        ("{\"a\": {\"b\": 1}", "ends too early, after 14 bytes"),
        ("{\"a\": \"b", "ends too early, after 8 bytes"),
        ("{\"a\": tru", "ends too early, after 9 bytes"),
        ("{\"a\": 01}", "line 1 column"),
    ];
    for (json, part) in cases {
        let message = from_json::<Value>(json.as_bytes()).unwrap_err().to_string();
        assert!(message.starts_with("is not JSON: ") && message.contains(part), "{json:?}: {message:?}");
    }
    let form = from_json::<Vec<u8>>(b"{}").unwrap_err();
    assert!(matches!(form, JsonError::Form(_)), "{form}");
}

#[test]
fn what_is_right_passes() {
    for good in
        ["{\"a\": \"\u{201c}it's // # ,}\\\" \u{201d}\", \"b\": [-1.5e3, true, null, {}]}", "3", "\"NaN\""]
    {
        from_json::<Value>(good.as_bytes()).unwrap();
        assert_eq!(lint::first_mistake(good), None, "{good}");
    }
    assert_eq!(recognize(b"\x10\0\0\0\0\0\0\0{\"a\": {}}"), None, "a shard is a shard");
    assert_eq!(text(b"SGVsbG8= 0\n"), Ok("SGVsbG8= 0\n"));
}

#[test]
fn nothing_panics() {
    let samples =
        [LFS, "<title>\u{201c}</title>", "{\"a\": \"\u{1f600}", "<html><title>", "\u{feff}", "\\", "\"\\"];
    for sample in samples {
        for end in 0..=sample.len() {
            let _ = from_json::<Value>(&sample.as_bytes()[..end]);
            let _ = recognize(&sample.as_bytes()[end..]);
        }
    }
}
