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
        let (constraint, ahead) = (self.clone(), ahead.to_vec());
        Mask(Arc::new(PendingMask { constraint, ahead, words: OnceLock::new() }))
    }
}

/// A mask that is computed once, by whoever asks for it first. Clones share it.
#[derive(Debug, Clone)]
pub struct Mask(Arc<PendingMask>);

#[derive(Debug)]
struct PendingMask {
    constraint: Constrained,
    ahead: Vec<u32>,
    words: OnceLock<Option<Arc<[u32]>>>,
}

impl Mask {
    /// The words of the mask, `None` for all tokens. Computes them, or waits for the thread that does.
    pub fn words(&self) -> Option<&[u32]> {
        let PendingMask { constraint, ahead, words } = &*self.0;
        let compute = || constraint.0.lock().unwrap_or_else(PoisonError::into_inner).mask(ahead);
        words.get_or_init(compute).as_deref()
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
