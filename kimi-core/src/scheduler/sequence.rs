//! One sequence as the scheduler sees it, and what callers hand in and get back.

use std::sync::Arc;

use super::drafts::{DraftStats, Guesses};
use crate::batch::{Output, PageId, Sampling, SequenceId, SequenceSlice};
use crate::constraint::{Constrained, Drafter, MinLength};
use crate::prefix_cache::PageHash;
use crate::sampler::{SampleError, Sampled, SamplingParams, TokenCounts, uniform};
use crate::stage::StageError;

/// A sequence to be generated.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub params: Arc<SamplingParams>,
    /// With the position of a token it gives the random number that chooses the token.
    pub seed: u64,
    /// Most tokens to generate; `None` for as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Tokens that end the sequence.
    pub stop_ids: Vec<u32>,
    /// Keeps them from being chosen too early.
    pub min_length: Option<MinLength>,
    /// How many most likely tokens to report beside each sampled one.
    pub top_logprobs: u8,
    /// Limits the tokens that may be chosen; its own for each sequence.
    pub constraint: Option<Constrained>,
    /// Guesses tokens, for steps that verify several.
    pub drafter: Option<Arc<dyn Drafter>>,
}

/// Why a sequence is refused: its caller asked for something that can't be done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A prompt without tokens.
    #[error("the prompt has no tokens; give it at least one (a chat template adds its own)")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error(
        "token {position} of the prompt is {token}, but the model's ids end at {last}; use the model's own tokenizer"
    )]
    Token {
        /// Index in the prompt.
        position: usize,
        /// The id found.
        token: u32,
        /// The largest id.
        last: u32,
    },
    /// A prompt that leaves no room in the context.
    #[error("this model's maximum context length is {context} tokens, but the prompt has {found}; at most {} fit with one to generate: shorten the prompt or raise the context length", context.saturating_sub(1))]
    Context {
        /// Tokens of the prompt.
        found: usize,
        /// The context length in tokens.
        context: usize,
    },
    /// A prompt so far over the context that its tokens were not counted to the end.
    #[error("this model's maximum context length is {context} tokens, but the prompt has more than {more_than}; at most {} fit with one to generate: shorten the prompt or raise the context length", context.saturating_sub(1))]
    LongPrompt {
        /// Fewer tokens than the prompt has.
        more_than: usize,
        /// The context length in tokens.
        context: usize,
    },
    /// A prompt that leaves no room in the cache, whatever else runs.
    #[error("the prompt has {found} tokens, but the cache of {cache} tokens takes at most {} and one to generate; shorten the prompt or give the cache more pages", cache.saturating_sub(1))]
    Cache {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens that all cache pages hold.
        cache: usize,
    },
    /// No token is asked for.
    #[error("max_tokens is 0; ask for at least 1, or leave it out to generate until the model stops")]
    MaxTokens,
    /// An answer that should be longer than it may be.
    #[error("min_tokens is {min}, but max_tokens is {max}; give a min_tokens of at most {max}")]
    MinTokens {
        /// Tokens at least.
        min: u32,
        /// Tokens at most.
        max: u32,
    },
    /// A parameter that names a token which the model does not have.
    #[error(
        "{field}: there is no token {token}, the model's ids end at {last}; use the model's own tokenizer"
    )]
    NoSuchToken {
        /// The request's field.
        field: &'static str,
        /// The id found.
        token: u32,
        /// The largest id.
        last: u32,
    },
}

/// How a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model produced a stop token.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// Its caller cancelled it.
    Cancelled,
}

/// Why a sequence could not go on, though nothing is wrong with its request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SequenceError {
    /// A stage did not compute its batch.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// No token could be chosen for it.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The scheduler refused it.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// The last stage left the sequence out.
    #[error(
        "step {step}: the last stage returned no token for a sequence that asked for one; its version may differ"
    )]
    NoToken {
        /// The step.
        step: u64,
    },
}

/// Something that happened to a sequence.
#[derive(Debug, Clone)]
pub enum SequenceEvent {
    /// A new token, never a stop token.
    Token {
        /// Whose.
        id: SequenceId,
        /// Counts the sequence's generated tokens from 0.
        index: u32,
        /// The token.
        sampled: Sampled,
    },
    /// The sequence's last event.
    Finished {
        /// Whose.
        id: SequenceId,
        /// How it ended.
        reason: FinishReason,
        /// Tokens generated, a stop token included.
        generated: u32,
        /// Tokens of the prompt that were not computed for it, since others had.
        cached: u32,
    },
    /// The sequence's last event, if it failed.
    Failed {
        /// Whose.
        id: SequenceId,
        /// What happened.
        error: SequenceError,
        /// Tokens generated.
        generated: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Waits or runs.
    Live,
    /// Gives its pages back and waits again, once no batch in flight uses them.
    Evicted,
    /// Is forgotten once no batch in flight uses its pages.
    Ended,
}

/// What a sequence's next tokens are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its cache is being filled: with the prompt, or again with all that it has after it lost its pages.
    Prompt,
    /// One token a step.
    Decode,
    /// One token and guesses at those after it, all of which the step verifies.
    Verify,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) state: State,
    pub(super) phase: Phase,
    /// Whether its caller takes no more tokens for now: it keeps its pages but gets no turn.
    pub(super) paused: bool,
    /// The prompt, then what was generated.
    pub(super) tokens: Vec<u32>,
    /// What penalties count of `tokens`. Batches in flight share it; they are nearly always done when it changes.
    counts: Arc<TokenCounts>,
    /// Guesses that the batch in flight verifies.
    drafts: Vec<u32>,
    pub(super) pages: Vec<PageId>,
    /// Tokens whose latents are in the pages or on the way there: a prefix of `tokens`, and the one that comes next if its
    /// batch was made before it is known, and drafts.
    pub(super) scheduled: usize,
    /// Tokens whose latents are in the pages: their batches came back. A prefix of `tokens`.
    pub(super) computed: usize,
    /// What the full pages of `tokens` hold, as far as it was needed yet.
    pub(super) hashes: Vec<PageHash>,
    /// Pages that others may share, from the first on.
    pub(super) noted: usize,
    /// Tokens of the prompt that were not computed for it.
    pub(super) cached: u32,
    /// Whether it has lost what was computed for it: what it finds afterwards is not counted.
    evicted: bool,
    /// Whether it was part of a batch.
    pub(super) started: bool,
    /// Batches in flight that use the pages.
    pub(super) in_flight: usize,
    /// Step of the last batch it was part of.
    pub(super) last_step: u64,
    /// Pages that younger sequences needed which were admitted while it waited.
    pub(super) passed_by: usize,
    /// Length of `tokens` at which it ends.
    end: usize,
    prompt: usize,
    stop_ids: Vec<u32>,
    min_length: Option<MinLength>,
    pub(super) params: Arc<SamplingParams>,
    seed: u64,
    top_logprobs: u8,
    constraint: Option<Constrained>,
    drafter: Option<Arc<dyn Drafter>>,
    /// What is known of its guesses; `None` if all are verified.
    pub(super) guesses: Option<Guesses>,
    /// Guesses verified since this was looked at last.
    pub(super) verified: DraftStats,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, new: NewSequence, limit: usize) -> Self {
        let prompt = new.prompt.len();
        let end = new.max_tokens.map_or(limit, |max| prompt.saturating_add(max as usize).min(limit));
        Self {
            id,
            state: State::Live,
            phase: Phase::Prompt,
            paused: false,
            counts: Arc::new(TokenCounts::new(&new.prompt, &new.params)),
            tokens: new.prompt,
            drafts: Vec::new(),
            pages: Vec::new(),
            scheduled: 0,
            computed: 0,
            hashes: Vec::new(),
            noted: 0,
            cached: 0,
            evicted: false,
            started: false,
            in_flight: 0,
            last_step: 0,
            passed_by: 0,
            end,
            prompt,
            stop_ids: new.stop_ids,
            min_length: new.min_length,
            params: new.params,
            seed: new.seed,
            top_logprobs: new.top_logprobs,
            constraint: new.constraint,
            drafter: new.drafter,
            guesses: None,
            verified: DraftStats::default(),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Whether it gets turns.
    pub(super) fn runs(&self) -> bool {
        self.is_live() && !self.paused
    }

    /// Whether it has had its prompt and gets turns.
    pub(super) fn decodes(&self) -> bool {
        self.runs() && self.phase != Phase::Prompt
    }

    /// Tokens that the next batch may take: of a prompt as many as are left, else 1, or 0 while it is being sampled.
    pub(super) fn pending(&self) -> usize {
        if self.runs() { self.tokens.len().saturating_sub(self.scheduled) } else { 0 }
    }

    /// Whether the token that is being sampled is its last whatever it is.
    pub(super) fn ends_next(&self) -> bool {
        self.tokens.len() + 1 >= self.end
    }

    /// Whether the next choice needs to know the last token: for a penalty that counts it, a constraint, or a draft.
    pub(super) fn needs_last_token(&self) -> bool {
        let drafts = self.drafter.is_some() && self.max_drafts() > 0;
        self.params.has_penalties() || self.constraint.is_some() || drafts
    }

    /// Most guesses that a step verifies, if there is a drafter.
    fn max_drafts(&self) -> usize {
        self.guesses.map_or(usize::MAX, |guesses| guesses.max)
    }

    pub(super) fn generated(&self) -> u32 {
        (self.tokens.len() - self.prompt) as u32
    }

    /// Hashes the pages that its tokens fill.
    pub(super) fn hash_pages(&mut self, page_tokens: usize) {
        PageHash::extend(&mut self.hashes, &self.tokens, page_tokens);
    }

    /// What the pages hold that it may take from others: not the one with its last token, which has to be computed for the
    /// token after it.
    pub(super) fn shareable(&self, page_tokens: usize) -> &[PageHash] {
        let pages = self.tokens.len().saturating_sub(1) / page_tokens;
        &self.hashes[..pages.min(self.hashes.len())]
    }

    /// What its next page is to hold, if that is one it may take from others: its pages are full, and nothing of it is on
    /// the way.
    pub(super) fn next_page(&self, page_tokens: usize) -> Option<PageHash> {
        let place = self.pages.len();
        let begins = self.phase == Phase::Prompt && place * page_tokens == self.computed;
        self.shareable(page_tokens).get(place).filter(|_| begins).copied()
    }

    /// Takes a page that holds its next tokens.
    pub(super) fn adopt(&mut self, page: PageId, page_tokens: usize) {
        self.pages.push(page);
        self.noted = self.pages.len();
        self.computed += page_tokens;
        self.scheduled = self.computed;
        if !self.evicted {
            self.cached += page_tokens as u32;
        }
    }

    /// Takes notice that a batch with its tokens up to `end` came back.
    pub(super) fn land(&mut self, start: usize, end: usize) {
        // What follows tokens that were not computed is worth nothing. Drafts are not among its tokens yet.
        if start <= self.computed {
            self.computed = self.computed.max(end.min(self.tokens.len()));
        }
    }

    /// How it ended.
    pub(super) fn finished(&self, reason: FinishReason, generated: u32) -> SequenceEvent {
        SequenceEvent::Finished { id: self.id, reason, generated, cached: self.cached }
    }

    /// Forgets the cache: everything is to be computed again.
    pub(super) fn rewind(&mut self) {
        self.state = State::Live;
        self.phase = Phase::Prompt;
        self.drafts.clear();
        self.pages.clear();
        self.scheduled = 0;
        self.computed = 0;
        self.noted = 0;
        self.evicted = self.started;
        if !self.started {
            self.cached = 0;
        }
        self.in_flight = 0;
    }

    /// Guesses at most `max` tokens after the pending one, for the next slice to verify; says how many.
    pub(super) fn draft(&mut self, max: usize) -> usize {
        // The choice after the last draft is a token too.
        let max = max.min(self.max_drafts()).min(self.end.saturating_sub(self.tokens.len() + 1));
        let mut drafts = match &self.drafter {
            Some(drafter) if max > 0 => drafter.draft(&self.tokens, max),
            _ => Vec::new(),
        };
        drafts.truncate(max);
        self.drafts = drafts;
        self.drafts.len()
    }

    /// Drops all guesses but the first `count`, for which there is room.
    pub(super) fn keep_drafts(&mut self, count: usize) {
        self.drafts.truncate(count);
    }

    /// Its share of batch `step`: the next `count` tokens of its prompt, or its last token, with a 0 in its place while it
    /// is being sampled, and the drafts after it. Their pages are there.
    pub(super) fn slice(&mut self, count: usize, step: u64) -> SequenceSlice {
        let start = self.scheduled;
        self.started = true;
        self.in_flight += 1;
        self.last_step = step;
        let end = start + count;
        let mut tokens: Vec<_> = (start..end).map(|i| self.tokens.get(i).copied().unwrap_or(0)).collect();
        let output = if end >= self.tokens.len() {
            Output::Sample((0..=self.drafts.len()).map(|i| self.sampling(end + i, i)).collect())
        } else {
            Output::None
        };
        if !self.drafts.is_empty() {
            self.phase = Phase::Verify;
            tokens.extend_from_slice(&self.drafts);
        }
        self.scheduled = start + tokens.len();
        SequenceSlice { id: self.id, start: start as u32, tokens, pages: self.pages.clone(), output }
    }

    /// Takes the tokens that a batch chose for it: one, or those up to the first that is not as guessed.
    pub(super) fn accept(
        &mut self,
        step: u64,
        sampled: Vec<Result<Sampled, SampleError>>,
        events: &mut Vec<SequenceEvent>,
    ) {
        let drafts = std::mem::take(&mut self.drafts);
        let verifies = self.phase == Phase::Verify;
        self.phase = Phase::Decode;
        if sampled.len() != drafts.len() + 1 {
            return self.fail(SequenceError::NoToken { step }, events);
        }
        if drafts.is_empty() {
            self.compare_guess(&sampled);
        }
        let before = self.computed;
        for (i, sampled) in sampled.into_iter().enumerate() {
            match sampled {
                Ok(sampled) => {
                    let as_guessed = drafts.get(i) == Some(&sampled.token);
                    self.push(sampled, events);
                    if self.state == State::Ended {
                        return;
                    }
                    if !as_guessed {
                        break;
                    }
                    self.computed += 1;
                }
                Err(error) => return self.fail(error.into(), events),
            }
        }
        if !drafts.is_empty() {
            let accepted = self.computed - before;
            self.guesses.iter_mut().for_each(|guesses| guesses.note(drafts.len(), accepted));
            self.verified.drafted += drafts.len() as u64;
            self.verified.accepted += accepted as u64;
        }
        if verifies {
            // The last token is not computed yet; slots after it hold rejected drafts, and are written again.
            self.scheduled = self.tokens.len() - 1;
        }
    }

    /// Compares what would have been guessed with a token that was chosen without guesses.
    fn compare_guess(&mut self, sampled: &[Result<Sampled, SampleError>]) {
        if let (Some(guesses), Some(drafter), [Ok(next)]) = (&mut self.guesses, &self.drafter, sampled) {
            let guess = drafter.draft(&self.tokens, 1);
            guesses.note(guess.len().min(1), usize::from(guess.first() == Some(&next.token)));
        }
    }

    /// Adds a sampled token, or ends the sequence.
    fn push(&mut self, sampled: Sampled, events: &mut Vec<SequenceEvent>) {
        let (id, index) = (self.id, self.generated());
        if self.stop_ids.contains(&sampled.token) {
            self.state = State::Ended;
            events.push(self.finished(FinishReason::Stop, index + 1));
            return;
        }
        if let Some(constraint) = &self.constraint {
            constraint.accept(sampled.token);
        }
        if self.params.has_penalties() {
            Arc::make_mut(&mut self.counts).add(sampled.token);
        }
        self.tokens.push(sampled.token);
        events.push(SequenceEvent::Token { id, index, sampled });
        if self.tokens.len() >= self.end {
            self.state = State::Ended;
            events.push(self.finished(FinishReason::Length, index + 1));
        }
    }

    pub(super) fn fail(&mut self, error: SequenceError, events: &mut Vec<SequenceEvent>) {
        self.state = State::Ended;
        events.push(SequenceEvent::Failed { id: self.id, error, generated: self.generated() });
    }

    /// What chooses the token at `position`, after `drafts` guesses. Where nothing is counted the token before it need not
    /// be known.
    fn sampling(&self, position: usize, drafts: usize) -> Sampling {
        let ahead = &self.drafts[..drafts];
        let constraint = self.constraint.as_ref();
        let allowed = match &self.min_length {
            Some(min_length) => min_length.mask(position - self.prompt, constraint, ahead),
            None => constraint.map(|constraint| constraint.mask(ahead)),
        };
        Sampling {
            params: self.params.clone(),
            counts: self.counts_after(ahead),
            uniform: uniform(self.seed, position as u64),
            top_logprobs: self.top_logprobs,
            allowed,
        }
    }

    fn counts_after(&self, ahead: &[u32]) -> Arc<TokenCounts> {
        if ahead.is_empty() || !self.params.has_penalties() {
            return self.counts.clone();
        }
        let mut counts = TokenCounts::clone(&self.counts);
        ahead.iter().for_each(|&token| counts.add(token));
        Arc::new(counts)
    }
}
