//! The page at `/` in a real browser: what a person would do with it. Skipped where there is no Chromium, unless
//! `KIMI_REQUIRE_CHROMIUM` is set; `KIMI_SCREENSHOTS=FOLDER` keeps pictures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::time::Duration;

use kimi_core::ChatEvent;
use kimi_server::api_keys::{ApiKey, Limits};
use kimi_server::http::{HttpConfig, ServedModel};
use kimi_tests::api::{Server, tiny};
use kimi_tests::browser::{Browser, Screen};
use kimi_tests::script::{Script, two_calls};
use serde_json::json;

/// What is shown of the last answer.
const LAST: &str = "#messages article:last-of-type";
/// That nothing is being answered.
const IDLE: &str = "document.querySelector('#send').getAttribute('aria-label') === 'Send'";

fn scripted(script: Script) -> Server {
    Server::start(vec![ServedModel::new(script)], HttpConfig::default())
}

fn says(text: &str) -> Vec<ChatEvent> {
    let pieces = text.split_inclusive(' ').map(|piece| ChatEvent::Content(piece.to_owned()));
    pieces.collect()
}

/// Opens the page of a server with the box in focus.
fn open(browser: &mut Browser, server: &Server, screen: Screen) {
    browser.open(&format!("http://{}/", server.addr), screen);
    browser.wait("the model", "document.querySelector('#model').value !== ''");
    browser.eval("document.querySelector('#prompt').focus()");
}

fn ask(browser: &mut Browser, text: &str) {
    browser.type_text(text);
    browser.press("Enter");
}

fn count(browser: &mut Browser, selector: &str) -> u64 {
    browser.eval(&format!("document.querySelectorAll({}).length", json!(selector))).as_u64().unwrap()
}

#[test]
fn a_chat_with_the_embedded_model() {
    let Some(mut browser) = Browser::start() else { return };
    let server = Server::start(vec![ServedModel::new(tiny())], HttpConfig::default());
    open(&mut browser, &server, Screen::DESK);
    browser.wait("the state", "document.querySelector('#glance-title').textContent === 'Ready'");
    browser.picture("desk-light-welcome");
    browser.eval("localStorage.setItem('kimi.temperature', '0')");
    ask(&mut browser, "Hello! What are you?");
    browser.wait("an answer", &format!("{IDLE} && document.querySelector('{LAST} .stats')"));
    let answer = browser.text(&format!("{LAST} .markdown:not(.reasoning *)"));
    assert!(answer.contains("kimi-tiny"), "{answer}");
    let stats = browser.text(&format!("{LAST} .stats"));
    assert!(stats.contains("tokens/s") && stats.contains("first after"), "{stats}");
    // The same again, and another question; the box takes Shift+Enter as a new line.
    browser.click(&format!("{LAST} [aria-label='Answer again']"));
    browser.wait("an answer again", &format!("{IDLE} && document.querySelector('{LAST} .stats')"));
    assert_eq!(browser.text(&format!("{LAST} .markdown:not(.reasoning *)")), answer);
    browser.eval("document.querySelector('#prompt').focus()");
    browser.type_text("What is");
    browser.press("Shift+Enter");
    browser.eval("document.execCommand('insertText', false, '\\n')");
    browser.type_text("2 + 3?");
    assert_eq!(count(&mut browser, "#messages article"), 2);
    browser.press("Enter");
    browser.wait(
        "a second answer",
        &format!("{IDLE} && document.querySelectorAll('#messages article').length === 4"),
    );
    browser.click("#open-cluster");
    browser.wait("the cluster", "document.querySelector('#cluster .stages li')");
    browser.wait("metrics", "document.querySelectorAll('#cluster .tile .value')[2]?.textContent !== '–'");
    assert!(browser.text("#cluster").contains("stage 0"), "{}", browser.text("#cluster"));
    browser.picture("desk-light-chat-cluster");
    browser.resize(Screen::DESK.dark());
    browser.picture("desk-dark-chat-cluster");
    browser.resize(Screen::PHONE);
    browser.picture("phone-light-cluster");
    browser.click("#close-cluster");
    browser.picture("phone-light-chat");
    browser.resize(Screen::PHONE.dark());
    browser.click("#open-sidebar");
    browser.picture("phone-dark-sidebar");
    browser.press("Escape");
    let wide = browser.eval("document.documentElement.scrollWidth > innerWidth");
    assert_eq!(wide, false, "it is wider than a phone");
    assert_eq!(browser.problems(), Vec::<String>::new());
}

#[test]
fn conversations_are_kept_edited_and_deleted() {
    let Some(mut browser) = Browser::start() else { return };
    let server = scripted(Script { events: says("Once upon a time."), ..Script::default() });
    open(&mut browser, &server, Screen::DESK);
    ask(&mut browser, "First question");
    browser.wait("an answer", IDLE);
    ask(&mut browser, "Second question");
    browser
        .wait("an answer", &format!("{IDLE} && document.querySelectorAll('#messages article').length === 4"));
    browser.press("Control+k");
    assert_eq!(count(&mut browser, "#messages article"), 0);
    ask(&mut browser, "Another matter");
    browser
        .wait("an answer", &format!("{IDLE} && document.querySelectorAll('#messages article').length === 2"));
    assert_eq!(
        browser.eval("[...document.querySelectorAll('.chat')].map((one) => one.textContent)"),
        json!(["Another matter", "First question"])
    );
    // They are there after the page is loaded again.
    open(&mut browser, &server, Screen::DESK);
    browser.click("[title='First question']");
    assert_eq!(count(&mut browser, "#messages article"), 4);
    assert_eq!(browser.text(&format!("{LAST} .markdown:not(.reasoning *)")), "Once upon a time.");
    // An edited message replaces what came after it.
    browser.eval("document.querySelector('#prompt').focus()");
    browser.press("ArrowUp");
    browser.wait("the editor", "document.activeElement.closest('.editor')");
    browser.type_text(", edited");
    browser.press("Enter");
    browser
        .wait("an answer", &format!("{IDLE} && document.querySelectorAll('#messages article').length === 4"));
    assert_eq!(browser.text("#messages article:nth-of-type(3) .bubble"), "Second question, edited");
    // An edit that is given up changes nothing.
    browser.eval("document.querySelector('#prompt').focus()");
    browser.press("ArrowUp");
    browser.type_text(" wrongly");
    browser.press("Escape");
    assert_eq!(browser.text("#messages article:nth-of-type(3) .bubble"), "Second question, edited");
    // Deleting asks first.
    browser.eval("document.querySelector('[aria-label=\"Delete Another matter\"]').click()");
    browser.click("#confirm-no");
    assert_eq!(count(&mut browser, ".chat"), 2);
    browser.eval("document.querySelector('[aria-label=\"Delete Another matter\"]').click()");
    browser.picture("desk-light-confirm");
    browser.click("#confirm-yes");
    browser.wait("it to go", "document.querySelectorAll('.chat').length === 1");
    assert_eq!(browser.problems(), Vec::<String>::new());
}

#[test]
fn an_answer_is_stopped_and_what_came_stays() {
    let Some(mut browser) = Browser::start() else { return };
    let server = scripted(Script { events: says(&"word ".repeat(20_000)), ..Script::default() });
    open(&mut browser, &server, Screen::DESK);
    ask(&mut browser, "Talk");
    browser.wait("some text", &format!("document.querySelector('{LAST}')?.textContent.length > 200"));
    assert_eq!(browser.eval("document.querySelector('#send').getAttribute('aria-label')"), "Stop");
    // A page that is loaded again shows the same conversation, and what had come of the answer.
    browser.eval("location.reload()");
    let note = format!("document.querySelector('{LAST} .stats')?.textContent.includes('page was left')");
    browser.wait("the conversation again", &note);
    assert!(browser.text(LAST).contains("word word"), "{}", browser.text(LAST));
    server.wait_for("the end of the work", |model| model["sequences"]["running"] == 0);
    browser.click(&format!("{LAST} [aria-label='Answer again']"));
    browser.wait("some text", &format!("document.querySelector('{LAST}')?.textContent.length > 200"));
    // Another conversation can be looked at meanwhile.
    browser.press("Control+k");
    assert_eq!(count(&mut browser, "#messages article"), 0);
    browser.click("[title='Talk']");
    browser.wait("the text", &format!("document.querySelector('{LAST}')?.textContent.length > 200"));
    browser.press("Escape");
    browser.wait("the end", IDLE);
    let stats = browser.text(&format!("{LAST} .stats"));
    assert!(stats.contains("Stopped"), "{stats}");
    let length = browser.eval(&format!("document.querySelector('{LAST}').textContent.length"));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(browser.eval(&format!("document.querySelector('{LAST}').textContent.length")), length);
    // The server has stopped too.
    server.wait_for("the end of the work", |model| model["sequences"]["running"] == 0);
    assert_eq!(browser.problems(), Vec::<String>::new());
}

#[test]
fn tools_are_defined_called_and_answered() {
    let Some(mut browser) = Browser::start() else { return };
    let server = scripted(Script { events: two_calls(), ..Script::default() });
    open(&mut browser, &server, Screen::DESK);
    browser.click("#open-settings");
    browser.click("#add-tool");
    assert_eq!(browser.text(".tool strong"), "get_weather");
    browser.picture("desk-light-settings");
    // What is no definition is said to be none, and kept for the next try.
    browser.eval("document.querySelector('.tool textarea').select()");
    browser.type_text("{\"type\": ");
    assert!(!browser.text(".tool .problem").is_empty());
    browser.eval("document.querySelector('.tool textarea').select()");
    browser.type_text("{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {\"type\": \"object\"}}}");
    assert_eq!(browser.text(".tool strong"), "weather");
    browser.press("Escape");
    assert_eq!(browser.text("#tools-chip"), "1 tool");
    // What is sent is seen where it leaves the page.
    browser.eval(
        "window.sent = []; const real = window.fetch; \
         window.fetch = (path, options) => { if (options?.body) sent.push(JSON.parse(options.body)); return real(path, options); }; 0",
    );
    browser.eval("document.querySelector('#prompt').focus()");
    ask(&mut browser, "What is the weather in Oslo and Kyoto?");
    browser.wait("the calls", &format!("{IDLE} && document.querySelectorAll('.call').length === 2"));
    assert_eq!(browser.eval("sent[0].tools[0].function.name"), "weather");
    assert!(browser.text(".call").contains("\"city\": \"Oslo\""));
    browser.wait("the focus", "document.activeElement.matches('.result textarea')");
    // Thoughts are there, and closed.
    assert_eq!(browser.eval("document.querySelector('.reasoning').open"), false);
    browser.click(".reasoning summary");
    assert_eq!(browser.text(".reasoning .markdown"), "Two cities.");
    browser.click(".result textarea");
    browser.type_text("{\"celsius\": 4}");
    browser.press("Enter");
    browser.type_text("rain");
    browser.picture("desk-light-tools");
    browser.press("Enter");
    browser.wait("the next answer", "sent.length === 2 && document.querySelectorAll('.call').length === 4");
    let messages = browser.eval("sent[1].messages");
    let roles: Vec<_> = messages.as_array().unwrap().iter().map(|message| message["role"].clone()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool"]);
    assert_eq!(messages[1]["reasoning_content"], "Two cities.");
    assert_eq!(messages[1]["tool_calls"][1]["id"], messages[3]["tool_call_id"]);
    assert_eq!(
        (&messages[2]["content"], &messages[3]["content"]),
        (&json!("{\"celsius\": 4}"), &json!("rain"))
    );
    browser.wait("the end", IDLE);
    // Going on without results is told to the model.
    browser.eval("document.querySelector('#prompt').focus()");
    ask(&mut browser, "Never mind");
    browser.wait("the third request", "sent.length === 3");
    assert_eq!(browser.eval("sent[2].messages.filter(({role}) => role === 'tool').length"), 4);
    assert_eq!(browser.problems(), Vec::<String>::new());
}

const MARKDOWN: &str = "# A heading\n\nText with **bold**, *italic*, `code` and a [link](https://example.com/a_(b)).\n\n\
    1. one\n2. two\n   - inner `x`\n   - more\n\n| left | right |\n|:--|--:|\n| a \\| b | 1 |\n| c | 22 |\n\n\
    > A quote\n> of two lines\n\n```rust\nfn main() {\n    println!(\"<b>hi</b>\");\n}\n```\n\n\
    snake_case_name and 2 * 3 * 4 stay. <script>window.hacked = 1</script> <img src=x onerror=\"window.hacked = 1\">\n\n\
    [bad](javascript:window.hacked=1) ![picture](https://example.com/x.png) [data](data:text/html,x)\n\n- [x] done\n- [ ] open\n\nA formula \\(x_1 * y_2\\) stays.\n";

#[test]
fn markdown_is_shown_and_can_do_no_harm() {
    let Some(mut browser) = Browser::start() else { return };
    let server = scripted(Script { events: says(MARKDOWN), ..Script::default() });
    open(&mut browser, &server, Screen::DESK);
    ask(&mut browser, "Show <b>everything</b> & <script>window.hacked = 1</script>");
    browser.wait("the answer", &format!("{IDLE} && document.querySelector('{LAST} .stats')"));
    for (selector, text) in [
        ("h3", "A heading"),
        ("strong", "bold"),
        ("em", "italic"),
        ("p code", "code"),
        ("p a", "link"),
        ("ol > li:nth-child(2) ul > li", "inner x"),
        ("th.right", "right"),
        ("td", "a | b"),
        ("blockquote", "A quote of two lines"),
        (".code pre", "fn main() {\n    println!(\"<b>hi</b>\");\n}"),
        (".code-head span", "rust"),
    ] {
        assert_eq!(browser.text(&format!("{LAST} .markdown {selector}")), text, "{selector}");
    }
    let whole = browser.text(LAST);
    for text in [
        "snake_case_name and 2 * 3 * 4 stay.",
        "<script>window.hacked",
        "<img src=x",
        "javascript:window",
        "☑ done",
    ] {
        assert!(whole.contains(text), "no {text} in {whole}");
    }
    assert_eq!(
        browser.eval("[...document.querySelectorAll('#messages a')].map((one) => one.href)"),
        json!(["https://example.com/a_(b)", "https://example.com/x.png"])
    );
    assert_eq!(count(&mut browser, "#messages script, #messages img, #messages iframe, #messages b"), 0);
    assert_eq!(browser.eval("window.hacked ?? null"), json!(null));
    assert_eq!(
        browser.text("#messages .bubble"),
        "Show <b>everything</b> & <script>window.hacked = 1</script>"
    );
    browser.eval("document.querySelector('#scroll').scrollTop = 0");
    browser.picture("desk-light-markdown");
    browser.resize(Screen::DESK.dark());
    browser.picture("desk-dark-markdown");
    browser.resize(Screen::PHONE.dark());
    browser.eval("document.querySelector('#scroll').scrollTop = 0");
    browser.picture("phone-dark-markdown");
    // Words of a wide table stay whole: it is scrolled, and the page is not.
    let wide = browser.eval(
        "(() => { const cell = document.querySelector('.markdown td'); \
         cell.parentElement.append(...Array.from({length: 12}, () => { const one = cell.cloneNode(); one.textContent = 'Thunderbolt'; return one; })); \
         const table = cell.closest('.table'); const text = document.createRange(); \
         text.selectNodeContents(cell.parentElement.lastChild); \
         return [text.getClientRects().length === 1, table.scrollWidth > table.clientWidth, \
                 document.documentElement.scrollWidth > innerWidth]; })()",
    );
    assert_eq!(wide, json!([true, true, false]));
    assert_eq!(browser.problems(), Vec::<String>::new());
    // The policy holds even for what would get past that: a script that is put into the page does not run.
    browser.eval("{ const one = document.createElement('script'); one.textContent = 'window.hacked = 1'; document.body.append(one); }");
    assert_eq!(browser.eval("window.hacked ?? null"), json!(null));
}

/// What `/health` says of a cluster that is slow, and of one that is being loaded.
fn health(slow: bool) -> serde_json::Value {
    let stage = |number: usize, node: &str, layers: &str, status: &str, times: [f64; 3]| {
        json!({
            "stage": number, "node": node, "holds": format!("{node}: layers {layers} on Apple M3 Ultra (Metal)"),
            "bytes": 252_000_000_000_u64, "status": status, "steps": 900,
            "compute_seconds": times[0], "queue_seconds": times[1], "wire_seconds": times[2],
            "reason": (status == "lost").then_some("the connection was closed"),
            "loading": (status == "loading").then_some(json!({"loaded_bytes": 90_000_000_000_u64, "total_bytes": 252_000_000_000_u64, "seconds": 60.0, "remaining_seconds": 108.0})),
            "link": (number == 0).then_some(json!({"round_trip_seconds": 0.0042, "sent_bytes": 7, "received_bytes": 8, "paged_in_bytes": 0})),
        })
    };
    let (status, other) = if slow { ("ok", "ok") } else { ("loading", "lost") };
    json!({
        "status": "ok", "version": "0.1.0", "uptime_seconds": 7384.0,
        "slow": slow.then_some("the link to studio-b takes 9.0 ms of each 24.0 ms step (round trip 8.0 ms): use a cable"),
        "models": [{
            "id": "kimi-k2-4bit", "status": status,
            "loading": (!slow).then_some(json!({"loaded_bytes": 90_000_000_000_u64, "total_bytes": 504_000_000_000_u64, "seconds": 60.0, "remaining_seconds": 276.0})),
            "stages": [stage(0, "studio-b", "0-30", status, [9.0, 1.0, 6.0]), stage(1, "studio-a", "31-60", other, [8.0, 0.5, 0.0])],
            "sequences": {"running": 3, "waiting": 2}, "pages": {"used": 1900, "total": 2048},
            "evictions": 4, "steps": 900, "tokens_generated": 12_000, "prompt_tokens": 30_000,
        }],
        "process": {"resident_bytes": 253_000_000_000_u64},
    })
}

#[test]
fn the_cluster_at_a_glance() {
    let Some(mut browser) = Browser::start() else { return };
    let server = scripted(Script::default());
    open(&mut browser, &server, Screen::DESK);
    browser.eval(&format!(
        "window.state = {}; const real = window.fetch; window.fetch = (path, options) => {{ \
         if (path !== '/health') return real(path, options); \
         for (const model of state.models) model.tokens_generated += 30 + Math.random() * 20; state.uptime_seconds += 2; \
         return Promise.resolve(new Response(JSON.stringify(state))); }}; 0",
        health(true)
    ));
    browser.press("Control+i");
    browser.wait("the state", "document.querySelector('#cluster .callout')");
    let text = browser.text("#cluster");
    for part in [
        "Why it is slow",
        "the link to studio-b",
        "studio-a",
        "layers 31-60",
        "252 GB",
        "4.2 ms away",
        "Apple M3 Ultra",
        "3 running, 2 waiting",
        "1900 of 2048 pages",
        "up 2 h 3 min",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert_eq!(browser.text("#glance-title"), "Slow");
    browser.wait("speeds", "document.querySelector('.spark-area')");
    browser.picture("desk-light-cluster");
    browser.eval(&format!("window.state = {}; 0", health(false)));
    browser.wait("the loading", "document.querySelector('#glance-title').textContent === 'Loading'");
    let text = browser.text("#cluster");
    for part in ["Loading", "17 %, about 4 min 36 s left", "Lost", "the connection was closed"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(browser.text("#banner").contains("kimi-k2-4bit is being loaded: 17 %"));
    browser.resize(Screen::DESK.dark());
    browser.picture("desk-dark-loading");
    browser.press("Escape");
    assert_eq!(browser.eval("document.querySelector('#cluster').hidden"), true);
    assert_eq!(browser.problems(), Vec::<String>::new());
}

#[test]
fn a_key_is_asked_for_where_the_server_wants_one() {
    let Some(mut browser) = Browser::start() else { return };
    let config = HttpConfig {
        api_keys: vec![ApiKey::of_text("laptop", "secret", Limits::default())],
        ..HttpConfig::default()
    };
    let server = Server::start(
        vec![ServedModel::new(Script { events: says("Welcome."), ..Script::default() })],
        config,
    );
    browser.open(&format!("http://{}/", server.addr), Screen::PHONE);
    browser.wait("the question", "document.querySelector('#ask-key').open");
    browser.picture("phone-light-key");
    browser.wait("the focus", "document.activeElement.id === 'ask-key-value'");
    browser.type_text("wrong");
    browser.press("Enter");
    browser.wait(
        "the question again",
        "document.querySelector('#ask-key-text').textContent.includes('does not know')",
    );
    browser.eval("document.querySelector('#ask-key-value').focus()");
    browser.type_text("secret");
    browser.press("Enter");
    browser.wait(
        "the model",
        "document.querySelector('#model').value === 'script' && !document.querySelector('#ask-key').open",
    );
    browser.eval("document.querySelector('#prompt').focus()");
    ask(&mut browser, "Hello");
    browser.wait("an answer", &format!("{IDLE} && document.querySelector('{LAST} .stats')"));
    assert_eq!(browser.text(&format!("{LAST} .markdown:not(.reasoning *)")), "Welcome.");
    assert_eq!(browser.problems(), Vec::<String>::new());
}

#[test]
fn errors_are_shown_and_tried_again() {
    let Some(mut browser) = Browser::start() else { return };
    let failed =
        ChatEvent::Failed(kimi_core::engine::EngineError::Down { reason: "a worker is lost".to_owned() });
    let mut server =
        scripted(Script { events: [says("So far "), vec![failed]].concat(), ..Script::default() });
    open(&mut browser, &server, Screen::DESK);
    ask(&mut browser, "Hello");
    browser.wait("the error", &format!("{IDLE} && document.querySelector('{LAST} .error')"));
    assert!(browser.text(&format!("{LAST} .error")).contains("a worker is lost"));
    assert!(browser.text(&format!("{LAST} .markdown:not(.reasoning *)")).contains("So far"));
    browser.picture("desk-light-error");
    server.join();
    browser.click(&format!("{LAST} .error button"));
    browser.wait(
        "the other error",
        &format!("document.querySelector('{LAST} .error')?.textContent.includes('reached')"),
    );
    browser.wait("the banner", "!document.querySelector('#banner').hidden");
    assert_eq!(browser.text("#glance-title"), "Not reachable");
    assert_eq!(browser.problems(), Vec::<String>::new());
}
