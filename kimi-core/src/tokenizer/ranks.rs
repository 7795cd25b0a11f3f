//! `tiktoken.model`: one line `<base64 of the token's bytes> <rank>` for each token; the rank is the token's
//! id and its priority in merging.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::TokenizerError;

/// Largest vocabulary file accepted, in bytes (Kimi-K2's has 2.8 MB).
const MAX_FILE_BYTES: usize = 64 << 20;
/// Most tokens accepted (Kimi-K2 has 163,584).
const MAX_TOKENS: usize = 1 << 20;
/// Longest token accepted, in bytes.
const MAX_TOKEN_BYTES: usize = 1024;

/// The ordinary tokens: their bytes by rank, and their rank by bytes.
pub(super) struct Ranks {
    tokens: Vec<Box<[u8]>>,
    by_bytes: HashMap<Box<[u8]>, u32>,
}

impl Ranks {
    /// Reads and checks a whole file. The order of its lines does not matter; blank lines are skipped, as
    /// tiktoken does.
    pub(super) fn parse(file: &[u8]) -> Result<Self, TokenizerError> {
        if file.len() > MAX_FILE_BYTES {
            return Err(TokenizerError::TooLarge {
                what: "tiktoken.model",
                found: file.len(),
                limit: MAX_FILE_BYTES,
            });
        }
        let mut entries = Vec::new();
        for (number, line) in file.split(|&b| b == b'\n').enumerate() {
            let line_number = number + 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if entries.len() == MAX_TOKENS {
                return Err(TokenizerError::TooManyTokens { line: line_number, limit: MAX_TOKENS });
            }
            let (token, rank) = parse_line(line, line_number)?;
            entries.push(Entry { rank, line: line_number, token });
        }
        entries.sort_by_key(|e| (e.rank, e.line));
        check_ranks(&entries)?;
        let ranks = Self::index(entries)?;
        for byte in 0..=u8::MAX {
            if ranks.rank(&[byte]).is_none() {
                return Err(TokenizerError::MissingByte(byte));
            }
        }
        Ok(ranks)
    }

    fn index(entries: Vec<Entry>) -> Result<Self, TokenizerError> {
        let lines: Vec<usize> = entries.iter().map(|e| e.line).collect();
        let mut by_bytes = HashMap::with_capacity(entries.len());
        let mut tokens = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(other) = by_bytes.insert(entry.token.clone(), entry.rank) {
                let first = lines.get(other as usize).copied().unwrap_or_default();
                let (first, line) = (first.min(entry.line), first.max(entry.line));
                return Err(TokenizerError::DuplicateToken { line, first, rank: entry.rank });
            }
            tokens.push(entry.token);
        }
        Ok(Self { tokens, by_bytes })
    }

    /// Number of ordinary tokens; the first special id.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes of a token.
    pub(super) fn bytes(&self, rank: u32) -> Option<&[u8]> {
        self.tokens.get(rank as usize).map(|t| &**t)
    }

    /// The rank of exactly these bytes.
    pub(super) fn rank(&self, bytes: &[u8]) -> Option<u32> {
        self.by_bytes.get(bytes).copied()
    }

    /// Tokens in the order of their ranks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.tokens.iter().map(|t| &**t)
    }

    /// Every pair of tokens that makes a third: by the rank of what they make, then by their own.
    ///
    /// tiktoken merges the neighbours that make the token of the lowest rank, wherever they come from;
    /// listing all splits in that order makes a merge-list tokenizer do the same.
    pub(super) fn merges(&self) -> Vec<(u32, u32)> {
        let mut merges = Vec::with_capacity(2 * self.tokens.len());
        let mut splits = Vec::new();
        for token in &self.tokens {
            splits.clear();
            for at in 1..token.len() {
                let (left, right) = token.split_at(at);
                if let (Some(left), Some(right)) = (self.rank(left), self.rank(right)) {
                    splits.push((left, right));
                }
            }
            splits.sort_unstable();
            merges.append(&mut splits);
        }
        merges
    }
}

struct Entry {
    rank: u32,
    line: usize,
    token: Box<[u8]>,
}

fn parse_line(line: &[u8], number: usize) -> Result<(Box<[u8]>, u32), TokenizerError> {
    let shown = || String::from_utf8_lossy(line.get(..80).unwrap_or(line)).into_owned();
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
    let (Some(token), Some(rank), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err(TokenizerError::Line { line: number, found: shown() });
    };
    let token =
        STANDARD.decode(token).map_err(|e| TokenizerError::Base64 { line: number, reason: e.to_string() })?;
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(TokenizerError::TokenLength { line: number, found: token.len(), limit: MAX_TOKEN_BYTES });
    }
    let rank = std::str::from_utf8(rank)
        .ok()
        .and_then(|r| r.parse::<u32>().ok())
        .filter(|&r| (r as usize) < MAX_TOKENS)
        .ok_or_else(|| TokenizerError::Rank {
            line: number,
            found: String::from_utf8_lossy(rank.get(..40).unwrap_or(rank)).into_owned(),
            limit: MAX_TOKENS,
        })?;
    Ok((token.into_boxed_slice(), rank))
}

/// Entries sorted by rank must have the ranks 0, 1, 2, ...
fn check_ranks(entries: &[Entry]) -> Result<(), TokenizerError> {
    let mut previous_line = 0;
    for (expected, entry) in entries.iter().enumerate() {
        let found = entry.rank as usize;
        if found < expected {
            return Err(TokenizerError::DuplicateRank {
                line: entry.line,
                first: previous_line,
                rank: entry.rank,
            });
        }
        if found > expected {
            return Err(TokenizerError::Gap { missing: expected as u32, line: entry.line, next: entry.rank });
        }
        previous_line = entry.line;
    }
    Ok(())
}
