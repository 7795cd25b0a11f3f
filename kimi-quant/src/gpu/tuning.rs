//! Sizes of the one-token product kernel (shaders/matvec.wgsl).

use super::device::Device;
use super::hardware::Hardware;
use super::shader::{Dot, Packing, UNIT};

/// Sizes of the one-token kernel that may be tried out. Without it they are chosen by format and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Columns that a thread keeps: 32, or 64 where whole groups of scales allow it and codes are integers.
    pub unit: usize,
    /// Dot products that a thread accumulates at once, a power of two up to 16. For gate and up this counts both.
    pub values: u32,
    /// Steps of a workgroup; chosen by the number of workgroups for `None`. With more steps its activations are used longer.
    pub steps: Option<u32>,
    /// Whether integer codes are multiplied as integers (dot products of four bytes) and not as floats.
    pub integer: bool,
}

/// What a product is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) packing: Packing,
    /// How many rows are side by side as one.
    pub(crate) beside: u32,
    /// Units that have to be multiplied in one turn: those of a row, where several rows are side by side.
    pub(crate) apart: u32,
    /// Rows of a matrix or expert; of the second matrix, if there are two.
    pub(crate) rows: [usize; 2],
    /// Outputs of all workgroups together, for all tokens.
    pub(crate) outputs: usize,
    /// Whether there are two matrices, gate and up.
    pub(crate) gated: bool,
    /// Bindings of weights: the code that fetches from each is in the kernel.
    pub(crate) sources: usize,
    /// Whether it is for one token.
    pub(crate) single: bool,
    /// Whether it is for the (token, choice) pairs of a batch: much work with each expert's rows.
    pub(crate) routed: bool,
    /// Whether other products of a layer may have the same kernel.
    pub(crate) common: bool,
}

/// Sizes of a dispatch, as constants of the shader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The weights', with the unit that a thread has.
    pub(crate) packing: Packing,
    pub(crate) dot: Dot,
    /// Rows of a step and of both matrices together.
    pub(crate) step_rows: u32,
    pub(crate) values: u32,
    pub(crate) steps: u32,
    /// Units of a row or of the rows side by side, and how many turns they are multiplied in, of so many units each.
    units: u32,
    pub(crate) turns: u32,
    turn: u32,
    /// Threads on the units of a turn, and rows beneath each other.
    pub(crate) span: u32,
    pub(crate) slots: u32,
    pub(crate) workgroup: u32,
    /// Units of activations that are staged at once, and loads of a thread for all of them.
    staged: u32,
    loads: u32,
    /// Threads that fold their sums; 1 without subgroups.
    run: u32,
    /// Steps that there is shared memory for.
    max_steps: u32,
    /// Whether the kernel is the one of many sizes.
    pub(crate) common: bool,
}

/// Largest number of steps of a workgroup; and where sums are not folded, which takes more shared memory.
const MAX_STEPS: u32 = 16;
const MAX_STEPS_UNFOLDED: u32 = 2;
/// Largest number of outputs of a thread in a workgroup for a (token, choice) pair; in all others it is one.
const ROUTED_OUTPUTS: u32 = 4;
/// Largest number of threads that fold their sums.
const RUN: u32 = 16;
/// What a workgroup spends before its first step, in steps.
const PROLOGUE: usize = 2;
/// Largest number of threads of a workgroup with several slots.
const THREADS: u32 = 256;
/// Threads of a workgroup that are enough for what it loads and do not run out of registers.
const SOME_THREADS: u32 = 128;
/// A row of as many units is long: half as many threads on it are enough.
const LONG: usize = 128;
/// So many outputs are many: fewer threads a row still fill the device.
const MANY_OUTPUTS: usize = 16_000;
/// So many outputs keep the device busy for so long that fetching the kernel's code hardly counts.
const BUSY_OUTPUTS: usize = 50_000;
/// Bytes of activations that are staged at once, about: with over 24 KB of shared memory in all, an H100 runs one workgroup
/// at a time where its registers allow two.
const STAGED: u32 = 16 << 10;
/// Units that are multiplied in one turn at most where codes are not multiplied as integers: their activations are all the
/// registers and the shared memory that bringing them in takes.
const MAX_TURN: u32 = 64;
/// The same where a device is busy for long: more rows beneath each other, and less to bring in before the first.
const MAX_TURN_BUSY: u32 = 32;
/// Quads of activations that a thread loads in a kernel for many sizes: 256 threads load 8192 activations.
const COMMON_LOADS: u32 = 8;

/// Whether codes are multiplied as integers.
pub(crate) fn integer(device: &Device, given: Option<Tuning>, packing: Packing) -> bool {
    given.map_or(device.hardware.integer_dot, |t| t.integer) && packing.is_integer()
}

/// How a unit of activations meets a unit of codes.
pub(crate) fn dot(device: &Device, packing: Packing, integer: bool) -> Dot {
    match integer {
        true => Dot::Integer,
        false if device.keeps_denormals() && packing.has_integer_codes() => Dot::Half,
        false => Dot::Float,
    }
}

/// Bytes of shared memory for staged units of activations, sums, and the sums over a workgroup.
fn shared_bytes(staged: u32, packing: Packing, sums: u32, reduction: u32) -> u32 {
    4 * (staged * (packing.unit as u32 + 4) + sums + reduction)
}

/// What [`Sizes::shared_bytes`] was for the sizes that became a shader's constants.
#[cfg(test)]
pub(super) fn shared_bytes_of(spec: &super::shader::Spec) -> u32 {
    let constant = |name| spec.constants.iter().find(|c| c.0 == name).map_or(0, |c| c.1);
    let [workgroup, lanes] = ["WORKGROUP", "LANES"].map(constant);
    let values = constant("STEP_ROWS") * (1 + constant("GATED"));
    let sums = constant("MAX_STEPS") * workgroup / constant("RUN").max(1) * values;
    let reduction = if spec.subgroups { workgroup / lanes } else { workgroup };
    spec.packing.map_or(0, |packing| shared_bytes(constant("STAGED"), packing, sums, reduction))
}

impl Sizes {
    /// `None` where a row has more units than a workgroup may have threads.
    pub(crate) fn choose(device: &Device, given: Option<Tuning>, shape: &Shape) -> Option<Self> {
        let max_threads = device.max_threads();
        let matrices = 1 + u32::from(shape.gated);
        let integer = integer(device, given, shape.packing);
        // Twice the unit has fewer loads and sums for as many weights, if there are still enough threads.
        let long = shape.packing.units() >= LONG && shape.outputs >= MANY_OUTPUTS;
        let little_code =
            shape.sources == 1 && shape.beside == 1 && !(shape.gated && shape.packing.bits() > 5);
        let twice = little_code && (long || shape.routed);
        let unit = given.map_or(if twice { 2 * UNIT } else { UNIT }, |t| t.unit);
        let wide = if integer && unit > UNIT { shape.packing.wide() } else { None };
        let packing = wide.unwrap_or(shape.packing);
        let units = packing.units() as u32 * shape.beside;
        let threads = THREADS.min(max_threads);
        let busy = shape.outputs >= BUSY_OUTPUTS && shape.apart <= MAX_TURN_BUSY;
        let max_turn = if busy { MAX_TURN_BUSY } else { MAX_TURN }.min(threads);
        let turn = if integer { units } else { Self::turn(units, shape.apart, max_turn) };
        let turns = units.div_ceil(turn);
        let values = Self::values(device, given, shape, turn, packing.unit > UNIT);
        let longest = Self::longest_run(device);
        let run =
            if device.hardware.subgroups { longest.min(turn.next_power_of_two()).max(values) } else { 1 };
        let span = turn.next_multiple_of(run.max(values)); // so that no step has more outputs than threads
        if span > max_threads {
            return None;
        }
        let max_slots = (threads / span).max(1);
        // A software adapter is slow where threads idle, and has no instruction cache to save. Where sizes are given (by a
        // test), it runs what hardware would.
        let wanted = shape.common && (!device.hardware.software || given.is_some());
        let quads = turn * packing.unit as u32 / 4;
        let common_loads =
            if integer { COMMON_LOADS } else { (max_turn * UNIT as u32 / 4).div_ceil(threads) };
        let fits = run == longest && span <= threads && quads.div_ceil(threads) <= common_loads;
        let common = wanted && packing.unit == UNIT && packing.cols.is_multiple_of(4) && fits;
        // The number of slots that leaves the fewest threads without work.
        let idle = |slots: u32| (span * slots).next_multiple_of(device.hardware.lanes) * 60 / slots;
        let best = (1..=max_slots).min_by_key(|&n| (idle(n), (span * n).abs_diff(SOME_THREADS)));
        let slots = if common { max_slots } else { best.unwrap_or(1) };
        let mut workgroup = (span * slots).next_multiple_of(device.hardware.lanes).min(max_threads);
        let mut loads = quads.div_ceil(workgroup);
        let unit_bytes = 4 * (packing.unit as u32 + 4);
        let at_once = if integer { STAGED } else { max_turn * unit_bytes };
        let mut staged = turn.div_ceil((turn * unit_bytes).div_ceil(at_once));
        if common {
            (workgroup, loads) = (threads, common_loads);
            staged = if integer { STAGED / unit_bytes / RUN * RUN } else { max_turn };
        }
        let step_rows = values / matrices;
        let steps_in_all = shape.outputs.div_ceil((step_rows * slots) as usize);
        let room_for = if run > 1 { MAX_STEPS } else { MAX_STEPS_UNFOLDED };
        let max_outputs = workgroup * if shape.routed { ROUTED_OUTPUTS } else { 1 };
        let max_steps = room_for.min(max_outputs / (step_rows * slots));
        let steps = given.and_then(|t| t.steps);
        let steps = steps.unwrap_or_else(|| Self::best_steps(device, steps_in_all, workgroup, max_steps));
        let steps = steps.clamp(1, max_steps);
        let room_for = match (common, shape.single) {
            (true, _) => room_for,
            (_, true) => steps,
            (_, false) => steps.next_power_of_two(), // the same kernel for many numbers of tokens
        };
        let mut sizes = Self {
            packing,
            dot: dot(device, packing, integer),
            step_rows,
            values,
            steps,
            units,
            turns,
            turn,
            span,
            slots,
            workgroup,
            staged,
            loads,
            run,
            max_steps: room_for,
            common,
        };
        while sizes.shared_bytes(device) > device.limits.max_compute_workgroup_storage_size {
            if sizes.staged > 1 {
                sizes.staged /= 2;
            } else if sizes.max_steps > 1 {
                sizes.max_steps /= 2;
                sizes.steps = sizes.steps.min(sizes.max_steps);
            } else {
                return None;
            }
        }
        Some(sizes)
    }

    /// Units of a turn, of which `apart` belong together: as many as there are threads, in turns of the same size.
    fn turn(units: u32, apart: u32, threads: u32) -> u32 {
        if units <= threads || apart > threads {
            return units;
        }
        let pieces = units.div_ceil(apart);
        let turns = pieces.div_ceil(threads / apart);
        pieces.div_ceil(turns) * apart
    }

    /// Sums of a step: a power of two that divides all rows, so that a step has all of its rows or none. With `units` on a
    /// row, `wide` ones or not.
    fn values(device: &Device, given: Option<Tuning>, shape: &Shape, units: u32, wide: bool) -> u32 {
        let matrices = 1 + u32::from(shape.gated);
        let half = dot(device, shape.packing, integer(device, given, shape.packing)) == Dot::Half;
        let wanted = given.map_or_else(
            || match shape.packing.bits() {
                9.. => matrices,
                // Codes of more bits take more registers, and many rows at once more than leave enough threads.
                bits if half => {
                    if shape.single || bits > 5 {
                        4
                    } else {
                        8
                    }
                }
                _ if units > 288 => 4, // many threads, so fewer registers
                _ if wide || shape.gated || shape.outputs >= BUSY_OUTPUTS => 8,
                _ => 4, // as fast alone, and less code to fetch where other kernels came before
            },
            |t| t.values.clamp(1, 16),
        );
        let mut values = wanted.max(matrices).min(Self::longest_run(device).max(matrices));
        values = 1 << values.ilog2();
        let divides = |values: u32| {
            let rows = (values / matrices) as usize;
            shape.rows.iter().all(|n| n.is_multiple_of(rows))
        };
        while values > matrices && !divides(values) {
            values /= 2;
        }
        values
    }

    /// Threads that fold their sums where rows are long enough.
    fn longest_run(device: &Device) -> u32 {
        RUN.min(device.hardware.lanes)
    }

    /// The number of steps with which all workgroups are done first: they run in waves, each as long as its steps.
    fn best_steps(device: &Device, steps_in_all: usize, workgroup: u32, max_steps: u32) -> u32 {
        let Hardware { cores, resident_threads, .. } = device.hardware;
        let resident = cores * (resident_threads / workgroup as usize).max(1);
        let time = |steps: &usize| {
            let waves = steps_in_all.div_ceil(*steps).div_ceil(resident);
            // Over many waves, workgroups take turns and the last wave hardly counts.
            if waves > 4 {
                steps_in_all * (steps + PROLOGUE) / (steps * resident)
            } else {
                waves * (steps + PROLOGUE)
            }
        };
        (1..=max_steps as usize).min_by_key(time).unwrap_or(1) as u32
    }

    /// Shared memory, as matvec.wgsl declares it and the sums over workgroups.
    fn shared_bytes(&self, device: &Device) -> u32 {
        let reduction =
            if device.hardware.subgroups { self.workgroup / device.hardware.lanes } else { self.workgroup };
        let sums = self.max_steps * self.workgroup / self.run * self.values;
        shared_bytes(self.staged, self.packing, sums, reduction)
    }

    /// Rows of a workgroup.
    pub(crate) fn block(&self) -> usize {
        (self.steps * self.step_rows * self.slots) as usize
    }

    /// The shader's constants.
    pub(crate) fn constants(&self, device: &Device) -> Vec<(&'static str, u32)> {
        let mut constants = vec![
            ("STEP_ROWS", self.step_rows),
            ("WORKGROUP", self.workgroup),
            ("LANES", device.hardware.lanes),
            ("STAGED", self.staged),
            ("LOADS", self.loads),
            ("RUN", self.run),
            ("MAX_STEPS", self.max_steps),
            ("TURNS", if self.dot == Dot::Integer || (self.turns == 1 && !self.common) { 1 } else { 2 }), // how many is a parameter
        ];
        if !self.common {
            let sizes = [self.units, self.turn, self.span, self.slots];
            constants.extend(["BESIDE", "TURN", "SPAN", "SLOTS"].into_iter().zip(sizes));
        }
        constants
    }
}
