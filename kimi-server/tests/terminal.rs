//! `kimi run` in a terminal, as someone who types sees it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{kimi, run, stderr, stdout};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};

const LONG: Duration = Duration::from_secs(60);

/// The program in a terminal of 80 columns.
struct Terminal {
    child: Child,
    keys: File,
    pieces: Receiver<Vec<u8>>,
    /// What was written and not looked at yet.
    shown: String,
}

impl Terminal {
    fn new(home: &Path, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // No other test may start a program between: it would hold this terminal open.
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pty = openpty(&size, None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut command = kimi();
        command.env("HOME", home).env("TERM", "xterm").env_remove("NO_COLOR").args(args);
        command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave));
        // SAFETY: both are system calls that may be made between fork and exec; they touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY as _, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        drop((command, pty.slave, alone));
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().unwrap();
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error says that the program has closed the terminal.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, pieces, shown: String::new() }
    }

    fn chat(home: &Path) -> Self {
        let args = ["run", "kimi-tiny", "--backend", "cpu", "--temperature", "0", "--max-tokens", "20"];
        let mut terminal = Self::new(home, &args);
        terminal.expect("/help");
        terminal.expect("> ");
        terminal
    }

    fn send(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for a text; returns what came before it.
    fn expect(&mut self, text: &str) -> String {
        let until = Instant::now() + LONG;
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return before;
            }
            match self.pieces.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown += &String::from_utf8_lossy(&piece),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} never came; there is {:?}", self.shown)
                }
            }
        }
    }

    /// Waits for the end; returns the rest that was shown.
    fn end(mut self) -> (ExitStatus, String) {
        while let Ok(piece) = self.pieces.recv_timeout(LONG) {
            self.shown += &String::from_utf8_lossy(&piece);
        }
        (self.child.wait().unwrap(), self.shown.clone())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";

#[test]
fn commands_history_and_the_end() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::chat(home.path());
    terminal.send("/help\r");
    for word in ["/new", "/system", "/save", "/bye", "Ctrl-C"] {
        terminal.expect(word);
    }
    terminal.expect("> ");
    terminal.send("/qiut\r");
    terminal.expect("there is no /qiut");
    terminal.expect("> ");
    terminal.send("/system Be brief.\r");
    terminal.expect("from the next answer on");
    terminal.send("What is kimi?\r");
    terminal.expect("What is kimi?");
    terminal.expect("> ");
    let saved = home.path().join("chat.json");
    terminal.send(&format!("/save {}\r", saved.display()));
    terminal.expect("saved as");
    let messages: serde_json::Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let roles: Vec<_> = messages.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"], "{messages}");
    assert_eq!(messages[0]["content"], "Be brief.");
    assert!(!messages[2]["content"].as_str().unwrap().is_empty());
    // Not over a file that is there.
    terminal.send(&format!("/save {}\r", saved.display()));
    terminal.expect("can't create");
    terminal.expect("> ");
    terminal.send(CTRL_D);
    let (status, rest) = terminal.end();
    assert!(status.success() && rest.ends_with('\n'), "{status}: {rest:?}");
    // The next chat brings lines of this one back.
    let mut terminal = Terminal::chat(home.path());
    terminal.send(&format!("{UP}{UP}{UP}"));
    terminal.expect("What is kimi?");
    terminal.send(CTRL_C);
    terminal.expect("Ctrl-C again leaves");
    terminal.send(CTRL_C);
    assert!(terminal.end().0.success());
    let history = home.path().join(".local/state/kimi/history");
    assert!(std::fs::read_to_string(history).unwrap().contains("What is kimi?"));
}

#[test]
fn a_message_may_have_several_lines() {
    let home = tempfile::tempdir().unwrap();
    let saved = home.path().join("chat.json");
    let mut terminal = Terminal::chat(home.path());
    terminal.send("\"\"\"one\r");
    terminal.send("two\r");
    terminal.send("three\"\"\"\r");
    terminal.expect("three");
    terminal.expect("> ");
    // What is pasted is not sent before Enter.
    terminal.send("\x1b[200~four\nfive\x1b[201~");
    terminal.expect("five");
    terminal.send("\r");
    terminal.expect("> ");
    terminal.send(&format!("/save {}\r", saved.display()));
    terminal.expect("saved as");
    let messages: serde_json::Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    assert_eq!(
        (&messages[0]["content"], &messages[2]["content"]),
        (&"one\ntwo\nthree".into(), &"four\nfive".into())
    );
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_chat() {
    let home = tempfile::tempdir().unwrap();
    let saved = home.path().join("chat.txt");
    let mut terminal = Terminal::chat(home.path());
    // Long enough that the answer does not begin before it is stopped.
    terminal.send(&format!("\x1b[200~{}end\x1b[201~", "word ".repeat(2500)));
    terminal.expect("end");
    terminal.send("\r");
    terminal.expect("\n");
    std::thread::sleep(Duration::from_millis(100));
    terminal.send(CTRL_C);
    terminal.expect("(stopped)");
    terminal.expect("> ");
    // The chat goes on, without the question that was not answered.
    terminal.send("What is kimi?\r");
    terminal.expect("What is kimi?");
    terminal.expect("> ");
    terminal.send(&format!("/save {}\r", saved.display()));
    terminal.expect("saved as");
    let text = std::fs::read_to_string(&saved).unwrap();
    assert!(text.starts_with("user:\nWhat is kimi?\n\nassistant:\n"), "{text}");
    terminal.send("/new\r");
    terminal.expect("a new conversation");
    terminal.send("/bye\r");
    assert!(terminal.end().0.success());
}

#[test]
fn a_prompt_may_stand_after_the_model_and_be_piped() {
    let ask = |args: &[&str], piped: Option<&str>| {
        let mut command = kimi();
        command.args([
            "run",
            "kimi-tiny",
            "--backend",
            "cpu",
            "--temperature",
            "0",
            "--max-tokens",
            "8",
            "--stats",
        ]);
        let stdin = if piped.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child =
            command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(text) = piped {
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let tokens = stderr(&output).split("prompt: ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        (stdout(&output), tokens)
    };
    let whole = ask(&["--prompt", "What is this?\n\na story"], None);
    assert_eq!(ask(&["What is this?"], Some("a story\n")), whole);
    assert_eq!(ask(&["What", "is", "this?"], Some("a story\n")), whole);
    assert_eq!(ask(&["-p", "What is this?"], Some("a story\n")), whole);
    assert_ne!(ask(&["What is this?"], None).1, whole.1);
    let empty = run(&["run", "kimi-tiny"]);
    assert!(stderr(&empty).contains("the prompt is empty"), "{}", stderr(&empty));
}
