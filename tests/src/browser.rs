//! A headless Chromium, by its DevTools protocol over a pipe.
#![allow(clippy::expect_used, clippy::panic)] // for tests only

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::PATIENCE;

/// Names of the program on Debian, elsewhere, and Google's own.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Ends a message on the pipe.
const END: u8 = 0;

/// A browser with one page. It ends when it is dropped.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    count: u64,
    problems: Vec<String>,
    _profile: TempDir,
}

/// How a page is shown.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Width in CSS pixels.
    pub width: u32,
    /// Height in CSS pixels.
    pub height: u32,
    /// Whether it is a phone's.
    pub phone: bool,
    /// Whether the user likes it dark.
    pub dark: bool,
}

impl Screen {
    /// A window on a desk.
    pub const DESK: Self = Self { width: 1280, height: 800, phone: false, dark: false };
    /// A phone.
    pub const PHONE: Self = Self { width: 390, height: 844, phone: true, dark: false };

    /// The same in the dark.
    #[must_use]
    pub fn dark(self) -> Self {
        Self { dark: true, ..self }
    }
}

impl Browser {
    /// Starts a browser; `None`, with a message, where there is none.
    ///
    /// # Panics
    /// If it does not answer; or where `KIMI_REQUIRE_CHROMIUM` is set, if there is none.
    pub fn start() -> Option<Self> {
        let found = NAMES.iter().find(|name| {
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        });
        let Some(name) = found else {
            assert!(std::env::var_os("KIMI_REQUIRE_CHROMIUM").is_none(), "none of {NAMES:?} is there");
            eprintln!("skipped: none of {NAMES:?} is there");
            return None;
        };
        let profile = tempfile::tempdir().expect("a folder");
        // The protocol is on descriptors 3 and 4. The sandbox needs what root and containers do not have; only our own page is
        // shown. Names are not looked up: the page must need nothing but its server.
        let script = format!(
            "exec {name} --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions \
             --disable-background-networking --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1' \
             --user-data-dir=\"$1\" --remote-debugging-pipe about:blank 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null"
        );
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in output.split(END) {
                let Ok(message) = message else { return };
                let Ok(message) = serde_json::from_slice(&message) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { child, input, messages, session: None, count: 0, problems: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol.
    ///
    /// # Panics
    /// If it fails or takes too long.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.count += 1;
        let id = self.count;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(END);
        self.input.write_all(&bytes).expect("a browser that reads");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = match self.messages.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {method} {params}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser has ended"),
            };
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method} {params}: {}", message["error"]);
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    /// Keeps what went wrong in the page: exceptions, and what its policy forbids.
    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.problems.push(params["exceptionDetails"].to_string()),
            // That a request was answered by an error is logged too, which tests bring about.
            Some("Log.entryAdded")
                if params["entry"]["level"] == "error" && params["entry"]["source"] != "network" =>
            {
                self.problems.push(params["entry"].to_string());
            }
            _ => {}
        }
    }

    /// What went wrong in the page so far.
    pub fn problems(&mut self) -> Vec<String> {
        self.eval("0");
        std::mem::take(&mut self.problems)
    }

    /// Shows a page and waits until its scripts have run.
    pub fn open(&mut self, url: &str, screen: Screen) {
        self.resize(screen);
        self.call("Page.navigate", json!({"url": url}));
        self.wait(
            "the page",
            &format!("location.href.startsWith({}) && document.readyState === 'complete'", json!(url)),
        );
    }

    /// Shows the page in another way.
    pub fn resize(&mut self, screen: Screen) {
        let Screen { width, height, phone, dark } = screen;
        let scale = if phone { 2 } else { 1 };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.call("Emulation.setTouchEmulationEnabled", json!({"enabled": phone}));
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// The value of an expression, or of its promise.
    ///
    /// # Panics
    /// If it throws.
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// The text of the first element that a selector finds.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({})?.innerText", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait(&mut self, what: &str, expression: &str) {
        let begun = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            if begun.elapsed() > PATIENCE {
                let page = self.eval("document.body.innerText");
                panic!(
                    "waited for {what} in vain: {expression}; problems: {:?}; the page: {page}",
                    self.problems
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clicks the middle of the first visible element that a selector finds, as a mouse would, once nothing lies over it.
    ///
    /// # Panics
    /// If there is none, or something stays over it.
    pub fn click(&mut self, selector: &str) {
        let find = format!(
            "(() => {{ const all = [...document.querySelectorAll({})]; \
             const node = all.find((node) => node.checkVisibility()); if (!node) return null; \
             node.scrollIntoView({{block: 'nearest'}}); \
             const box = node.getBoundingClientRect(); const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]; \
             const over = document.elementFromPoint(x, y); \
             return {{x, y, hit: node.contains(over), over: over?.outerHTML.slice(0, 200)}}; }})()",
            json!(selector)
        );
        let begun = Instant::now();
        let place = loop {
            let place = self.eval(&find);
            if place["hit"] == true {
                break place;
            }
            assert!(begun.elapsed() < PATIENCE, "can't click {selector}: there is {place}");
            std::thread::sleep(Duration::from_millis(20));
        };
        for (kind, count) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 1)] {
            let event = json!({"type": kind, "x": place["x"], "y": place["y"], "button": "left", "clickCount": count});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a key such as `Enter`, with `Control`, `Shift` or `Alt` before it and a plus between.
    pub fn press(&mut self, keys: &str) {
        let mut modifiers = 0;
        let mut key = keys;
        while let Some((modifier, rest)) = key.split_once('+').filter(|(_, rest)| !rest.is_empty()) {
            modifiers |= match modifier {
                "Alt" => 1,
                "Control" => 2,
                "Shift" => 8,
                _ => panic!("no key to hold: {modifier}"),
            };
            key = rest;
        }
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "ArrowUp" => 38,
            "ArrowDown" => 40,
            "Tab" => 9,
            other => other.bytes().next().map_or(0, |byte| u32::from(byte.to_ascii_uppercase())),
        };
        let mut down =
            json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers});
        if key == "Enter" {
            down["text"] = json!("\r");
        }
        self.call("Input.dispatchKeyEvent", down);
        let up = json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers});
        self.call("Input.dispatchKeyEvent", up);
    }

    /// Keeps a picture of the page as `NAME.png` in the folder that `KIMI_SCREENSHOTS` names, if it names one.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("KIMI_SCREENSHOTS") else { return };
        std::thread::sleep(Duration::from_millis(300)); // for what slides in
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap_or_default());
        let path = Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(&path, bytes.expect("base64")).expect("a picture kept");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
