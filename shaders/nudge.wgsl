// A moment of arithmetic, so that the clock of an idle device stays up. Nobody reads the result.

@group(0) @binding(0) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) thread: u32) {
    var bits = out[thread] + thread + 1u;
    // Each step needs the one before it, and no compiler can shorten the sequence (Marsaglia's xorshift).
    for (var i = 0u; i < STEPS; i++) {
        bits ^= bits << 13u;
        bits ^= bits >> 17u;
        bits ^= bits << 5u;
    }
    out[thread] = bits;
}
