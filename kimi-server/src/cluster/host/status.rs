//! What a worker tells observers of itself and shares of its files, whoever it serves meanwhile.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kimi_net::{ErrorReport, Event, Filling, Fingerprint, Holding, Look, ModelFiles, Status, Worker};

use super::{Host, Refusal};
use crate::capacity::Capacity;

/// How long an observer may stay without a question.
const IDLE: Duration = Duration::from_secs(30);

/// Answers an observer until it leaves. `coordinator` names the one that is served.
pub(in crate::cluster) async fn answer(
    mut observer: Worker,
    host: Arc<Host>,
    coordinator: impl Fn() -> Option<String>,
) {
    let sender = observer.sender();
    let mut shared = None;
    while let Ok(Ok(event)) = tokio::time::timeout(IDLE, observer.next()).await {
        let look = match event {
            Event::Looked(look) => look,
            Event::Fetched(fetch) => {
                let (host, opened) = (host.clone(), shared.take());
                let done = tokio::task::spawn_blocking(move || host.piece(&fetch, opened)).await;
                let (opened, piece, payload) = match done {
                    Ok(Ok(found)) => found,
                    Ok(Err(Refusal { code, text, told })) => {
                        tracing::warn!(observer = observer.peer().node_id, "can't share: {text}");
                        // An error means that the observer has gone already.
                        return drop(sender.fail(ErrorReport::fatal(code, told)));
                    }
                    Err(_) => return,
                };
                shared = Some(opened);
                match sender.piece(piece, payload) {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            _ => continue,
        };
        if look.measures_link() {
            let filling = Filling::of(look.reply_bytes as usize);
            let sent = sender.status(Status { clock_micros: clock_micros(), filling, ..Status::default() });
            match sent {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        let (host, served) = (host.clone(), coordinator().unwrap_or_default());
        // It reads files, and may wait for a device that is being loaded.
        let status = tokio::task::spawn_blocking(move || host.status(&look, served)).await;
        let Ok(status) = status else { return };
        if sender.status(status).is_err() {
            return;
        }
    }
}

/// Microseconds since 1970.
fn clock_micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

impl Host {
    fn status(&self, look: &Look, coordinator: String) -> Status {
        let capacity = self.capacity.get_or_init(|| Capacity::of(&self.config.device));
        let loaded = self.loaded();
        let holding = loaded.as_ref().map(|loaded| Holding {
            fingerprint: loaded.key.fingerprint,
            first_layer: loaded.key.layers.start as u32,
            last_layer: loaded.key.layers.end.saturating_sub(1) as u32,
            weight_bytes: loaded.weight_bytes,
            cache_bytes: loaded.cache_bytes,
        });
        let held = holding.as_ref().map_or(0, |held| held.weight_bytes + held.cache_bytes);
        let device = loaded.as_ref().map(|loaded| loaded.stage.device.clone());
        drop(loaded);
        Status {
            device: device.unwrap_or_else(|| capacity.device.clone()),
            memory_bytes: capacity.memory,
            available_bytes: capacity.free(0).unwrap_or(0).saturating_sub(match capacity.separate {
                true => held,
                false => 0, // the system has taken it off
            }),
            clock_micros: clock_micros(),
            coordinator,
            holding,
            model: (!look.model.is_empty()).then(|| self.files(&look.model)),
            filling: Filling::default(),
        }
    }

    /// This worker's files of a model.
    fn files(&self, name: &str) -> ModelFiles {
        match self.open(name) {
            Ok(checkpoint) => ModelFiles::Found(Fingerprint(checkpoint.description().fingerprint())),
            Err(error) => {
                ModelFiles::Unusable(Refusal::lookup(name, &error).told.chars().take(1000).collect())
            }
        }
    }
}
