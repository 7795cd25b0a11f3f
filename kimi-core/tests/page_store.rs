//! Pages that outlive the engine: the same answers, whatever is in the folder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

mod toy;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kimi_core::batch::Batch;
use kimi_core::engine::{Engine, EngineConfig, EngineError, Request, TokenEvent};
use kimi_core::page_store::{PageStoreConfig, PageStoreError};
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{
    CacheConfig, Compute, Done, Finish, Hidden, PageForm, StageError, StageRunner, StageSpan,
};
use toy::{ToyStage, VOCAB, on_thread};

const PAGE_TOKENS: usize = 8;
const CACHE: CacheConfig = CacheConfig { pages: 64, page_tokens: PAGE_TOKENS };
/// Bytes of a page's file, for one stage.
const FILE: u64 = 8 * PAGE_TOKENS as u64 + 112;
const LONG: Duration = Duration::from_secs(20);

fn store(folder: &Path, max_bytes: u64, model: u8) -> Option<PageStoreConfig> {
    Some(PageStoreConfig { folder: folder.to_owned(), max_bytes, model: [model; 32] })
}

fn row(stages: usize) -> Vec<Box<dyn StageRunner>> {
    ToyStage::row(stages, CACHE.pages as u32, PAGE_TOKENS).into_iter().map(on_thread).collect()
}

fn start(stages: usize, page_store: Option<PageStoreConfig>) -> Engine {
    let config = EngineConfig { page_store, ..EngineConfig::new(VOCAB, 400, CACHE) };
    Engine::start(row(stages), config).unwrap()
}

/// A prompt of so many tokens, its answer, and how many tokens of the prompt were not computed.
fn answer(engine: &Engine, who: u32, tokens: u32) -> (Vec<u32>, usize) {
    let params = SamplingParams::new(RawSamplingParams { seed: Some(7), ..Default::default() }).unwrap();
    let prompt = (0..tokens).map(|i| (i * 5 + who) % VOCAB).collect();
    let request = Request { prompt, params, max_tokens: Some(4), ..Request::default() };
    let mut answer = Vec::new();
    for event in engine.generate(request).unwrap() {
        match event {
            TokenEvent::Token { id, .. } => answer.push(id),
            TokenEvent::Finished { usage, .. } => return (answer, usage.cached_tokens),
            TokenEvent::Failed { error } => panic!("{error}"),
        }
    }
    panic!("no end")
}

/// All files of pages below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(self::files(&path)),
            path if path.extension().is_some_and(|end| end == "page") => files.push(path),
            _ => {}
        }
    }
    files.sort();
    files
}

fn bytes(folder: &Path) -> u64 {
    files(folder).iter().map(|file| file.metadata().unwrap().len()).sum()
}

fn wait_until_stored(engine: &Engine, pages: u32) {
    let started = Instant::now();
    while engine.stats().scheduler.prefix.stored < pages {
        assert!(started.elapsed() < LONG, "{:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn pages_are_found_after_a_restart() {
    for stages in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let cold = answer(&start(stages, None), 0, 100);
        for restart in 0..3 {
            let engine = start(stages, store(folder.path(), 1 << 20, 1));
            let found = answer(&engine, 0, 100);
            assert_eq!(found.0, cold.0, "{stages} stages");
            // 12 full pages, the last token is computed.
            assert_eq!(found.1, if restart == 0 { 0 } else { 96 }, "{stages} stages, start {restart}");
            let prefix = engine.stats().scheduler.prefix;
            assert_eq!(prefix.restored, if restart == 0 { 0 } else { 12 });
            assert!(engine.shutdown(LONG));
            assert_eq!(files(folder.path()).len(), 12);
        }
    }
}

#[test]
fn pages_are_stored_while_nothing_else_runs() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(2, store(folder.path(), 1 << 20, 1));
    answer(&engine, 0, 100);
    wait_until_stored(&engine, 12);
    assert_eq!(files(folder.path()).len(), 12);
    assert_eq!(engine.stats().stored_bytes, bytes(folder.path()));
}

#[test]
fn what_left_memory_comes_back_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, store(folder.path(), 1 << 20, 1));
    let first = answer(&engine, 0, 300);
    wait_until_stored(&engine, 37);
    // The cache has 64 pages: that of the first text, 37 pages, has to go for the others.
    for who in 1..4 {
        answer(&engine, who, 300);
    }
    let again = answer(&engine, 0, 300);
    assert_eq!((again.0, again.1), (first.0, 296));
    assert!(engine.stats().scheduler.prefix.restored > 0);
}

#[test]
fn damaged_files_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, store(folder.path(), 1 << 20, 1));
    let (cold, _) = answer(&engine, 0, 100);
    assert!(engine.shutdown(LONG));
    let whole: Vec<_> = files(folder.path()).into_iter().map(|f| (f.clone(), fs::read(f).unwrap())).collect();
    let place = |file: &Path| -> usize {
        let name = file.file_name().unwrap().to_str().unwrap();
        name.split('.').nth(1).unwrap().parse().unwrap()
    };
    let third = whole.iter().position(|(file, _)| place(file) == 2).unwrap();
    let (file, good) = &whole[third];
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let other = whole[(third + 1) % whole.len()].1.clone();
    let broken = [
        changed(0),              // no page
        changed(9),              // of another model
        changed(45),             // of another text
        changed(73),             // of another length
        changed(90),             // the page itself
        changed(good.len() - 1), // the checksum
        good[..good.len() - 1].to_vec(),
        [good.as_slice(), &[0]].concat(),
        Vec::new(),
        other,
    ];
    for (i, bytes) in broken.iter().enumerate() {
        whole.iter().for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
        fs::write(file, bytes).unwrap();
        let engine = start(1, store(folder.path(), 1 << 20, 1));
        let (tokens, cached) = answer(&engine, 0, 100);
        assert_eq!(tokens, cold, "case {i}");
        // The two pages before it; those behind it may be shared once it is computed.
        assert!((16..96).contains(&cached), "case {i}: {cached}");
        assert!(engine.shutdown(LONG));
        assert_eq!(fs::read(file).unwrap(), *good, "case {i}: it is written anew");
    }
}

#[test]
fn files_of_others_are_left_alone_or_only_counted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    fs::create_dir(folder.path().join("photos")).unwrap();
    fs::write(folder.path().join("photos/a.page"), "mine too").unwrap();
    let engine = start(1, store(folder.path(), 1 << 20, 1));
    answer(&engine, 0, 100);
    assert!(engine.shutdown(LONG));
    // Another checkpoint, and another number of stages.
    for (stages, model) in [(1, 2), (2, 1)] {
        let engine = start(stages, store(folder.path(), 1 << 20, model));
        assert_eq!(answer(&engine, 0, 100).1, 0, "{stages} {model}");
        assert!(engine.shutdown(LONG));
    }
    let engine = start(1, store(folder.path(), 1 << 20, 1));
    assert_eq!(answer(&engine, 0, 100).1, 96);
    assert!(engine.shutdown(LONG));
    assert_eq!(fs::read_to_string(folder.path().join("notes.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(folder.path().join("photos/a.page")).unwrap(), "mine too");
}

#[test]
fn the_limit_is_kept_and_the_oldest_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let max = 20 * FILE;
    for (model, who) in [(1, 0), (1, 1), (2, 0), (1, 2)] {
        let engine = start(1, store(folder.path(), max, model));
        answer(&engine, who, 100);
        assert!(engine.shutdown(LONG));
        assert!(bytes(folder.path()) <= max);
    }
    let engine = start(1, store(folder.path(), max, 1));
    assert_eq!(answer(&engine, 2, 100).1, 96, "the youngest is there");
    assert!(engine.shutdown(LONG));
    // A smaller limit holds from the start.
    let engine = start(1, store(folder.path(), 3 * FILE, 1));
    assert!(bytes(folder.path()) <= 3 * FILE);
    assert_eq!(engine.stats().scheduler.prefix.stored, 3);
    assert_eq!(answer(&engine, 2, 100).1, 24, "a text's first pages go last");
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_read_pages() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a/b");
    let engine = start(1, store(&folder, 1 << 20, 1));
    answer(&engine, 0, 100);
    assert!(engine.shutdown(LONG));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for file in files(&folder) {
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    }
}

#[test]
fn a_folder_that_can_not_be_used_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(1, store(folder.path(), 1 << 20, 1));
    let start = |stages, page_store| {
        let config = EngineConfig { page_store, ..EngineConfig::new(VOCAB, 400, CACHE) };
        Engine::start(stages, config).unwrap_err()
    };
    let error = start(row(1), store(folder.path(), 1 << 20, 1));
    assert!(matches!(error, EngineError::PageStore(PageStoreError::InUse { .. })), "{error}");
    drop(first);
    let other = tempfile::tempdir().unwrap();
    let error = start(row(1), store(other.path(), FILE - 1, 1));
    assert!(matches!(error, EngineError::PageStore(PageStoreError::TooSmall { .. })), "{error}");
    fs::write(other.path().join("file"), "").unwrap();
    let error = start(row(1), store(&other.path().join("file"), 1 << 20, 1)).to_string();
    assert!(error.contains("file"), "{error}");
    let error = start(vec![Box::new(Elsewhere)], store(other.path(), 1 << 20, 1)).to_string();
    assert!(error.contains("layers 0-0 are on another machine"), "{error}");
}

/// A stage whose pages mean something else.
struct OtherForm(ToyStage);

impl Compute for OtherForm {
    fn span(&self) -> StageSpan {
        self.0.span()
    }

    fn start(&mut self, batch: &Batch, input: Option<Hidden>) -> Result<Finish, StageError> {
        self.0.start(batch, input)
    }

    fn page_form(&self) -> Option<PageForm> {
        self.0.page_form().map(|form| PageForm { form: "others".to_owned(), ..form })
    }
}

#[test]
fn a_stage_of_another_kind_gets_no_stored_pages() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(1, store(folder.path(), 1 << 20, 1));
    let (cold, _) = answer(&engine, 0, 100);
    wait_until_stored(&engine, 12);
    let stage = || ToyStage::new(0, 1, CACHE.pages as u32, PAGE_TOKENS);
    // The memory of a stage goes with it; the disk stays, and is of use to one of the same kind.
    engine.replace_stage(0, on_thread(stage())).unwrap();
    assert_eq!(answer(&engine, 0, 100), (cold.clone(), 96));
    engine.replace_stage(0, on_thread(OtherForm(stage()))).unwrap();
    assert_eq!(answer(&engine, 0, 100), (cold, 0));
    assert_eq!(engine.stats().scheduler.prefix.stored, 0);
}

/// A stage of another machine.
struct Elsewhere;

impl StageRunner for Elsewhere {
    fn span(&self) -> StageSpan {
        toy::span(0, 1)
    }

    fn submit(&mut self, _: std::sync::Arc<Batch>, _: Option<Hidden>, _: Done) {}
}
