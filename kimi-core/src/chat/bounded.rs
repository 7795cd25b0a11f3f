//! Text that is written piece by piece, no longer than it may be and only while somebody wants it.

use std::io;

use crate::cancel::CancelFlag;

/// How much rendering a chat may write, and for how long.
#[derive(Debug, Clone)]
pub struct RenderLimits {
    /// Most bytes of the prompt, or of any part of it.
    pub max_bytes: usize,
    /// Ends the rendering early.
    pub cancel: CancelFlag,
}

impl Default for RenderLimits {
    /// No limits.
    fn default() -> Self {
        Self { max_bytes: usize::MAX, cancel: CancelFlag::default() }
    }
}

/// Why a text was not written to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stopped {
    /// It has more bytes than [`RenderLimits::max_bytes`].
    #[error("the text is too long")]
    TooLong,
    /// [`RenderLimits::cancel`] was set.
    #[error("nobody waits for the text any more")]
    Cancelled,
}

/// A text within limits.
#[derive(Debug)]
pub(super) struct BoundedText<'l> {
    bytes: Vec<u8>,
    limits: &'l RenderLimits,
    stopped: Option<Stopped>,
}

impl<'l> BoundedText<'l> {
    pub(super) fn new(limits: &'l RenderLimits) -> Self {
        Self { bytes: Vec::new(), limits, stopped: None }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Stopped> {
        self.push_bytes(text.as_bytes())
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        if self.limits.cancel.is_cancelled() {
            return Err(*self.stopped.insert(Stopped::Cancelled));
        }
        if bytes.len() > self.limits.max_bytes.saturating_sub(self.bytes.len()) {
            return Err(*self.stopped.insert(Stopped::TooLong));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Why it ended early, if it did.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }

    pub(super) fn into_string(self) -> String {
        // Only whole strings were pushed, so nothing is replaced.
        String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// For a template engine, which writes whole strings.
impl io::Write for BoundedText<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push_bytes(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
