//! `kimi top`.

mod page;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use hyper::{StatusCode, Uri};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::{Paragraph, Wrap};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Outcome;
use crate::cli::args::TopArgs;
use crate::cli::defaults;
use crate::client;
use crate::monitor::Snapshot;
use page::View;

/// Between two looks at the server.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(100);

/// Shows what a server does, until q is pressed.
///
/// # Errors
/// If there is no server, or the terminal can't be used.
pub fn run(args: &TopArgs) -> anyhow::Result<Outcome> {
    let address = authority(&args.url)?;
    let runtime = super::runtime()?;
    let first = runtime.block_on(look(&address))?;
    if args.json {
        super::print_json(&first)?;
    } else if args.once || !std::io::stdout().is_terminal() {
        let second = runtime.block_on(async {
            sleep(INTERVAL).await;
            look(&address).await
        })?;
        super::print(&page::plain(&View { address, before: Some(first), now: second, error: None }))?;
    } else {
        let (sender, receiver) = watch::channel(Ok(first.clone()));
        let view = View { address: address.clone(), before: None, now: first, error: None };
        runtime.spawn(keep_looking(address, sender));
        let mut terminal = ratatui::try_init().context("can't use the terminal; --once prints a page")?;
        let ended = show(&mut terminal, receiver, view);
        ratatui::restore();
        ended?;
    }
    Ok(Outcome::Success)
}

/// Host and port of a URL; the port of the API where it has none.
fn authority(url: &str) -> anyhow::Result<String> {
    let wrong = |what: &str| {
        anyhow::anyhow!(
            "{url:?} {what}; expected the address of a `kimi serve`, such as http://127.0.0.1:52415"
        )
    };
    let uri: Uri = url.parse().map_err(|error| wrong(&format!("is no URL ({error})")))?;
    if let Some(scheme) = uri.scheme_str().filter(|scheme| *scheme != "http") {
        return Err(wrong(&format!("has the scheme {scheme}, and the API is http")));
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(defaults::HTTP_PORT)))
}

/// The server's state.
async fn look(address: &str) -> anyhow::Result<Snapshot> {
    let asked = timeout(PATIENCE, client::get(address, "/health")).await;
    let answer = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs())));
    let (status, body) = answer.with_context(|| {
        format!(
            "no kimi answers at {address}. Start `kimi serve MODEL`, or name the address that it printed: `kimi top \
             http://HOST:PORT`"
        )
    })?;
    // It cannot answer chats now, and says why.
    let known = matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE);
    let snapshot =
        serde_json::from_slice::<Snapshot>(&body).ok().filter(|now| known && !now.version.is_empty());
    snapshot.with_context(|| {
        format!("what listens at {address} is no kimi: /health answers with status {status} and another text")
    })
}

async fn keep_looking(address: String, seen: watch::Sender<Result<Snapshot, String>>) {
    loop {
        sleep(INTERVAL).await;
        let now = look(&address).await.map_err(|error| format!("{error:#}"));
        if seen.send(now).is_err() {
            return;
        }
    }
}

/// Draws whatever is new, until somebody wants to leave.
fn show(
    terminal: &mut ratatui::DefaultTerminal,
    mut seen: watch::Receiver<Result<Snapshot, String>>,
    mut view: View,
) -> anyhow::Result<()> {
    let mut draw = true;
    loop {
        if draw {
            let text = page::page(&view);
            terminal.draw(|frame| {
                frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), frame.area());
            })?;
        }
        draw = event::poll(KEYS)?;
        if draw && wants_to_leave(&event::read()?) {
            return Ok(());
        }
        if seen.has_changed()? {
            draw = true;
            match seen.borrow_and_update().clone() {
                Ok(now) => {
                    view.before = Some(std::mem::replace(&mut view.now, now));
                    view.error = None;
                }
                Err(error) => view.error = Some(error),
            }
        }
    }
}

fn wants_to_leave(event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return false };
    let interrupt = *code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL);
    interrupt || matches!(code, KeyCode::Char('q') | KeyCode::Esc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let of = |url: &str| authority(url).map_err(|error| error.to_string());
        assert_eq!(of("http://10.0.0.1:80/v1").unwrap(), "10.0.0.1:80");
        assert_eq!(of("m3.local").unwrap(), "m3.local:52415");
        assert_eq!(of("127.0.0.1:9").unwrap(), "127.0.0.1:9");
        assert_eq!(of("http://[::1]").unwrap(), "[::1]:52415");
        assert!(of("https://a").unwrap_err().contains("the API is http"));
        assert!(of("/health").unwrap_err().contains("names no host"));
        assert!(of("a b").unwrap_err().contains("is no URL"));
    }
}
