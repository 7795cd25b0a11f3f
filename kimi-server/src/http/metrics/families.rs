//! The families of a [`Snapshot`].

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Labels;
use crate::monitor::{ModelState, ModelStatus, ProcessState, Snapshot, StageState, StageStatus};

/// What is collected for one page.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) now: Snapshot,
    /// Connections by what they do: nothing, sending a request, taking in an answer.
    pub(super) connections: [usize; 3],
}

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let Snapshot { version, slow, uptime_seconds, models, process, .. } = &self.now;
        page.gauge("kimi_build_info", "Version of the program", [(vec![("version", version.clone())], 1.0)])?;
        page.gauge("kimi_uptime_seconds", "Since the server began", one(*uptime_seconds))?;
        let help = "1 while something is known to make the server slow; /health says what";
        page.gauge("kimi_slow", help, one(flag(slow.is_some())))?;
        let phases = ["quiet", "sending", "answering"].into_iter().zip(self.connections);
        let phases = phases.map(|(phase, n)| (vec![("phase", phase.to_owned())], n as f64));
        page.gauge("kimi_http_connections", "Connections to the API by what they do", phases)?;
        page.models(models)?;
        page.stages(models)?;
        page.links(models)?;
        page.process(process)
    }
}

/// A value without labels.
fn one(value: f64) -> [(Labels, f64); 1] {
    [(Vec::new(), value)]
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn model_label(model: &ModelState) -> (&'static str, String) {
    ("model", model.id.clone())
}

fn stage_labels(model: &ModelState, stage: &StageState) -> Labels {
    vec![model_label(model), ("stage", stage.stage.to_string()), ("node", stage.name())]
}

/// The page that is being written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A value that may fall.
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, series)
    }

    /// A value that only rises; `_total` is added to its name.
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, series)
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series {
            let mut series = family.encode_family(&labels)?;
            match kind {
                MetricType::Counter => series.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
                _ => series.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn models(&mut self, models: &[ModelState]) -> fmt::Result {
        let of = |value: fn(&ModelState) -> f64| {
            models.iter().map(move |model| (vec![model_label(model)], value(model)))
        };
        let states = models.iter().flat_map(|model| {
            ModelStatus::ALL.map(|status| {
                let labels = vec![model_label(model), ("state", status.word().to_owned())];
                (labels, flag(model.status == status))
            })
        });
        self.gauge("kimi_model_state", "1 for what the model can do now", states)?;
        let sequences = models.iter().flat_map(|model| {
            let series = [("running", model.sequences.running), ("waiting", model.sequences.waiting)];
            series.map(|(state, n)| (vec![model_label(model), ("state", state.to_owned())], n as f64))
        });
        let help = "Requests that hold pages of the cache, and those that wait for pages or their turn";
        self.gauge("kimi_sequences", help, sequences)?;
        self.gauge("kimi_cache_pages", "Pages of the latent cache", of(|m| m.pages.total.into()))?;
        self.gauge("kimi_cache_pages_used", "Pages of the cache in use", of(|m| m.pages.used.into()))?;
        let help = "How often a request had to give up its pages, to be computed again";
        self.counter("kimi_evictions", help, of(|m| m.evictions as f64))?;
        let help = "Pages of the cache that prompts may begin with, in use or kept";
        self.gauge("kimi_prefix_cache_pages", help, of(|m| m.prefix_cache.pages.into()))?;
        let requests = models.iter().flat_map(|model| {
            let series = [("hit", model.prefix_cache.hits), ("miss", model.prefix_cache.misses)];
            series.map(|(result, n)| (vec![model_label(model), ("result", result.to_owned())], n as f64))
        });
        let help = "Requests begun, by whether pages of their prompts were there already";
        self.counter("kimi_prefix_cache_requests", help, requests)?;
        let help = "Tokens of prompts that were not computed since their pages were there already";
        self.counter("kimi_cached_prompt_tokens", help, of(|m| m.prefix_cache.tokens as f64))?;
        let help = "Pages on the disk that prompts may begin with";
        self.gauge("kimi_prefix_cache_disk_pages", help, of(|m| m.prefix_cache.stored_pages.into()))?;
        let help = "Bytes of pages on the disk, those of other models in the same folder included";
        self.gauge("kimi_prefix_cache_disk_bytes", help, of(|m| m.prefix_cache.stored_bytes as f64))?;
        let help = "Pages that were brought back from the disk";
        self.counter("kimi_prefix_cache_disk_restores", help, of(|m| m.prefix_cache.restored_pages as f64))?;
        let help = "Tokens that were guessed and verified by a step";
        self.counter("kimi_drafted_tokens", help, of(|m| m.drafts.drafted as f64))?;
        let help = "Guessed tokens that were right";
        self.counter("kimi_accepted_drafts", help, of(|m| m.drafts.accepted as f64))?;
        self.gauge("kimi_batches_in_flight", "Batches under way", of(|m| m.batches.in_flight as f64))?;
        self.gauge("kimi_batches_limit", "Most batches under way now", of(|m| m.batches.limit as f64))?;
        self.counter("kimi_steps", "Batches computed", of(|m| m.steps as f64))?;
        self.counter("kimi_generated_tokens", "Tokens generated", of(|m| m.tokens_generated as f64))?;
        let help = "Tokens of prompts computed, those computed again included";
        self.counter("kimi_prompt_tokens", help, of(|m| m.prompt_tokens as f64))?;
        self.counter("kimi_stage_losses", "How often a stage was lost", of(|m| m.losses as f64))
    }

    fn stages(&mut self, models: &[ModelState]) -> fmt::Result {
        let stages = || models.iter().flat_map(|model| model.stages.iter().map(move |stage| (model, stage)));
        let states = stages().flat_map(|(model, stage)| {
            StageStatus::ALL.map(|status| {
                let state = ("state", status.word().to_owned());
                ([stage_labels(model, stage), vec![state]].concat(), flag(stage.status == status))
            })
        });
        self.gauge("kimi_node_state", "1 for what the node of a stage does now", states)?;
        let of = |value: fn(&StageState) -> Option<f64>| {
            stages().filter_map(move |(model, stage)| Some((stage_labels(model, stage), value(stage)?)))
        };
        let help = "Bytes of weights in place, while layers are being loaded";
        self.gauge("kimi_node_loaded_bytes", help, of(|s| s.loading.map(|l| l.loaded_bytes as f64)))?;
        let help = "Bytes of weights to load, while layers are being loaded";
        self.gauge("kimi_node_loading_bytes", help, of(|s| s.loading.map(|l| l.total_bytes as f64)))?;
        let help = "Bytes that the weights and the cache of a stage take";
        self.gauge("kimi_stage_bytes", help, of(|s| s.bytes.map(|bytes| bytes as f64)))?;
        self.counter("kimi_stage_steps", "Batches that a stage has computed", of(|s| Some(s.steps as f64)))?;
        let times = stages().flat_map(|(model, stage)| {
            let parts = [
                ("compute", stage.compute_seconds),
                ("device", stage.device_seconds),
                ("sampling", stage.sampling_seconds),
                ("queue", stage.queue_seconds),
                ("wire", stage.wire_seconds),
            ];
            parts.map(|(part, seconds)| {
                ([stage_labels(model, stage), vec![("part", part.to_owned())]].concat(), seconds)
            })
        });
        let help = "Where a stage's steps spent their time: computing, waiting for the device, choosing tokens, behind other \
                    steps, between the machines";
        self.counter("kimi_stage_seconds", help, times)
    }

    fn links(&mut self, models: &[ModelState]) -> fmt::Result {
        let of = |value: fn(&StageState) -> Option<f64>| {
            let stages = models.iter().flat_map(|model| model.stages.iter().map(move |stage| (model, stage)));
            stages.filter_map(move |(model, stage)| Some((stage_labels(model, stage), value(stage)?)))
        };
        let help = "Mean of the last few round trips to the node of a stage";
        self.gauge("kimi_link_round_trip_seconds", help, of(|s| s.link?.round_trip_seconds))?;
        let help = "Bytes sent to the node of a stage";
        self.counter("kimi_link_sent_bytes", help, of(|s| Some(s.link?.sent_bytes as f64)))?;
        let help = "Bytes received from the node of a stage";
        self.counter("kimi_link_received_bytes", help, of(|s| Some(s.link?.received_bytes as f64)))?;
        let help = "Bytes that the node of a stage read again because its memory does not hold them";
        self.counter("kimi_node_paged_in_bytes", help, of(|s| Some(s.link?.paged_in_bytes as f64)))
    }

    /// Under Prometheus' own names where there are such.
    fn process(&mut self, process: &ProcessState) -> fmt::Result {
        let known = |value: Option<u64>| value.map(|value| (Vec::new(), value as f64));
        self.counter("process_cpu_seconds", "Time computing, all threads", one(process.cpu_seconds))?;
        let help = "Memory of the process, pages of mapped weights included";
        self.gauge("process_resident_memory_bytes", help, known(process.resident_bytes))?;
        self.gauge("process_open_fds", "Open files and sockets", known(process.open_files))?;
        self.gauge("process_max_fds", "Most open files and sockets", known(process.max_open_files))?;
        self.gauge("kimi_process_swap_bytes", "Memory of the process in swap", known(process.swap_bytes))?;
        let help = "How often the process waited for a page of a file or of swap";
        self.counter("kimi_process_major_page_faults", help, one(process.major_page_faults as f64))?;
        let help = "Kernels that a GPU's steps had to wait for because they were not compiled before";
        let kernels = process.kernels_made_in_steps as f64;
        self.counter("kimi_kernels_made_in_steps", help, one(kernels))?;
        let help = "Bytes read from disks, pages of mapped weights included";
        self.counter("kimi_process_disk_read_bytes", help, known(process.disk_read_bytes))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::monitor::LinkState;

    #[test]
    fn a_page_has_help_type_and_labels() {
        let stage = StageState {
            node: Some("b\"\n".to_owned()),
            status: StageStatus::Ok,
            steps: 7,
            wire_seconds: 0.5,
            link: Some(LinkState {
                round_trip_seconds: Some(0.25),
                sent_bytes: 1 << 40,
                received_bytes: 3,
                paged_in_bytes: 4,
            }),
            ..StageState::default()
        };
        let model = ModelState { id: "k2".to_owned(), stages: vec![stage], ..ModelState::default() };
        let now = Snapshot { models: vec![model], ..Snapshot::default() };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collected { now, connections: [1, 2, 3] }));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let stage = r#"model="k2",stage="0",node="b\"\n""#;
        for line in [
            "# TYPE kimi_stage_steps_total counter".to_owned(),
            format!("kimi_stage_steps_total{{{stage}}} 7.0"),
            format!("kimi_stage_seconds_total{{{stage},part=\"wire\"}} 0.5"),
            format!("kimi_node_state{{{stage},state=\"ok\"}} 1.0"),
            format!("kimi_node_state{{{stage},state=\"lost\"}} 0.0"),
            format!("kimi_link_round_trip_seconds{{{stage}}} 0.25"),
            format!("kimi_link_received_bytes_total{{{stage}}} 3.0"),
            format!("kimi_node_paged_in_bytes_total{{{stage}}} 4.0"),
            "kimi_http_connections{phase=\"answering\"} 3.0".to_owned(),
            "# HELP process_cpu_seconds_total Time computing, all threads".to_owned(),
            "kimi_slow 0.0".to_owned(),
            "kimi_kernels_made_in_steps_total 0.0".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        // What the system does not tell has no series, and no head.
        assert!(!text.contains("process_open_fds") && !text.contains("kimi_node_loaded_bytes"), "{text}");
    }
}
