//! Keeping pages on a disk while the engine runs.
//!
//! Two threads do what takes a disk's time: one writes, one reads. The stages copy pages out and in between their steps, in
//! the order in which the engine asks, so that no step finds a page half copied. While nothing runs pages are copied out one
//! after another; while something does, so seldom that it takes no more than a fiftieth of the time.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::driver::{Driver, Message};
use crate::page_store::{PageStore, PageStoreConfig, PageStoreError};
use crate::pipeline::Pipeline;
use crate::prefix_cache::PageHash;
use crate::scheduler::{Restore, Save};
use crate::stage::{CacheConfig, PageForm};

/// Most pages that wait to be written: they are copies in memory.
const MAX_UNWRITTEN: usize = 4;
/// While sequences run, copies are begun so many times as far apart as one takes.
const BUSY_SHARE: u32 = 50;
/// How long nothing is written after an error, which is mostly a full disk.
const ERROR_PAUSE: Duration = Duration::from_secs(60);

/// What became of a page.
pub(super) enum PageEvent {
    /// It was copied out of all stages; `None` if not.
    Read { ticket: u64, parts: Option<Vec<Bytes>> },
    /// It was written, or not; these had to go.
    Written { ticket: u64, is_stored: bool, gone: Vec<PageHash> },
    /// It was read from the disk; `None` if not.
    Loaded { ticket: u64, page: Option<Bytes> },
    /// It was copied into all stages, or not.
    Restored { ticket: u64, is_there: bool },
}

/// What the writing thread is asked for.
enum Job {
    Write(Save, Vec<Bytes>),
    Touch(Vec<PageHash>),
    Remove(Vec<PageHash>),
}

/// The engine's side of a [`PageStore`].
pub(super) struct Keeper {
    store: Arc<PageStore>,
    /// What a page is in each stage.
    forms: Vec<PageForm>,
    mailbox: Sender<Message>,
    writes: Sender<Job>,
    loads: Sender<Restore>,
    /// Disconnected when both threads have ended.
    ended: Receiver<()>,
    restores: HashMap<u64, Restore>,
    /// The page that is being copied out, since when, and whether nothing else ran then.
    copying: Option<(Save, Instant, bool)>,
    last_copy: Instant,
    copy_time: Duration,
    unwritten: usize,
}

impl Keeper {
    /// Opens the store of a pipeline's pages, and starts its threads.
    pub(super) fn start(
        config: &PageStoreConfig,
        cache: CacheConfig,
        pipeline: &Pipeline,
        mailbox: Sender<Message>,
    ) -> Result<Self, PageStoreError> {
        let mut identity = blake3::Hasher::new();
        identity.update(b"kimi cache pages 1\0");
        identity.update(env!("CARGO_PKG_VERSION").as_bytes());
        identity.update(&config.model);
        let mut forms = Vec::new();
        for (span, form) in pipeline.spans().iter().zip(pipeline.page_forms()) {
            let (first, last) = (span.layers.start, span.layers.end.saturating_sub(1));
            let form = form.ok_or(PageStoreError::Elsewhere { first, last })?;
            identity.update(format!("\0{first}-{last}: {}, {} bytes", form.form, form.bytes).as_bytes());
            forms.push(form);
        }
        let (folder, bytes) = (&config.folder, forms.iter().map(|form| form.bytes).sum());
        let identity = identity.finalize().into();
        let store = PageStore::open(folder, identity, bytes, cache.page_tokens, config.max_bytes)?;
        let store = Arc::new(store);
        let failed = |e: io::Error| PageStoreError::Folder { folder: folder.clone(), reason: e.to_string() };
        let (writes, jobs) = mpsc::channel();
        let (alive, ended) = mpsc::channel::<()>();
        let (writer, events, writes_alive) = (store.clone(), mailbox.clone(), alive.clone());
        let write = move || {
            write_all(&writer, &jobs, &events);
            drop(writer); // another may have the folder before anyone hears of the end
            drop(writes_alive);
        };
        thread::Builder::new().name("kimi-page-writes".into()).spawn(write).map_err(failed)?;
        let (loads, wanted) = mpsc::channel::<Restore>();
        let (reader, events) = (store.clone(), mailbox.clone());
        let read = move || {
            for Restore { ticket, hash, .. } in wanted {
                let page = reader.load(&hash);
                let _ = events.send(Message::Page(PageEvent::Loaded { ticket, page }));
            }
            drop(reader);
            drop(alive);
        };
        thread::Builder::new().name("kimi-page-loads".into()).spawn(read).map_err(failed)?;
        Ok(Self {
            store,
            forms,
            mailbox,
            writes,
            loads,
            ended,
            restores: HashMap::new(),
            copying: None,
            last_copy: Instant::now(),
            copy_time: Duration::ZERO,
            unwritten: 0,
        })
    }

    /// What can be brought back.
    pub(super) fn hashes(&self) -> Vec<PageHash> {
        self.store.hashes()
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// A stage was lost: copies that are on the way are worth nothing.
    pub(super) fn forget(&mut self) {
        self.restores.clear();
        self.copying = None;
    }

    /// Whether a page may be copied out now; `idle` if nothing else runs.
    fn may_copy(&self, idle: bool) -> bool {
        let is_time = || self.last_copy.elapsed() >= self.copy_time * BUSY_SHARE;
        self.copying.is_none() && self.unwritten < MAX_UNWRITTEN && (idle || is_time())
    }

    /// A page as the stages have it.
    fn split(&self, mut page: Bytes) -> Option<Vec<Bytes>> {
        let whole = page.len() == self.forms.iter().map(|form| form.bytes).sum::<usize>();
        whole.then(|| self.forms.iter().map(|form| page.split_to(form.bytes)).collect())
    }

    /// Sends an event to the engine's thread from wherever a copy ends.
    fn report<T>(
        &self,
        event: impl FnOnce(T) -> PageEvent + Send + 'static,
    ) -> impl FnOnce(T) + Send + 'static {
        let mailbox = self.mailbox.clone();
        // Fails once the engine has stopped.
        move |result| drop(mailbox.send(Message::Page(event(result))))
    }
}

/// Writes pages until nobody asks for it any more.
fn write_all(store: &PageStore, jobs: &Receiver<Job>, events: &Sender<Message>) {
    let mut paused: Option<Instant> = None;
    for job in jobs {
        match job {
            Job::Touch(mut hashes) => {
                hashes.dedup();
                store.touch(&hashes);
            }
            Job::Remove(hashes) => store.remove(&hashes),
            Job::Write(Save { ticket, hash, place, .. }, parts) => {
                let (mut gone, mut is_stored) = (Vec::new(), false);
                if paused.is_none_or(|since| since.elapsed() >= ERROR_PAUSE) {
                    gone = store.make_room_for_page();
                    match store.save(hash, place, &parts) {
                        Ok(()) => is_stored = true,
                        Err(error) => {
                            tracing::warn!(%error, "a cache page was not written; none is for {ERROR_PAUSE:?}");
                            paused = Some(Instant::now());
                        }
                    }
                }
                let _ = events.send(Message::Page(PageEvent::Written { ticket, is_stored, gone }));
            }
        }
    }
}

impl Driver {
    /// Has pages copied that are to be stored or brought back; one at once if nothing else runs.
    pub(super) fn keep_pages(&mut self, idle: bool) {
        let Some(keeper) = &mut self.keeper else { return };
        for restore in self.scheduler.take_restores() {
            keeper.restores.insert(restore.ticket, restore);
            if keeper.loads.send(restore).is_err() {
                // That thread has died: the page is computed.
                keeper.report(|ticket| PageEvent::Loaded { ticket, page: None })(restore.ticket);
            }
        }
        let (used, forgotten) = (self.scheduler.take_used(), self.scheduler.take_forgotten());
        if !used.is_empty() {
            let _ = keeper.writes.send(Job::Touch(used));
        }
        if !forgotten.is_empty() {
            let _ = keeper.writes.send(Job::Remove(forgotten));
        }
        if keeper.may_copy(idle)
            && self.lost.is_empty()
            && let Some(save) = self.scheduler.next_save()
        {
            let ticket = save.ticket;
            keeper.copying = Some((save, Instant::now(), idle));
            self.pipeline.read_page(save.page, keeper.report(move |parts| PageEvent::Read { ticket, parts }));
        }
    }

    /// Takes notice of what became of a page.
    pub(super) fn page_event(&mut self, event: PageEvent) {
        let Some(keeper) = &mut self.keeper else { return };
        match event {
            PageEvent::Read { ticket, parts } => {
                let Some((save, begun, idle)) = keeper.copying.take_if(|(save, ..)| save.ticket == ticket)
                else {
                    return;
                };
                keeper.last_copy = Instant::now();
                let time = begun.elapsed();
                // Behind a step that is being computed it takes longer than it costs.
                let is_first = keeper.copy_time.is_zero();
                keeper.copy_time = if idle || is_first { time } else { time.min(keeper.copy_time) };
                match parts.filter(|_| self.scheduler.is_saving(ticket)) {
                    Some(parts) => {
                        keeper.unwritten += 1;
                        let _ = keeper.writes.send(Job::Write(save, parts));
                    }
                    None => self.scheduler.saved(ticket, false),
                }
            }
            PageEvent::Written { ticket, is_stored, gone } => {
                keeper.unwritten = keeper.unwritten.saturating_sub(1);
                self.scheduler.unstored(&gone);
                self.scheduler.saved(ticket, is_stored);
            }
            PageEvent::Loaded { ticket, page } => {
                let Some(restore) = keeper.restores.get(&ticket) else { return };
                match page.and_then(|page| keeper.split(page)) {
                    Some(parts) => {
                        let done = keeper.report(move |is_there| PageEvent::Restored { ticket, is_there });
                        self.pipeline.write_page(restore.page, parts, done);
                    }
                    None => self.restored(ticket, false),
                }
            }
            PageEvent::Restored { ticket, is_there } => self.restored(ticket, is_there),
        }
    }

    /// A stage was replaced: if its pages have another form now (a CPU in place of a GPU), those that are stored are of no use.
    pub(super) fn check_page_forms(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        let forms = self.pipeline.page_forms();
        if !forms.iter().map(Option::as_ref).eq(keeper.forms.iter().map(Some)) {
            tracing::warn!(
                "a stage was replaced by one of another kind: the prefix cache on disk is not used any more"
            );
            self.keeper = None;
            self.scheduler.stop_storing();
        }
    }

    fn restored(&mut self, ticket: u64, is_there: bool) {
        let is_known = self.keeper.as_mut().is_some_and(|keeper| keeper.restores.remove(&ticket).is_some());
        if is_known {
            self.scheduler.restored(ticket, is_there);
        }
    }

    /// Stores what is not stored yet, before the engine stops; for no longer than until `deadline`.
    pub(super) fn store_rest(&mut self, deadline: Instant) {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        while self.keeper.is_some() && !left(deadline).is_zero() {
            self.keep_pages(true);
            let Some(keeper) = &self.keeper else { return };
            if keeper.copying.is_none() && keeper.unwritten == 0 {
                break;
            }
            match self.messages.recv_timeout(left(deadline)) {
                Ok(Message::Page(event)) => self.page_event(event),
                Ok(_) => {} // whoever asks for something else hears that the engine has stopped
                Err(_) => break,
            }
        }
        if let Some(Keeper { store, writes, loads, ended, .. }) = self.keeper.take() {
            drop((store, writes, loads));
            if ended.recv_timeout(left(deadline)) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("not all cache pages were written in time");
            }
        }
    }
}
