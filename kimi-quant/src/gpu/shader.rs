//! Shaders: an operation's text, the pieces it shares with others, and the constants that specialise it.

use super::{cuts, halves, unroll};
use crate::{FloatType, Format};

/// Largest grid dimension that is used; what is more goes on in the next dimension.
pub(crate) const GRID_Y: u32 = 32768;

/// Everything about an operation that does not change from call to call.
#[derive(Debug)]
pub(crate) struct Op {
    /// The file's name.
    pub(crate) name: &'static str,
    text: &'static str,
    /// Extensions of the language that it needs.
    enables: &'static str,
    /// Of each binding of its own whether it is written.
    writes: &'static [bool],
    /// Packed matrices; their bindings follow its own, two each.
    matrices: u32,
    /// Whether it sums over threads.
    pub(crate) sums: bool,
    /// Words of immediate data: of all of `Params`, with what fills it up to its alignment.
    pub(crate) params: usize,
    /// Whether sizes of matrices are parameters, which are constants for other operations.
    varied: bool,
}

macro_rules! op {
    ($constant:ident, $file:literal, $writes:expr, $matrices:literal, $sums:literal, $params:literal
     $(, with $piece:literal)* $(, enable $extension:literal)* $(, varied $varied:literal)?) => {
        pub(crate) static $constant: Op = Op {
            name: $file,
            text: concat!(
                $(include_str!(concat!("../../../shaders/", $piece, ".wgsl")),)*
                include_str!(concat!("../../../shaders/", $file, ".wgsl"))
            ),
            enables: concat!($("enable ", $extension, ";\n",)*),
            writes: &$writes,
            matrices: $matrices,
            sums: $sums,
            params: $params,
            varied: false $(|| $varied)?,
        };
    };
}

op!(MATVEC, "matvec", MATVEC_WRITES, 6, true, 24, with "quads", with "sizes_fixed");
op!(MATVEC_RAGGED, "matvec", MATVEC_WRITES, 6, true, 24, with "quads_ragged", with "sizes_fixed");
op!(MATVEC_VARIED, "matvec", MATVEC_WRITES, 6, true, 24, with "quads", with "sizes_varied", varied true);
op!(FEW, "few", [false, true, false, false, false], 2, true, 10, with "lines");
op!(TILED, "tiled", [false, true, false, false, false], 2, false, 10, with "lines");
op!(COOPERATIVE, "cooperative", [false, true, false, false, false, false], 2, false, 10, with "lines",
    enable "f16", enable "wgpu_cooperative_matrix");
op!(COOPERATIVE_8X8, "cooperative_8x8", [false, true, false, false, false], 2, false, 10, with "lines", with "matrix_8x8",
    enable "wgpu_cooperative_matrix");
op!(SPLIT16, "split16", [false, true, true], 0, false, 1, enable "f16");
op!(GROUP, "group", [false, true, true], 0, false, 2);
op!(COMBINE, "combine", [false, true], 0, false, 4);
op!(EMBED, "embed", [false, true, false], 1, false, 5);
op!(LATENT_QUERY_BY_INPUTS, "latent_query", LATENT_QUERY, 1, true, 9, with "input_rows");
op!(LATENT_QUERY_BY_OUTPUTS, "latent_query", LATENT_QUERY, 1, true, 9, with "output_rows");
op!(LATENT_QUERY_TILED, "latent_query", LATENT_QUERY, 1, true, 9, with "tile", with "tiled_rows");
op!(ATTEND, "attend", [false, true, true, false, false], 0, false, 6, with "segments", with "tile");
op!(ATTEND_COOPERATIVE, "attend_cooperative", [false, true, true, false, false], 0, false, 6, with "segments",
    enable "f16", enable "wgpu_cooperative_matrix");
op!(VALUES, "values", [false, true, false, false], 1, false, 8, with "output_rows");
op!(VALUES_TILED, "values", [false, true, false, false], 1, false, 8, with "tile", with "tiled_rows");
op!(RMS_NORM, "rms_norm", [false, true, false], 0, true, 1);
op!(ROUTE, "route", [false, true, true, false], 0, false, 3);
op!(SWIGLU, "swiglu", [false, true], 0, false, 1);
op!(NUDGE, "nudge", [true], 0, false, 0);
op!(TALLY, "tally", [true], 0, false, 0);
op!(READ, "read", [false, true], 0, false, 1);
op!(GATHER_ROWS, "gather_rows", [false, true, false], 0, false, 2);
op!(SAMPLE_SCAN, "sample_scan", [false, true, true, true, false, false], 0, false, 4, with "sample");
op!(SAMPLE_DIGIT, "sample_digit", [false, true, false], 0, false, 4, with "sample", with "sample_search");
op!(SAMPLE_WEIGH, "sample_weigh", [false, true, false, true], 0, false, 4, with "sample", with "sample_search");
op!(SAMPLE_CHOOSE, "sample_choose", [false, false, false, false, false, true], 0, false, 4, with "sample");

/// All of them.
#[cfg(test)]
pub(crate) static ALL: [&Op; 27] = [
    &MATVEC,
    &MATVEC_RAGGED,
    &MATVEC_VARIED,
    &FEW,
    &TILED,
    &COOPERATIVE,
    &COOPERATIVE_8X8,
    &SPLIT16,
    &GROUP,
    &COMBINE,
    &EMBED,
    &LATENT_QUERY_BY_INPUTS,
    &LATENT_QUERY_BY_OUTPUTS,
    &LATENT_QUERY_TILED,
    &ATTEND,
    &ATTEND_COOPERATIVE,
    &VALUES,
    &VALUES_TILED,
    &RMS_NORM,
    &ROUTE,
    &SWIGLU,
    &READ,
    &GATHER_ROWS,
    &SAMPLE_SCAN,
    &SAMPLE_DIGIT,
    &SAMPLE_WEIGH,
    &SAMPLE_CHOOSE,
];

/// Sizes of rows: parameters of varied operations.
const VARIED: [&str; 3] = ["COLS", "UNITS", "GROUPS"];

const MATVEC_WRITES: [bool; 6] = [false, true, true, false, false, false];
const LATENT_QUERY: [bool; 6] = [false, true, false, true, false, false];

/// What matrices are called in shaders: `matvec` has up to six, the others up to two.
const MATRICES: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "m5"];
const GATE_AND_UP: [&str; 2] = ["gate", "up"];

const PREPARE: &str = include_str!("../../../shaders/prepare.wgsl");
const DOT_FLOAT: &str = include_str!("../../../shaders/dot_float.wgsl");
const DOT_HALF: &str = include_str!("../../../shaders/dot_half.wgsl");
const DOT_INTEGER: &str = include_str!("../../../shaders/dot_integer.wgsl");
const CODES: &str = include_str!("../../../shaders/codes.wgsl");
const MATRIX: &str = include_str!("../../../shaders/matrix.wgsl");
const MATVEC_FETCH: &str = include_str!("../../../shaders/matvec_fetch.wgsl");
const NO_MATRIX: &str = include_str!("../../../shaders/no_matrix.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("../../../shaders/reduce_subgroup.wgsl");
const REDUCE_SHARED: &str = include_str!("../../../shaders/reduce_shared.wgsl");

/// How a matrix is packed, as far as shaders must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Packing {
    pub(crate) format: Format,
    pub(crate) cols: usize,
    /// Codes that a shader reads as one unit: `UNIT`, or twice as many.
    pub(crate) unit: usize,
    /// Rows that share their scales on the device.
    pub(crate) scale_rows: usize,
}

/// Codes of a unit.
pub(crate) const UNIT: usize = 32;

impl Packing {
    pub(crate) fn new(format: Format, cols: usize) -> Self {
        Self { format, cols, unit: UNIT, scale_rows: format.scale_rows() }
    }

    /// Of experts of `rows` rows each, which lie one after another: rows share no scales where an expert would end amid
    /// those that do.
    pub(crate) fn of_experts(format: Format, rows: usize, cols: usize) -> Self {
        let packing = Self::new(format, cols);
        if rows.is_multiple_of(packing.scale_rows) { packing } else { packing.with_own_scales() }
    }

    /// Every row with scales of its own.
    pub(crate) fn with_own_scales(self) -> Self {
        Self { scale_rows: 1, ..self }
    }

    /// Bits of a code: the words of `UNIT` codes.
    pub(crate) fn bits(self) -> usize {
        self.format.code_bits()
    }

    /// Words of a unit.
    fn words(self) -> usize {
        self.bits() * self.unit / UNIT
    }

    /// Units of a row, the last one filled up with zeros.
    pub(crate) fn units(self) -> usize {
        self.cols.div_ceil(self.unit)
    }

    /// With units of twice as many codes, where each of them has one scale and rows are whole units.
    pub(crate) fn wide(self) -> Option<Self> {
        let unit = 2 * UNIT;
        let possible = self.is_integer() && self.cols.is_multiple_of(unit) && self.format.group() >= unit;
        possible.then_some(Self { unit, ..self })
    }

    /// Groups of a row.
    pub(crate) fn groups(self) -> usize {
        if self.has_scales() { self.format.groups(self.cols) } else { 1 }
    }

    pub(crate) fn has_scales(self) -> bool {
        !matches!(self.format, Format::Float(_))
    }

    /// Whether the format has a factor on the whole matrix.
    pub(crate) fn has_global(self) -> bool {
        !matches!(self.format, Format::Affine { .. } | Format::Int4 { .. })
    }

    /// Groups of a unit.
    pub(crate) fn parts(self) -> usize {
        if self.has_scales() { (self.unit / self.format.group()).max(1) } else { 1 }
    }

    /// Whether its units can be multiplied by integer dot products.
    pub(crate) fn is_integer(self) -> bool {
        self.has_integer_codes() && self.parts() == 1
    }

    /// Whether its codes are whole numbers, of 2 to 8 bits.
    pub(crate) fn has_integer_codes(self) -> bool {
        matches!(self.format, Format::Affine { .. } | Format::Int4 { .. })
    }

    fn constants(self) -> Vec<(&'static str, u32)> {
        let (kind, scale) = match self.format {
            Format::Affine { scales, .. } => (0, float_code(scales)),
            Format::Int4 { scales, .. } => (1, float_code(scales)),
            Format::Mxfp4 => (2, 4),
            Format::Nvfp4 => (2, 5),
            Format::Mxfp8 => (3, 4),
            Format::Fp8 { scales } => (3, float_code(scales)),
            Format::Float(FloatType::Bf16) => (4, 0),
            Format::Float(FloatType::F16) => (5, 0),
            Format::Float(FloatType::F32) => (6, 0),
        };
        let shift = if self.has_scales() { (self.format.group() / self.unit).max(1).ilog2() } else { 31 };
        vec![
            ("BITS", self.bits() as u32),
            ("UNIT", self.unit as u32),
            ("WORDS", self.words() as u32),
            ("CHUNK", self.chunk()),
            ("KIND", kind),
            ("SCALE", scale),
            ("GROUP_SHIFT", shift),
            ("GROUPS", self.groups() as u32),
            ("SCALE_ROWS", self.scale_rows as u32),
            ("PARTS", self.parts() as u32),
            ("RAGGED", u32::from(!self.cols.is_multiple_of(self.unit))),
            ("GLOBAL", u32::from(self.has_global())),
            ("UNITS", self.units() as u32),
            ("COLS", self.cols as u32),
        ]
    }

    /// Words of a load: the most of which a unit is a whole number.
    fn chunk(self) -> u32 {
        match self.words() {
            words if words.is_multiple_of(4) => 4,
            words if words.is_multiple_of(2) => 2,
            _ => 1,
        }
    }
}

fn float_code(float: FloatType) -> u32 {
    match float {
        FloatType::Bf16 => 1,
        FloatType::F16 => 2,
        FloatType::F32 => 3,
    }
}

/// One specialisation of an operation; the key of its pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    pub(crate) op: &'static str,
    pub(crate) constants: Vec<(&'static str, u32)>,
    pub(crate) packing: Option<Packing>,
    /// How many of the operation's matrices there are.
    pub(crate) matrices: u32,
    /// How a unit of activations meets a unit of codes, where the operation leaves it open.
    pub(crate) dot: Option<Dot>,
    /// Whether sums use subgroups.
    pub(crate) subgroups: bool,
}

/// How a unit of activations meets a unit of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dot {
    /// dot_float.wgsl: any format.
    Float,
    /// dot_half.wgsl: integer codes, on a device that keeps denormal 16-bit floats.
    Half,
    /// dot_integer.wgsl: integer codes with scales for 32 or more.
    Integer,
}

impl Spec {
    pub(crate) fn new(op: &'static Op, constants: Vec<(&'static str, u32)>) -> Self {
        Self { op: op.name, constants, packing: None, matrices: 0, dot: None, subgroups: false }
    }

    pub(crate) fn with_matrices(mut self, packing: Packing, matrices: u32) -> Self {
        (self.packing, self.matrices) = (Some(packing), matrices);
        self
    }

    /// Of each binding whether it is written.
    pub(crate) fn writes(&self, op: &Op) -> Vec<bool> {
        let matrices = std::iter::repeat_n(false, 2 * self.matrices as usize);
        op.writes.iter().copied().chain(matrices).collect()
    }

    /// The whole shader.
    pub(crate) fn source(&self, op: &Op) -> String {
        let mut text = op.enables.to_owned();
        let mut constant = |name: &str, value: u32| text.push_str(&format!("const {name} = {value}u;\n"));
        constant("GRID_Y", GRID_Y);
        self.constants.iter().for_each(|(name, value)| constant(name, *value));
        if let Some(packing) = self.packing {
            let varies = |name: &str| op.varied && VARIED.contains(&name);
            let sizes = packing.constants().into_iter().filter(|(name, _)| !varies(name));
            sizes.for_each(|(name, value)| constant(name, value));
            let (chunk, unpack) = match packing.chunk() {
                4 => ("vec4<u32>", "@unroll for (var k = 0u; k < 4u; k++) { words[4u * i + k] = chunk[k]; }"),
                2 => ("vec2<u32>", "words[2u * i] = chunk.x; words[2u * i + 1u] = chunk.y;"),
                _ => ("u32", "words[i] = chunk;"),
            };
            text.push_str(&format!("alias Chunk = {chunk};\n"));
            text.push_str(CODES);
            let many = op.matrices > 2;
            let names: &[&str] = if many { &MATRICES } else { &GATE_AND_UP };
            for (i, name) in names.iter().take(op.matrices as usize).enumerate() {
                let binding = op.writes.len() + 2 * i;
                let piece = if (i as u32) < self.matrices { MATRIX } else { NO_MATRIX };
                text.push_str(
                    &piece
                        .replace("MATRIX", name)
                        .replace("CODES_BINDING", &binding.to_string())
                        .replace("SCALES_BINDING", &(binding + 1).to_string())
                        .replace("UNPACK_CHUNK", unpack),
                );
                if many {
                    let second = names.get(i + 1).unwrap_or(name);
                    text.push_str(&MATVEC_FETCH.replace("FIRST", name).replace("SECOND", second));
                }
            }
        }
        match (self.dot, self.packing) {
            (Some(Dot::Integer), Some(packing)) => {
                text.push_str(&cuts::shader(DOT_INTEGER, packing.bits(), packing.unit));
            }
            (Some(Dot::Half), Some(packing)) => {
                text.push_str(&PREPARE.replace("PLACES", "PLACES_OF_QUADS[q]"));
                text.push_str(&halves::shader(DOT_HALF, packing.bits(), packing.unit, packing.parts()));
            }
            (Some(Dot::Float), _) => {
                text.push_str(&PREPARE.replace("PLACES", "place_factors()"));
                text.push_str(DOT_FLOAT);
            }
            _ => {}
        }
        if op.sums {
            text.push_str(if self.subgroups { REDUCE_SUBGROUP } else { REDUCE_SHARED });
        }
        text.push_str(op.text);
        unroll::unroll(&text)
    }
}
