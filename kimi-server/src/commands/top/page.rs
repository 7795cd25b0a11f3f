//! What `kimi top` shows: text made of two snapshots.

use indicatif::DecimalBytes;
use kimi_net::printable;
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span, Text};

use crate::cli::ui::Table;
use crate::monitor::{LoadState, ModelState, ModelStatus, ProcessState, Snapshot, StageState, StageStatus};

/// Cells of the bar that shows the pages in use.
const BAR: usize = 20;

/// What is to be shown.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Where the server is.
    pub(super) address: String,
    /// A moment earlier, for what happens per second.
    pub(super) before: Option<Snapshot>,
    pub(super) now: Snapshot,
    /// Why there is nothing newer.
    pub(super) error: Option<String>,
}

/// The page as text without colours.
pub(super) fn plain(view: &View) -> String {
    page(view).lines.iter().map(|line| format!("{line}").trim_end().to_owned() + "\n").collect()
}

/// The page.
pub(super) fn page(view: &View) -> Text<'static> {
    let View { address, before, now, error } = view;
    let seconds = before.as_ref().map(|before| now.uptime_seconds - before.uptime_seconds);
    // A server that was started again counts from 0.
    let before = before.as_ref().filter(|_| seconds.is_some_and(|seconds| seconds > 0.0));
    let rates = Rates { seconds: seconds.unwrap_or(0.0) };
    let mut lines = vec![Line::from(vec![
        format!("kimi {}", printable(&now.version)).bold(),
        format!(" at {address}, up for {}", duration(now.uptime_seconds)).into(),
    ])];
    if let Some(error) = error {
        lines.push(Line::from(format!("lost: {}", printable(error))).red());
    }
    if let Some(slow) = &now.slow {
        lines.push(Line::from(format!("slow: {}", printable(slow))).yellow());
    }
    for model in &now.models {
        let earlier = before.and_then(|before| before.models.iter().find(|other| other.id == model.id));
        lines.push(Line::default());
        lines.extend(model_lines(earlier, model, &rates));
    }
    lines.push(Line::default());
    lines.push(process_line(before.map(|before| &before.process), &now.process, &rates));
    Text::from(lines)
}

/// Turns counts into rates.
struct Rates {
    seconds: f64,
}

impl Rates {
    /// For instance `12.5 tokens/s`; a dash where there is nothing earlier to compare with.
    fn show(&self, before: Option<f64>, now: f64, unit: &str) -> String {
        match before {
            Some(before) => format!("{:.1} {unit}/s", (now - before).max(0.0) / self.seconds),
            None => format!("- {unit}/s"),
        }
    }
}

fn model_lines(before: Option<&ModelState>, now: &ModelState, rates: &Rates) -> Vec<Line<'static>> {
    let count = |value: fn(&ModelState) -> u64, unit: &str| {
        rates.show(before.map(|before| value(before) as f64), value(now) as f64, unit)
    };
    let style = match now.status {
        ModelStatus::Ok => Style::new().green(),
        ModelStatus::Loading | ModelStatus::Recovering => Style::new().yellow(),
        ModelStatus::Unavailable => Style::new().red(),
    };
    let mut lines = vec![Line::from(vec![
        printable(&now.id).into_owned().bold(),
        "  ".into(),
        Span::styled(now.status.word(), style),
    ])];
    if let Some(loading) = &now.loading {
        lines.push(Line::from(format!("  {}", loading_text(loading))));
    }
    if let Some(reason) = &now.reason {
        lines.push(Line::from(format!("  {}", printable(reason))).red());
    }
    lines.push(Line::from(format!(
        "  {}, prompts {}, {}",
        count(|m| m.tokens_generated, "tokens"),
        count(|m| m.prompt_tokens, "tokens"),
        count(|m| m.steps, "steps"),
    )));
    lines.push(Line::from(format!(
        "  requests: {} running, {} waiting; batches: {} of {} in flight",
        now.sequences.running, now.sequences.waiting, now.batches.in_flight, now.batches.limit
    )));
    let (used, total) = (now.pages.used, now.pages.total);
    let filled = (BAR as f64 * f64::from(used) / f64::from(total.max(1))).ceil() as usize;
    let filled = filled.min(BAR);
    lines.push(Line::from(format!(
        "  pages: {}{} {used} of {total}; evictions {}, losses {}",
        "█".repeat(filled),
        "░".repeat(BAR - filled),
        now.evictions,
        now.losses
    )));
    lines.extend(memory_lines(now));
    lines.extend(stage_lines(before, now));
    lines
}

/// What was not computed since it was known, and what was guessed; nothing of what did not happen.
fn memory_lines(now: &ModelState) -> Vec<Line<'static>> {
    let (prefix, drafts) = (&now.prefix_cache, &now.drafts);
    let mut lines = Vec::new();
    let requests = prefix.hits + prefix.misses;
    if requests > 0 {
        lines.push(Line::from(format!(
            "  shared: {} pages known; {} of {requests} requests began with some, {} tokens",
            prefix.pages, prefix.hits, prefix.tokens
        )));
    }
    if prefix.stored_pages > 0 || prefix.stored_bytes > 0 {
        lines.push(Line::from(format!(
            "  on disk: {} pages, {} of files; {} brought back",
            prefix.stored_pages,
            DecimalBytes(prefix.stored_bytes),
            prefix.restored_pages
        )));
    }
    if drafts.drafted > 0 {
        lines.push(Line::from(format!("  guesses: {} of {} right", drafts.accepted, drafts.drafted)));
    }
    lines
}

/// A table with a row a stage, and what is wrong with it below.
fn stage_lines(before: Option<&ModelState>, now: &ModelState) -> Vec<Line<'static>> {
    let headings = [
        "  node",
        "layers",
        "bytes",
        "state",
        "computing",
        "device",
        "sampling",
        "queue",
        "wire",
        "round trip",
        "sent",
        "received",
        "paged in",
    ];
    let mut table = Table::new(&headings, &[1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    for stage in &now.stages {
        let earlier = before.and_then(|before| before.stages.get(stage.stage));
        let [compute, device, sampling, queue, wire] = step_times(earlier, stage);
        let link = stage.link.unwrap_or_default();
        let bytes = |bytes: u64| stage.link.map_or_else(String::new, |_| DecimalBytes(bytes).to_string());
        table.row([
            format!("  {}", printable(&stage.name())),
            stage.layers.map_or_else(String::new, |layers| layers.to_string()),
            stage.bytes.map_or_else(String::new, |bytes| DecimalBytes(bytes).to_string()),
            stage.status.word().to_owned(),
            compute,
            device,
            sampling,
            queue,
            wire,
            link.round_trip_seconds.map_or_else(String::new, millis),
            bytes(link.sent_bytes),
            bytes(link.received_bytes),
            bytes(link.paged_in_bytes),
        ]);
    }
    let text = table.to_string();
    let mut rows = text.lines().map(|line| Line::from(line.to_owned()));
    let mut lines: Vec<_> = rows.next().map(Line::dim).into_iter().collect();
    for (row, stage) in rows.zip(&now.stages) {
        lines.push(if stage.status == StageStatus::Ok { row } else { row.yellow() });
        let loading = stage.loading.as_ref().map(loading_text);
        for note in stage.reason.iter().map(|reason| printable(reason).into_owned()).chain(loading) {
            lines.push(Line::from(format!("    {note}")));
        }
    }
    lines
}

/// Mean times of a step: of those since the moment before, else of all. Nothing before the first step.
fn step_times(before: Option<&StageState>, now: &StageState) -> [String; 5] {
    let zero = StageState::default();
    let before = before.filter(|before| before.steps < now.steps).unwrap_or(&zero);
    if now.steps == 0 {
        return Default::default();
    }
    let steps = (now.steps - before.steps) as f64;
    let mean = |value: fn(&StageState) -> f64| millis((value(now) - value(before)) / steps);
    [
        mean(|s| s.compute_seconds),
        mean(|s| s.device_seconds),
        mean(|s| s.sampling_seconds),
        mean(|s| s.queue_seconds),
        mean(|s| s.wire_seconds),
    ]
}

fn process_line(before: Option<&ProcessState>, now: &ProcessState, rates: &Rates) -> Line<'static> {
    let bytes = |value: Option<u64>| value.map(|bytes| DecimalBytes(bytes).to_string());
    let cores = before.map(|before| (now.cpu_seconds - before.cpu_seconds).max(0.0) / rates.seconds);
    let faults = before.map(|before| before.major_page_faults as f64);
    let files = now.open_files.map(|open| match now.max_open_files {
        Some(max) => format!("{open} of {max} files open"),
        None => format!("{open} files open"),
    });
    let parts = [
        bytes(now.resident_bytes).map(|bytes| format!("{bytes} in memory")),
        bytes(now.swap_bytes).map(|bytes| format!("{bytes} in swap")),
        Some(rates.show(faults, now.major_page_faults as f64, "page-ins")),
        cores.map(|cores| format!("{cores:.1} CPU cores busy")),
        files,
        now.mac.map(|memory| format!("{} compressed on this Mac", DecimalBytes(memory.compressed_bytes))),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    Line::from(format!("this process: {}", parts.join(", ")))
}

fn loading_text(loading: &LoadState) -> String {
    if let Some((made, total)) = loading.kernels_made.zip(loading.kernels_total) {
        return format!("weights in place; kernels: {made} of {total}");
    }
    let left = loading.remaining_seconds.filter(|_| loading.total_bytes > 0);
    let left = left.map_or_else(String::new, |seconds| format!(", {} left", duration(seconds)));
    format!("loading: {} of {}{left}", DecimalBytes(loading.loaded_bytes), DecimalBytes(loading.total_bytes))
}

fn millis(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

fn duration(seconds: f64) -> String {
    match seconds.max(0.0) as u64 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::style::Color;
    use ratatui::widgets::Paragraph;

    use super::*;
    use crate::monitor::{Drafts, LinkState, Pages, PrefixCache, Sequences};

    /// A server with a worker, after so many steps of 4 ms.
    fn server(uptime_seconds: f64, steps: u64) -> Snapshot {
        let stage = |i: usize, node: &str, wire: f64| StageState {
            stage: i,
            node: Some(node.to_owned()),
            layers: Some(30 + i),
            bytes: Some(16_000_000_000),
            status: StageStatus::Ok,
            steps,
            compute_seconds: 0.004 * steps as f64,
            wire_seconds: wire * steps as f64,
            link: (wire > 0.0).then_some(LinkState {
                round_trip_seconds: Some(0.0005),
                sent_bytes: 28_000,
                received_bytes: 64,
                paged_in_bytes: 9,
            }),
            ..StageState::default()
        };
        Snapshot {
            version: "0.1.0".to_owned(),
            uptime_seconds,
            models: vec![ModelState {
                id: "k2".to_owned(),
                status: ModelStatus::Ok,
                stages: vec![stage(0, "b", 0.001), stage(1, "a", 0.0)],
                steps,
                tokens_generated: 2 * steps,
                sequences: Sequences { running: 2, waiting: 1 },
                pages: Pages { used: 25, total: 100 },
                ..ModelState::default()
            }],
            ..Snapshot::default()
        }
    }

    fn view() -> View {
        let (before, now) = (server(7.0, 100), server(9.0, 200));
        View { address: "127.0.0.1:1".to_owned(), before: Some(before), now, error: None }
    }

    #[test]
    fn a_page_without_colours() {
        let text = plain(&view());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "kimi 0.1.0 at 127.0.0.1:1, up for 9 s");
        assert_eq!(lines[2], "k2  ok");
        assert_eq!(lines[3], "  100.0 tokens/s, prompts 0.0 tokens/s, 50.0 steps/s");
        assert_eq!(lines[4], "  requests: 2 running, 1 waiting; batches: 0 of 0 in flight");
        assert_eq!(lines[5], "  pages: █████░░░░░░░░░░░░░░░ 25 of 100; evictions 0, losses 0");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(lines[7]),
            "b 30 16.00 GB ok 4.00 ms 0.00 ms 0.00 ms 0.00 ms 1.00 ms 0.50 ms 28.00 kB 64 B 9 B"
        );
        assert_eq!(words(lines[8]), "a 31 16.00 GB ok 4.00 ms 0.00 ms 0.00 ms 0.00 ms 0.00 ms");
        assert!(!text.contains("slow") && !text.contains("lost:"), "{text}");
    }

    #[test]
    fn what_was_known_and_guessed_is_shown() {
        let mut view = view();
        let model = &mut view.now.models[0];
        model.prefix_cache =
            PrefixCache { pages: 40, hits: 3, misses: 7, tokens: 960, ..PrefixCache::default() };
        let text = plain(&view);
        assert!(
            text.contains("  shared: 40 pages known; 3 of 10 requests began with some, 960 tokens\n"),
            "{text}"
        );
        assert!(!text.contains("on disk") && !text.contains("guesses"), "{text}");
        let model = &mut view.now.models[0];
        model.prefix_cache.stored_pages = 12;
        model.prefix_cache.stored_bytes = 5_000_000;
        model.prefix_cache.restored_pages = 4;
        model.drafts = Drafts { drafted: 30, accepted: 20 };
        let text = plain(&view);
        assert!(text.contains("  on disk: 12 pages, 5.00 MB of files; 4 brought back\n"), "{text}");
        assert!(text.contains("  guesses: 20 of 30 right\n"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_shown() {
        let mut view = view();
        view.now.slow = Some("the link to b\u{1b}[31m takes long".to_owned());
        view.now.models[0].status = ModelStatus::Recovering;
        let stage = &mut view.now.models[0].stages[0];
        stage.status = StageStatus::Loading;
        stage.loading = Some(LoadState {
            loaded_bytes: 1_000_000,
            total_bytes: 4_000_000,
            remaining_seconds: Some(75.0),
            ..LoadState::default()
        });
        view.before = None;
        let text = plain(&view);
        assert!(text.contains("slow: the link to b\\u{1b}[31m takes long\n"), "{text}");
        assert!(text.contains("    loading: 1.00 MB of 4.00 MB, 1 min 15 s left\n"), "{text}");
        assert!(text.contains("k2  recovering\n  - tokens/s"), "{text}");
        // Started again: nothing to compare with.
        view.before = Some(server(500.0, 900));
        assert!(plain(&view).contains("  - tokens/s"), "{text}");
    }

    #[test]
    fn the_terminal_shows_it() {
        let mut view = view();
        view.error = Some("no answer".to_owned());
        let mut terminal = Terminal::new(TestBackend::new(60, 12)).unwrap();
        let draw = |frame: &mut ratatui::Frame<'_>| {
            frame.render_widget(Paragraph::new(page(&view)), frame.area());
        };
        terminal.draw(draw).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y: u16| (0..60).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        assert_eq!(row(0).trim_end(), "kimi 0.1.0 at 127.0.0.1:1, up for 9 s");
        assert_eq!((row(1).trim_end(), buffer[(0, 1)].fg), ("lost: no answer", Color::Red));
        assert_eq!((row(3).trim_end(), buffer[(4, 3)].fg), ("k2  ok", Color::Green));
    }
}
