//! Copying pages out of a stage's cache and into it, for those who keep them elsewhere.

use bytes::Bytes;
use kimi_quant::Backend;

use super::{Stage, StageError, StageSpan};
use crate::batch::PageId;

/// What a page of a stage's cache looks like outside of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageForm {
    /// How its values are stored; differs where the bytes mean something else.
    pub form: String,
    /// Its bytes.
    pub bytes: usize,
}

/// Takes the bytes of a page, at most once, on any thread. It does not block. If it is dropped the page did not come.
pub type PageReader = Box<dyn FnOnce(Result<Bytes, StageError>) + Send>;

/// The same for a page that was put into a cache.
pub type PageWriter = Box<dyn FnOnce(Result<(), StageError>) + Send>;

/// The error of a stage whose pages can't be copied.
pub(super) fn no_pages(span: StageSpan) -> StageError {
    StageError::Input { span, what: "its pages can't be copied".to_owned() }
}

impl<B: Backend> Stage<B> {
    /// See [`Compute::page_form`](super::Compute::page_form).
    pub(super) fn form_of_pages(&self) -> Option<PageForm> {
        let mut forms: Vec<_> = self.caches.iter().map(|cache| self.backend.cache_form(cache)).collect();
        forms.dedup();
        let shape = self.geometry.cache_shape(self.cache.pages, self.cache.page_tokens);
        let bytes = shape.page_bytes().checked_mul(self.caches.len())?;
        let end = if cfg!(target_endian = "little") { "little" } else { "big" };
        let (latent, rope, tokens) = (shape.latent, shape.rope, shape.page_tokens);
        let forms = forms.join(", ");
        let form = format!("{tokens} tokens of {latent} + {rope} values, {end}-endian {forms}");
        Some(PageForm { form, bytes })
    }

    /// See [`Compute::read_page`](super::Compute::read_page).
    pub(super) fn page_bytes(&self, page: PageId) -> Result<Bytes, StageError> {
        Ok(self.backend.read_page(&self.caches, page)?.into())
    }

    /// See [`Compute::write_page`](super::Compute::write_page).
    pub(super) fn set_page_bytes(&mut self, page: PageId, bytes: &[u8]) -> Result<(), StageError> {
        Ok(self.backend.write_page(&mut self.caches, page, bytes)?)
    }
}
