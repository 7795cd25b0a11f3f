//! What people see: colours on a terminal, progress.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use crate::table::Table;

/// Says something on stderr, with a line feed. What can't be written is dropped: a program that answers others does not
/// end because nobody reads its notices (`2>&1 | tee` that was ended, a full disk), as it would with `eprintln!`.
pub fn notice(text: impl Display) {
    // One call, so that lines of other processes do not come between.
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// [`notice`] without a line feed.
pub fn prompt(text: impl Display) {
    let _ = std::io::stderr().lock().write_all(text.to_string().as_bytes());
}

/// [`notice`] on stdout, for what is no result.
pub fn tell(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colours: bool,
}

/// Colours for stderr, if it is a terminal and `NO_COLOR` is not set.
pub fn stderr_style() -> Style {
    Style { colours: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
}

/// Colours for stdout, if it is a terminal and `NO_COLOR` is not set.
pub fn stdout_style() -> Style {
    Style { colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Something wrong.
    pub fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Something right.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Something beside the point.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// A bar for each stage on a terminal; nothing elsewhere. What it returns is told the stage's index, bytes loaded, and bytes in
/// all.
pub fn load_bars(stages: &[String]) -> impl Fn(usize, u64, u64) + Send + Sync + 'static {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let group = MultiProgress::with_draw_target(target);
    let form = "{prefix:16} {bar:16} {bytes:>10} of {total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}";
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bars: Vec<_> = stages
        .iter()
        .map(|name| group.add(ProgressBar::new(0).with_style(style.clone()).with_prefix(name.clone())))
        .collect();
    bars.iter().for_each(|bar| bar.enable_steady_tick(Duration::from_millis(200)));
    let bars = Mutex::new(bars);
    move |stage: usize, loaded: u64, total: u64| {
        let bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get(stage) {
            bar.set_length(total);
            bar.set_position(loaded);
            if loaded >= total {
                bar.finish_and_clear();
            }
        }
    }
}
