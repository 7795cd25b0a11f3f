//! How much memory all requests' bodies may take together, while they arrive and while they are read.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::system;

/// Bytes that a permit of the semaphores stands for.
const UNIT: usize = 1024;
/// Bytes of a body that are not counted: there are no more of them than connections. So whoever sends a chat of usual
/// size is not kept waiting by those who send large ones.
const FREE_BODY: usize = 64 << 10;
/// Memory of a request that is not counted while it is read; requests up to here are bounded by their number.
const FREE_READING: usize = 2 << 20;

/// The memory for bodies. One half is for those that arrive: whoever finds it full is told to come again, since how
/// long the others take is up to their clients. The other half is for those that are being read, from their JSON to
/// the prompt: whoever finds it full waits, since that ends soon.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    arriving: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    /// Small requests that are read at once.
    small: Arc<Semaphore>,
    half: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let half = bytes / 2;
        let permits = (half / UNIT).min(u32::MAX as usize);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            arriving: Arc::new(Semaphore::new(permits)),
            reading: Arc::new(Semaphore::new(permits)),
            small: Arc::new(Semaphore::new(2 * cores)),
            half,
        }
    }

    /// A share for a body that begins to arrive.
    pub(super) fn body(&self) -> BodyShare {
        BodyShare { arriving: self.arriving.clone(), held: None }
    }

    /// Most bytes that one request may take while it is read.
    pub(super) fn max_reading(&self) -> usize {
        self.half
    }

    /// Whether a request that takes so many bytes while it is read is one of the few large ones.
    pub(super) fn is_large(bytes: usize) -> bool {
        bytes > FREE_READING
    }

    /// Waits for the memory that a request takes while it is read, at most [`Self::max_reading`].
    ///
    /// # Errors
    /// 500 if the server is gone.
    pub(super) async fn read(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = match Self::is_large(bytes) {
            false => self.small.clone().acquire_owned().await,
            true => self.reading.clone().acquire_many_owned(units(bytes.min(self.half))).await,
        };
        permit.map_err(|error| ApiError::internal(error.to_string()))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX)
}

/// What one body holds of the budget; given back when it is dropped, which must be after the body is.
#[derive(Debug)]
pub(super) struct BodyShare {
    arriving: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl BodyShare {
    /// Makes the share cover `bytes` in all.
    ///
    /// # Errors
    /// 503 if the other bodies leave no room.
    pub(super) fn cover(&mut self, bytes: usize) -> Result<(), ApiError> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u32;
        let more = units(bytes.saturating_sub(FREE_BODY)).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let permit = self.arriving.clone().try_acquire_many_owned(more).map_err(|_| ApiError::crowded())?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            held => *held = Some(permit),
        }
        Ok(())
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        if self.held.as_ref().is_some_and(|held| Budget::is_large(held.num_permits() * UNIT)) {
            system::return_freed_memory();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_one_half() {
        let budget = Budget::new(2 << 20);
        let (mut first, mut second) = (budget.body(), budget.body());
        assert_eq!(first.cover(FREE_BODY + (900 << 10)), Ok(()));
        assert_eq!(second.cover(FREE_BODY), Ok(()));
        assert_eq!(second.cover(FREE_BODY + (200 << 10)).unwrap_err().status, 503);
        assert_eq!(second.cover(FREE_BODY + (100 << 10)), Ok(()));
        drop(first);
        assert_eq!(second.cover(FREE_BODY + (1 << 20)), Ok(()));
        drop(second);
        assert_eq!(budget.arriving.available_permits(), 1 << 10);
    }

    #[tokio::test]
    async fn requests_wait_for_each_other() {
        let budget = Budget::new(8 << 20);
        let large = budget.read(4 << 20).await.unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { drop(budget.read(3 << 20).await.unwrap()) }
        });
        // Small ones do not wait for it.
        drop(budget.read(1000).await.unwrap());
        assert!(!waiting.is_finished());
        drop(large);
        waiting.await.unwrap();
    }
}
