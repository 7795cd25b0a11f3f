// One packed matrix (or the same matrix of several experts): bindings and reads. Included once for each matrix of an op,
// with MATRIX, CODES_BINDING and SCALES_BINDING replaced.
//
// Codes: rows of UNITS units; a unit is UNIT codes in WORDS words. Scales: one global factor a matrix (formats that have
// one), then from the word offset that the caller passes the scales of all rows (SCALE_ROWS neighbouring rows share
// theirs), each followed by its bias if it has one.

@group(0) @binding(CODES_BINDING) var<storage, read> MATRIX_codes: array<Chunk>;
@group(0) @binding(SCALES_BINDING) var<storage, read> MATRIX_scales: array<u32>;

fn MATRIX_load(unit: u32) -> array<u32, WORDS> {
    var words: array<u32, WORDS>;
    @unroll for (var i = 0u; i < WORDS / CHUNK; i++) {
        let chunk = MATRIX_codes[unit * (WORDS / CHUNK) + i];
        UNPACK_CHUNK
    }
    return words;
}

// Value `i` of the floats that begin at word `base`.
fn MATRIX_parameter(base: u32, i: u32) -> f32 {
    switch SCALE {
        case SCALE_BF16: {
            let word = MATRIX_scales[base + (i >> 1u)];
            return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
        }
        case SCALE_F16: {
            let word = MATRIX_scales[base + (i >> 1u)];
            return unpack2x16float(word >> (16u * (i & 1u))).x;
        }
        case SCALE_F32: {
            return bitcast<f32>(MATRIX_scales[base + i]);
        }
        case SCALE_E8M0: {
            let byte = (MATRIX_scales[base + (i >> 2u)] >> (8u * (i & 3u))) & 255u;
            return bitcast<f32>(select(byte << 23u, 1u << 22u, byte == 0u));
        }
        case SCALE_E4M3: {
            return e4m3((MATRIX_scales[base + (i >> 2u)] >> (8u * (i & 3u))) & 255u);
        }
        default: {
            return 1.0;
        }
    }
}

// Scale and bias of part `sub` of unit `unit` of row `row`, of matrix `index`: a weight is scale * code + bias.
fn MATRIX_group(index: u32, row: u32, unit: u32, sub: u32, scale_base: u32) -> vec2<f32> {
    return MATRIX_group_at(index, row / SCALE_ROWS * GROUPS + group_of(unit, sub), scale_base);
}

// The same of group `at` of all.
fn MATRIX_group_at(index: u32, at: u32, scale_base: u32) -> vec2<f32> {
    if (KIND == KIND_AFFINE) {
        switch SCALE {
            case SCALE_BF16: {
                let both = MATRIX_scales[scale_base + at];
                return bitcast<vec2<f32>>(vec2(both << 16u, both & 0xffff0000u));
            }
            case SCALE_F16: {
                return unpack2x16float(MATRIX_scales[scale_base + at]);
            }
            default: {
                let place = scale_base + 2u * at;
                return bitcast<vec2<f32>>(vec2(MATRIX_scales[place], MATRIX_scales[place + 1u]));
            }
        }
    }
    var scale = MATRIX_parameter(scale_base, at);
    if (GLOBAL == 1u) {
        scale *= bitcast<f32>(MATRIX_scales[index]);
    }
    if (KIND == KIND_INT4) {
        return vec2(scale, -8.0 * scale);
    }
    return vec2(scale, 0.0);
}
