//! The plan of a step on a Mac: every dispatch of it, compared with the committed text.
//!
//! `KIMI_WRITE_PLANS=1 cargo test -p kimi-quant --features gpu --lib gpu::tests::plan` writes it anew.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::super::device::Device;
use super::super::shader::Dot;
use super::fake::{K2, Looks, Model, Run, affine};
use super::translate::{parse, shared_bytes};
use super::{Observer, Seen};
use crate::{Backend, BackendError, BitWidth, FloatType, Format, SampleRequest, TokenLayout};

type Result<T = ()> = std::result::Result<T, BackendError>;

/// A dispatch, as far as a device's limits and a reader of plans care.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    op: &'static str,
    threads: u32,
    grid: [usize; 3],
    /// Bytes of threadgroup memory.
    shared: u32,
    buffers: usize,
    /// Weights and constants.
    specialisation: String,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, threads, grid: [x, y, z], shared, buffers, specialisation } = self;
        let grid = format!("{x}x{y}x{z}");
        write!(
            f,
            "{op:<13}{threads:>5} threads {grid:>11} {shared:>6} B {buffers:>3} buffers {specialisation}"
        )
    }
}

impl Planned {
    /// What Metal would refuse.
    fn excess(&self) -> Option<String> {
        let most = [
            ("bytes of threadgroup memory", self.shared as usize, 32 << 10),
            ("threads", self.threads as usize, 1024),
            ("buffers", self.buffers, 29),
            ("workgroups in a dimension", self.grid.into_iter().max().unwrap_or(0), 0xffff),
        ];
        let (what, found, limit) = most.into_iter().find(|(_, found, limit)| found > limit)?;
        Some(format!("{self}: {found} {what}, at most {limit} are allowed"))
    }
}

/// Writes down what is dispatched. Shared memory is counted once for each text.
#[derive(Default)]
struct Notes {
    planned: Mutex<Vec<Planned>>,
    counted: Mutex<HashMap<String, (u32, u32)>>,
}

impl Notes {
    /// Threads, and bytes of shared memory.
    fn sizes(&self, text: String) -> Result<(u32, u32)> {
        let mut counted = self.counted.lock().unwrap();
        if let Some(sizes) = counted.get(&text) {
            return Ok(*sizes);
        }
        let (module, info) = parse(&text).map_err(BackendError::Device)?;
        let shared = shared_bytes(&module, &info).map_err(BackendError::Device)?;
        let threads = module.entry_points[0].workgroup_size.iter().product();
        counted.insert(text, (threads, shared));
        Ok((threads, shared))
    }
}

impl Observer for Notes {
    fn see(&self, _: &Device, seen: &Seen<'_>) -> Result<bool> {
        let (threads, shared) = self.sizes(seen.spec.source(seen.op))?;
        let mut words: Vec<String> =
            seen.spec.packing.iter().map(|p| format!("{} [{}]", p.format, p.cols)).collect();
        words.extend(seen.spec.dot.map(|dot| if dot == Dot::Float { "float" } else { "integer" }.to_owned()));
        let constants = seen.spec.constants.iter().filter(|(name, _)| *name != "WORKGROUP");
        words.extend(constants.map(|(name, value)| format!("{name}={value}")));
        self.planned.lock().unwrap().push(Planned {
            op: seen.op.name,
            threads,
            grid: seen.grid,
            shared,
            buffers: seen.buffers.len(),
            specialisation: words.join(" "),
        });
        Ok(false)
    }
}

impl Run<'_> {
    /// Two layers, one without experts and one with them, between the first and the last of a model's steps; greedy tokens
    /// and such with top-p.
    fn forward(&self, layout: &TokenLayout, sequences: usize) -> Result {
        let (gpu, Model { hidden, query, heads, vocabulary, .. }) = (self.gpu, self.model);
        let tokens = layout.len();
        let mut x = gpu.embed(&self.matrix(vocabulary, hidden)?, &vec![0; tokens])?;
        let norm = self.norm(hidden)?;
        for dense in [true, false] {
            let (q_a, kv_a) = (self.matrix(query, hidden)?, self.matrix(heads.latent + heads.rope, hidden)?);
            let [q, _] = gpu.norm_project(&x, &norm, [&q_a, &kv_a])?;
            let q_b = self.matrix(heads.heads * (heads.nope + heads.rope), query)?;
            let [_] = gpu.norm_project(&q, &self.norm(query)?, [&q_b])?;
            self.attention(false, layout)?;
            let values = gpu.tensor(tokens, heads.heads * heads.value)?;
            gpu.project_add(&values, &self.matrix(hidden, heads.heads * heads.value)?, &mut x)?;
            if dense { self.dense(&mut x, &norm)? } else { self.routed(&mut x, &norm, false)? }
        }
        let rows: Vec<u32> = (0..sequences as u32).collect();
        let logits = gpu.head(&x, &rows, &norm, &self.matrix(vocabulary, hidden)?)?;
        let greedy: Vec<_> = rows.iter().map(|row| SampleRequest::greedy(*row)).collect();
        let filtered =
            |request: &SampleRequest<'static>| SampleRequest { temperature: 0.6, top_p: 0.95, ..*request };
        gpu.start_sample(&logits, &greedy)?;
        gpu.start_sample(&logits, &greedy.iter().map(filtered).collect::<Vec<_>>())?;
        gpu.wait()
    }
}

/// One token, one of each of eight sequences, or a prompt.
const STEPS: [(&str, usize, usize, u32); 3] =
    [("decode", 1, 1, 1600), ("batch", 8, 1, 1600), ("prefill", 1, 512, 0)];

fn plan(format: Format, (_, sequences, count, start): (&str, usize, usize, u32)) -> Result<Vec<Planned>> {
    let gpu = Looks::apple().gpu()?;
    let notes = Arc::new(Notes::default());
    gpu.recorder.lock().observer = Some(notes.clone());
    let mut layout = TokenLayout::new(64);
    for _ in 0..sequences {
        layout.push(start, count, &vec![0; (start as usize + count).div_ceil(64)])?; // all in one page: nothing is written
    }
    Run { gpu: &gpu, model: K2, format }.forward(&layout, sequences)?;
    let planned = notes.planned.lock().unwrap().clone();
    Ok(planned)
}

fn path(step: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/plans/metal_{step}.txt"))
}

#[test]
fn a_step_on_metal_is_what_was_committed() {
    let writes = std::env::var_os("KIMI_WRITE_PLANS").is_some();
    for step in STEPS {
        let mut text =
            format!("Kimi-K2 on an {}: {} of {} tokens.\n", Looks::apple().name, step.0, step.1 * step.2);
        for bits in BitWidth::ALL {
            text.push_str(&format!("\n{} bits\n", bits.bits()));
            for planned in plan(affine(bits, 64, FloatType::Bf16), step).unwrap() {
                assert_eq!(planned.excess(), None, "{} bits", bits.bits());
                text.push_str(&format!("{planned}\n"));
            }
        }
        let path = path(step.0);
        if writes {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = text.lines().zip(committed.lines()).find(|(found, expected)| found != expected);
        assert!(
            text == committed,
            "{}: {differs:#?} (found, committed; {} and {} lines). If that is meant, KIMI_WRITE_PLANS=1 writes it anew",
            path.display(),
            text.lines().count(),
            committed.lines().count(),
        );
    }
}

#[test]
fn what_metal_would_refuse_is_found() {
    let fine = Planned {
        op: "matvec",
        threads: 1024,
        grid: [0xffff, 1, 1],
        shared: 32 << 10,
        buffers: 29,
        specialisation: String::new(),
    };
    assert_eq!(fine.excess(), None);
    for (planned, what) in [
        (Planned { threads: 1056, ..fine.clone() }, "1056 threads, at most 1024"),
        (Planned { grid: [1, 65536, 1], ..fine.clone() }, "65536 workgroups in a dimension, at most 65535"),
        (Planned { shared: 32784, ..fine.clone() }, "32784 bytes of threadgroup memory, at most 32768"),
        (Planned { buffers: 30, ..fine.clone() }, "30 buffers, at most 29"),
    ] {
        assert!(planned.excess().unwrap().contains(what), "{planned}");
    }
}
