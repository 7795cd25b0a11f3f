//! What people see: colours on a terminal, progress.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use kimi_core::plan::HumanBytes;

use crate::cluster::NodeLoad;

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

/// A model's text as it may be written to a terminal. Escape sequences and other control characters, with which a text could
/// move the cursor, set the clipboard or change the window's title, are written as numbers, such as `\u{1b}`; so are marks
/// that turn the direction of text around. Line ends, tabs and joined emojis stay. Pieces of a text can be given one by one.
pub fn text_for_terminal(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\r' => {} // part of a line end, or would write over what is there
            c if acts(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
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

/// The name, then what is known of how far it has come. Every column has its width, so that nothing moves but the bar, and
/// all together 78, so that no line of a terminal of 80 is broken.
const BAR: &str = "{prefix:16!} {bar:17} {done:>9} of {all:8} {rate:>10} {left:>6}";
/// Before anything is known of its size.
const WAITING: &str = "{prefix:16!} waiting";
/// After the weights.
const KERNELS: &str = "{prefix:16!} {bar:17} {pos:>4} of {len:4} kernels compiled";

fn bar_style(form: &str) -> ProgressStyle {
    // What can't be written is not shown.
    type Key = fn(&ProgressState) -> String;
    fn key(text: Key) -> impl Fn(&ProgressState, &mut dyn std::fmt::Write) + Clone + Send + Sync {
        move |state, out| {
            let _ = out.write_str(&text(state));
        }
    }
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    style
        .with_key("done", key(|state| HumanBytes(state.pos()).to_string()))
        .with_key(
            "all",
            key(|state| format!("{:<8}", HumanBytes(state.len().unwrap_or_default()).to_string())),
        )
        .with_key("rate", key(|state| format!("{}/s", HumanBytes(state.per_sec() as u64))))
        .with_key("left", key(|state| format!("{:#}", HumanDuration(state.eta()))))
}

/// A bar for each stage on a terminal; nothing elsewhere. What it returns is told the stage's index, and how far it is.
pub fn load_bars(stages: &[String]) -> impl Fn(usize, NodeLoad) + Send + Sync + 'static {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    load_bars_on(target, stages)
}

fn load_bars_on(
    target: ProgressDrawTarget,
    stages: &[String],
) -> impl Fn(usize, NodeLoad) + Send + Sync + 'static {
    let group = MultiProgress::with_draw_target(target);
    let waiting = bar_style(WAITING);
    let bar = |name: &String| ProgressBar::no_length().with_style(waiting.clone()).with_prefix(name.clone());
    let bars: Vec<_> = stages.iter().map(|name| group.add(bar(name))).collect();
    bars.iter().for_each(|bar| bar.enable_steady_tick(Duration::from_millis(200)));
    let (bars, style) = (Mutex::new(bars), bar_style(BAR));
    let kernels_style = bar_style(KERNELS);
    move |stage: usize, NodeLoad { loaded, total, kernels }: NodeLoad| {
        let bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bar) = bars.get(stage).filter(|_| total > 0) else { return };
        let (done, all) = kernels.map_or((loaded, total), |(made, all)| (made as u64, all as u64));
        if kernels.is_some() {
            if bar.is_finished() {
                bar.reset();
            }
            bar.set_style(kernels_style.clone());
        } else if bar.length().is_none() {
            bar.set_style(style.clone());
        }
        bar.set_length(all);
        bar.set_position(done);
        if done >= all {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use indicatif::TermLike;

    /// A terminal that keeps what is written to it.
    #[derive(Debug, Clone, Default)]
    struct Paper(Arc<Mutex<String>>);

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            500
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            self.write_str("\n")
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            self.write_str("\n")
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\n")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_of_a_model_does_nothing_to_a_terminal() {
        for (text, shown) in [
            ("red \x1b[31mred\x1b]0;title\x07", "red \\u{1b}[31mred\\u{1b}]0;title\\u{7}"),
            ("\u{9b}2J back\x08 del\x7f", "\\u{9b}2J back\\u{8} del\\u{7f}"),
            ("safe\rrm\r\n\tx", "saferm\n\tx"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
        ] {
            assert_eq!(text_for_terminal(text), shown);
        }
        for text in ["", "a\n\tb", "é 机器 👩\u{200d}💻 \u{200f}שלום"] {
            assert!(matches!(text_for_terminal(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn bars_fit_80_columns_do_not_jump_and_never_show_nothing_of_nothing() {
        let paper = Paper::default();
        let names = ["a".to_owned(), "a name that is longer than its column".to_owned()];
        let bars = load_bars_on(ProgressDrawTarget::term_like(Box::new(paper.clone())), &names);
        let total = 594_321_000_000;
        for loaded in [0, 1, 999, 12_345_678, 999_999_999, 123_456_789_012, total - 1] {
            for stage in 0..2 {
                bars(stage, NodeLoad::of(loaded, total));
                bars(stage, NodeLoad::default()); // a stage that does not know yet
            }
            std::thread::sleep(Duration::from_millis(60)); // bars are drawn now and then
        }
        for made in [0, 50, 109] {
            bars(0, NodeLoad { kernels: Some((made, 110)), ..NodeLoad::of(total, total) });
            std::thread::sleep(Duration::from_millis(60));
        }
        let text = paper.0.lock().unwrap().clone();
        // Several lines are written at once, each filled up to the width of this wide terminal.
        let apart = ["a                ", "a name that is l "]
            .iter()
            .fold(text.clone(), |text, name| text.replace(name, &format!("\n{name}")));
        let lines = apart.split(['\n', '\r']).map(str::trim_end);
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        let drawn: Vec<&&str> = lines.iter().filter(|line| line.contains(" of ")).collect();
        assert!(drawn.len() > 4, "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(
            lines.iter().any(|line| line.contains("50 of 110") && line.ends_with("kernels compiled")),
            "{text}"
        );
        let drawn: Vec<_> = drawn.into_iter().filter(|line| !line.contains("kernels")).collect();
        assert!(drawn.iter().all(|line| line.contains("594.3 GB")) && !text.contains("MiB"), "{text}");
        let place = |line: &str| line[..line.find(" of ").unwrap()].chars().count();
        let moved = drawn.iter().find(|line| place(line) != place(drawn[0]));
        assert_eq!(moved, None, "unlike {:?}", drawn[0]);
    }
}
