//! A model that knows nothing: it picks any token that the mask allows.

use std::sync::{Arc, LazyLock};

use kimi_core::constraint::Constrained;
use kimi_core::grammar::{Form, GrammarFault, Grammars};
use kimi_core::tokenizer::Tokenizer;
use serde_json::Value;

use crate::common::k2_file;

/// Tokens after which a text that has not ended is given up.
const MAX_TOKENS: usize = 1500;
/// Tokens after which it tries to come to an end.
const LONG: usize = 40;

/// Grammars over the vocabulary of the real models.
pub(crate) static KIMI: LazyLock<Sampler> =
    LazyLock::new(|| Sampler::new(Tokenizer::new(&k2_file(), None).unwrap()));

/// A tokenizer, and its grammars.
pub(crate) struct Sampler {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) grammars: Grammars,
    pub(crate) end: u32,
}

impl Sampler {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let end = tokenizer.id_of("<|im_end|>").unwrap();
        let grammars = Grammars::new(tokenizer.clone(), vec![end]);
        Self { tokenizer, grammars, end }
    }

    /// A text of the form, or `None` if it did not come to an end.
    pub(crate) fn write(&self, form: &Form<'_>, seed: u64) -> Result<Option<String>, GrammarFault> {
        Ok(self.run(&self.grammars.hold(form)?, seed))
    }

    /// A text that the constraint allows.
    pub(crate) fn run(&self, constraint: &Constrained, seed: u64) -> Option<String> {
        let mut random = Random(seed);
        let mut tokens = Vec::new();
        while tokens.len() < MAX_TOKENS {
            let mask = constraint.mask(&[]);
            let words = mask.words().expect("every token of a form is constrained");
            let allowed: Vec<u32> = set_bits(words).collect();
            assert!(!allowed.is_empty(), "stuck after {:?}", self.tokenizer.decode(&tokens, false));
            let token = self.pick(&allowed, tokens.len(), &mut random);
            if token == self.end {
                return Some(self.tokenizer.decode(&tokens, false).unwrap());
            }
            constraint.accept(token);
            tokens.push(token);
        }
        None
    }

    fn pick(&self, allowed: &[u32], written: usize, random: &mut Random) -> u32 {
        if allowed.contains(&self.end) && (written > LONG || random.below(4) == 0) {
            return self.end;
        }
        // Without this most strings would never end.
        let closes = |id: &u32| {
            let bytes = self.tokenizer.token_bytes(*id).unwrap_or_default();
            bytes.len() <= 3
                && bytes.iter().any(|b| b"\"]}".contains(b))
                && !bytes.iter().any(|b| b"[{\\".contains(b))
        };
        let odds = if written > LONG { 10 } else { 3 };
        if random.below(12) < odds {
            let closing: Vec<u32> = allowed.iter().copied().filter(closes).collect();
            if !closing.is_empty() {
                return closing[random.below(closing.len())];
            }
        }
        allowed[random.below(allowed.len())]
    }
}

/// The ids that a mask allows.
pub(crate) fn set_bits(words: &[u32]) -> impl Iterator<Item = u32> + '_ {
    let bits = |(place, word): (usize, &u32)| {
        let word = *word;
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| place as u32 * 32 + bit)
    };
    words.iter().enumerate().flat_map(bits)
}

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
        self.0 ^= self.0 >> 29;
        (self.0 >> 16) as usize % count
    }
}

/// Whether a text is JSON that a validator which is not ours accepts.
pub(crate) fn check(schema: &Value, text: &str) -> Result<(), String> {
    // Where the schema is from is not what it says, and is no address in some suites.
    let mut schema = schema.clone();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$id");
    }
    let validator = jsonschema::options().should_validate_formats(true).build(&schema);
    let validator = validator.map_err(|e| format!("the validator refuses the schema: {e}"))?;
    let value: Value = serde_json::from_str(text).map_err(|e| format!("{text:?} is no JSON: {e}"))?;
    validator.validate(&value).map_err(|e| format!("{text} does not validate: {e} at {}", e.schema_path()))
}
