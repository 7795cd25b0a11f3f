//! What a sequence may say next, and guesses at what it will say.
//!
//! A [`Constraint`] is asked for a mask of tokens before each choice. The mask is computed while the step's forward pass
//! runs: the scheduler puts a [`Mask`] into the batch, the engine has it computed on a thread of its own, and the stage
//! that samples waits for it only when it has the logits. A [`Drafter`] guesses tokens that the next step verifies.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Limits the tokens of one sequence, for instance to a grammar.
///
/// A stop token is a token like any other: a mask that allows none keeps the sequence going.
pub trait Constraint: fmt::Debug + Send {
    /// Takes a token that was chosen for the sequence. Masks are computed for the tokens accepted so far.
    fn accept(&mut self, token: u32);

    /// The tokens that may follow the accepted ones and `ahead`, which are guesses at the tokens in between: the words of a
    /// [`TokenMask`](crate::sampler::TokenMask); `None` for all tokens. Where `ahead` breaks the constraint any answer
    /// will do, since its tokens are not chosen then.
    fn mask(&mut self, ahead: &[u32]) -> Option<Arc<[u32]>>;
}

/// A constraint's handle. Clones share it, so each sequence takes a constraint of its own.
#[derive(Debug, Clone)]
pub struct Constrained(Arc<Mutex<dyn Constraint>>);

impl Constrained {
    /// A handle on a constraint that has accepted nothing yet.
    pub fn new(constraint: impl Constraint + 'static) -> Self {
        Self(Arc::new(Mutex::new(constraint)))
    }

    /// See [`Constraint::accept`].
    pub fn accept(&self, token: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).accept(token);
    }

    /// The mask after the accepted tokens and `ahead`, to be computed when it is asked for.
    pub fn mask(&self, ahead: &[u32]) -> Mask {
        self.mask_within(ahead, None)
    }

    /// The same without the tokens that `within` does not allow, as long as others are left.
    fn mask_within(&self, ahead: &[u32], within: Option<Arc<[u32]>>) -> Mask {
        let (constraint, ahead) = (Some(self.clone()), ahead.to_vec());
        Mask(Arc::new(PendingMask { constraint, within, ahead, words: OnceLock::new() }))
    }
}

/// A least length: the tokens that end an answer can't be chosen before.
#[derive(Debug, Clone)]
pub struct MinLength {
    tokens: usize,
    /// All tokens but those that end the answer.
    going_on: Arc<[u32]>,
}

impl MinLength {
    /// `tokens` tokens before one of `stop_ids` may be chosen, of a vocabulary of so many ids. `None` if that changes
    /// nothing.
    pub fn new(tokens: usize, stop_ids: &[u32], vocabulary: usize) -> Option<Self> {
        if tokens == 0 || stop_ids.is_empty() {
            return None;
        }
        let mut words = vec![u32::MAX; vocabulary.div_ceil(32)];
        for &id in stop_ids {
            if let Some(word) = words.get_mut(id as usize / 32) {
                *word &= !(1 << (id % 32));
            }
        }
        Some(Self { tokens, going_on: words.into() })
    }

    /// The mask for the token after `generated` others, of which `ahead` are guesses, within that of the constraint. If
    /// the constraint leaves nothing but an end, the answer ends.
    pub fn mask(&self, generated: usize, constraint: Option<&Constrained>, ahead: &[u32]) -> Option<Mask> {
        match constraint {
            _ if generated >= self.tokens => constraint.map(|constraint| constraint.mask(ahead)),
            Some(constraint) => Some(constraint.mask_within(ahead, Some(self.going_on.clone()))),
            None => {
                let (within, ahead) = (Some(self.going_on.clone()), Vec::new());
                Some(Mask(Arc::new(PendingMask { constraint: None, within, ahead, words: OnceLock::new() })))
            }
        }
    }
}

/// A mask that is computed once, by whoever asks for it first. Clones share it.
#[derive(Debug, Clone)]
pub struct Mask(Arc<PendingMask>);

#[derive(Debug)]
struct PendingMask {
    constraint: Option<Constrained>,
    within: Option<Arc<[u32]>>,
    ahead: Vec<u32>,
    words: OnceLock<Option<Arc<[u32]>>>,
}

impl Mask {
    /// The words of the mask, `None` for all tokens. Computes them, or waits for the thread that does.
    pub fn words(&self) -> Option<&[u32]> {
        self.0.words.get_or_init(|| self.0.compute()).as_deref()
    }
}

impl PendingMask {
    fn compute(&self) -> Option<Arc<[u32]>> {
        let Some(constraint) = &self.constraint else { return self.within.clone() };
        let own = constraint.0.lock().unwrap_or_else(PoisonError::into_inner).mask(&self.ahead);
        let (Some(own), Some(within)) = (&own, &self.within) else { return own.or(self.within.clone()) };
        let both: Arc<[u32]> = own.iter().zip(within.iter()).map(|(a, b)| a & b).collect();
        Some(if both.iter().all(|&word| word == 0) { own.clone() } else { both })
    }
}

impl PartialEq for Mask {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Guesses the tokens that a sequence will choose, so that one step can verify several.
///
/// The text does not depend on the guesses: a token that differs from the guess is taken as it is, and the guesses after it
/// are dropped.
pub trait Drafter: fmt::Debug + Send + Sync {
    /// Up to `max` tokens that may follow `tokens`, prompt and answer so far. Called on the engine's thread for each step,
    /// so it has to be quick; no guess means an ordinary step.
    fn draft(&self, tokens: &[u32], max: usize) -> Vec<u32>;
}
