//! Who may use the API, from where, and what every response carries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::io::Read;
use std::time::{Duration, Instant};

use kimi_server::api_keys::{self, ApiKey, Limits};
use kimi_server::http::{HttpConfig, Origin, ServedModel};
use kimi_tests::api::{PATIENCE, Reply, Server, request};
use kimi_tests::script::Script;
use serde_json::{Value, json};

fn serve(config: HttpConfig) -> Server {
    Server::start(vec![ServedModel::new(Script::default())], config)
}

fn with_key(limits: Limits) -> HttpConfig {
    HttpConfig { api_keys: vec![ApiKey::of_text("laptop", "secret", limits)], ..HttpConfig::default() }
}

fn chat_body() -> Vec<u8> {
    json!({"messages": [{"role": "user", "content": "hi"}]}).to_string().into_bytes()
}

/// A request with further headers.
fn send(server: &Server, head: &str, headers: &str) -> Reply {
    Reply::read(server.send(format!("{head} HTTP/1.0\r\n{headers}\r\n").as_bytes()))
}

fn chat(server: &Server, headers: &str) -> Reply {
    let text = String::from_utf8(request("/v1/chat/completions", &chat_body())).unwrap();
    Reply::read(server.send(text.replacen("\r\n", &format!("\r\n{headers}"), 1).as_bytes()))
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    reply.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn without_a_key_the_answer_is_401() {
    let server = serve(with_key(Limits::default()));
    for headers in ["", "Authorization: Bearer wrong\r\n", "X-Api-Key: wrong\r\n"] {
        let reply = chat(&server, headers);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"]), (401, &json!("invalid_api_key")));
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(header(&reply, "www-authenticate"), Some("bearer realm=\"kimi\""));
        assert!(header(&reply, "x-request-id").is_some());
    }
    for headers in ["Authorization: Bearer secret\r\n", "X-Api-Key: secret\r\n"] {
        assert_eq!(chat(&server, headers).status, 200, "{headers}");
    }
    assert_eq!(send(&server, "GET /v1/models", "").status, 401);
    assert_eq!(send(&server, "GET /v1/models", "X-Api-Key: secret\r\n").status, 200);
    // Anthropic's clients know their own shape of errors, and their own header.
    let reply = server.post("/v1/messages", b"{}");
    let error = reply.json();
    assert_eq!((reply.status, &error["type"]), (401, &json!("error")));
    assert_eq!(error["error"]["type"], "authentication_error");
    assert_eq!(header(&reply, "request-id"), header(&reply, "x-request-id"));
    // What says how the server is stays open; what counts its work does not, unless that is wanted.
    assert_eq!((server.get("/health").status, server.get("/metrics").status), (200, 401));
    let open = serve(HttpConfig { open_metrics: true, ..with_key(Limits::default()) });
    assert_eq!((open.get("/metrics").status, open.get("/v1/models").status), (200, 401));
    // Without keys everybody may.
    assert_eq!(chat(&serve(HttpConfig::default()), "Authorization: Bearer any\r\n").status, 200);
}

#[test]
fn a_limit_is_answered_by_429_and_when_to_come_again() {
    let server = serve(with_key(Limits { requests: Some(2), ..Limits::default() }));
    let key = "Authorization: Bearer secret\r\n";
    assert_eq!([chat(&server, key).status, chat(&server, key).status], [200, 200]);
    let reply = chat(&server, key);
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(error["message"].as_str().unwrap().contains("laptop"), "{error}");
    let wait: u64 = header(&reply, "retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    // Asking what is served costs nothing.
    assert_eq!(send(&server, "GET /v1/models", key).status, 200);

    // The model that does as it is told says that an answer took 3 and 4 tokens.
    let server = serve(with_key(Limits { tokens: Some(6), ..Limits::default() }));
    assert_eq!(chat(&server, key).status, 200);
    let begun = Instant::now();
    // The count comes after the last byte of the response.
    while chat(&server, key).status != 429 {
        assert!(begun.elapsed() < PATIENCE, "no limit after {:?}", begun.elapsed());
    }

    let slow = Script { pause: Duration::from_secs(1), ..Script::default() };
    let server =
        Server::start(vec![ServedModel::new(slow)], with_key(Limits { chats: Some(1), ..Limits::default() }));
    let stream = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true}).to_string();
    let text = String::from_utf8(request("/v1/chat/completions", stream.as_bytes())).unwrap();
    let mut first = server.send(text.replacen("\r\n", &format!("\r\n{key}"), 1).as_bytes());
    let mut head = [0; 12];
    first.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.0 200");
    assert_eq!(chat(&server, key).status, 429);
    // A client that leaves gives back its place.
    drop(first);
    let begun = Instant::now();
    while chat(&server, key).status != 200 {
        assert!(begun.elapsed() < PATIENCE, "no place after {:?}", begun.elapsed());
    }
}

#[test]
fn keys_of_a_file_come_and_go_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let (laptop, text) = ApiKey::generate("laptop", Limits::default()).unwrap();
    api_keys::add(&file, &laptop).unwrap();
    let server = serve(HttpConfig { api_key_file: Some(file.clone()), ..HttpConfig::default() });
    let status =
        |text: &str| send(&server, "GET /v1/models", &format!("Authorization: Bearer {text}\r\n")).status;
    let becomes = |text: &str, wanted| {
        let begun = Instant::now();
        while status(text) != wanted {
            assert!(begun.elapsed() < PATIENCE, "still not {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    assert_eq!(status(&text), 200);
    let (phone, other) = ApiKey::generate("phone", Limits::default()).unwrap();
    assert_eq!(status(&other), 401);
    api_keys::add(&file, &phone).unwrap();
    becomes(&other, 200);
    api_keys::revoke(&file, "laptop").unwrap();
    becomes(&text, 401);
    assert_eq!(status(&other), 200);
    // A file that can't be read changes nothing.
    std::fs::write(&file, "nonsense").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((status(&text), status(&other)), (401, 200));
}

#[test]
fn web_pages_of_other_origins() {
    let allowed = |cors: &[&str], origin: &str| {
        let cors = cors.iter().map(|text| text.parse::<Origin>().unwrap()).collect();
        let server = serve(HttpConfig { cors, ..with_key(Limits::default()) });
        let asked =
            "authorization,content-type,x-stainless-os,x-stainless-retry-count,x-api-key,anthropic-version";
        let preflight = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {asked}\r\n"
        );
        // A preflight has no key; and who may not come in learns it in a way that the page can read.
        let preflight = send(&server, "OPTIONS /v1/chat/completions", &preflight);
        let refused = send(&server, "GET /v1/models", &format!("Origin: {origin}\r\n"));
        assert_eq!((refused.status, header(&refused, "x-request-id").is_some()), (401, true));
        let is_allowed = header(&preflight, "access-control-allow-origin") == Some(origin);
        assert_eq!(header(&refused, "access-control-allow-origin") == Some(origin), is_allowed);
        if is_allowed {
            assert_eq!(preflight.status, 200);
            assert_eq!(header(&preflight, "access-control-allow-headers"), Some(asked));
            assert!(header(&preflight, "access-control-allow-methods").unwrap().contains("post"));
            assert!(header(&preflight, "access-control-max-age").is_some());
            assert!(header(&refused, "access-control-expose-headers").unwrap().contains("x-request-id"));
        }
        is_allowed
    };
    assert!(!allowed(&[], "http://localhost:3000"));
    assert!(allowed(&["localhost"], "http://localhost:3000"));
    assert!(!allowed(&["localhost"], "https://example.com"));
    assert!(allowed(&["*"], "https://example.com"));
    assert!(allowed(&["https://a.example", "https://b.example"], "https://b.example"));
    assert!(!allowed(&["https://a.example"], "https://a.example:8443"));
}

#[test]
fn every_response_has_a_request_id() {
    let server = serve(HttpConfig::default());
    let own = send(&server, "GET /v1/models", "X-Request-Id: my-id:1\r\n");
    assert_eq!(header(&own, "x-request-id"), Some("my-id:1"));
    let mut ids: Vec<String> = Vec::new();
    for (head, headers) in [
        ("GET /v1/models", "X-Request-Id: not sane\r\n"),
        ("GET /nowhere", ""),
        ("GET /", ""),
        ("PUT /health", ""),
        ("GET /v1/models", "Host: evil.example.com\r\n"),
        ("POST /v1/chat/completions", ""),
        ("OPTIONS /v1/models", ""),
    ] {
        let reply = send(&server, head, headers);
        let id = header(&reply, "x-request-id").unwrap_or_else(|| panic!("none for {head}: {}", reply.head));
        assert!(id.starts_with("req_"), "{id}");
        ids.push(id.to_owned());
    }
    let stream = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true}).to_string();
    let reply = server.post("/v1/chat/completions", stream.as_bytes());
    ids.push(header(&reply, "x-request-id").unwrap().to_owned());
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
}

#[test]
fn names_that_this_machine_has() {
    let server =
        serve(HttpConfig { allow_hosts: vec!["kimi.example.com".to_owned()], ..HttpConfig::default() });
    let status = |host: &str| send(&server, "GET /v1/models", &format!("Host: {host}\r\n")).status;
    for host in [
        "host.docker.internal:52415",
        "host.containers.internal",
        "mymac.local",
        "kimi.localhost:8080",
        "KIMI.example.com",
        &kimi_server::system::host_name(),
    ] {
        assert_eq!(status(host), 200, "{host}");
    }
    for host in ["example.com", "a.kimi.example.com", "localhost.example.com"] {
        assert_eq!(status(host), 403, "{host}");
    }
    let message =
        send(&server, "GET /health", "Host: example.com\r\n").json()["error"]["message"].to_string();
    assert!(message.contains("--allow-host"), "{message}");
}

#[test]
fn the_root_is_a_page_for_browsers_and_json_for_others() {
    let server = serve(with_key(Limits::default()));
    let page = send(&server, "GET /", "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n");
    assert_eq!(page.status, 200);
    assert_eq!(header(&page, "content-type"), Some("text/html; charset=utf-8"));
    let policy = header(&page, "content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // All that the page names is there, and nothing else is fetched or runs.
    let names = page.body.split(['"', '\'']).filter(|word| word.starts_with("/page/"));
    let names: Vec<&str> = names.collect();
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert_eq!(server.get(name).status, 200, "{name}");
    }
    let forbidden = ["http://", "https://", "//cdn", "<script>", "style=", "onclick", "onload"];
    assert!(forbidden.iter().all(|word| !page.body.contains(word)));
    // Asked again, it is not sent again.
    let script = server.get("/page/main.js");
    let tag = script.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let again = send(&server, "GET /page/main.js", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!((again.status, again.body.as_str()), (304, ""));

    for accept in ["", "Accept: */*\r\n", "Accept: application/json\r\n"] {
        let about: Value = send(&server, "GET /", accept).ok();
        assert_eq!((&about["name"], &about["api"]), (&json!("kimi"), &json!("/v1")));
    }
    assert_eq!(send(&server, "HEAD /", "Accept: text/html\r\n").status, 200);
}
