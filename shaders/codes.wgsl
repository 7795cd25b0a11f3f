// From packed words to values, four codes of a unit at a time.
//
// An integer code is not converted but put into the upper mantissa bits of a float whose exponent is that of 1: the
// float is then 1 + code / 2^f. SHARE neighbouring codes are cut out of one shifted word, so they land at falling places
// and have rising f: what multiplies them is scaled by 2^f (`place_factors`) and the sum of the ones is taken off again.

const KIND_AFFINE = 0u;
const KIND_INT4 = 1u;
const KIND_FP4 = 2u;
const KIND_FP8 = 3u;
const KIND_BF16 = 4u;
const KIND_F16 = 5u;
const KIND_F32 = 6u;

const SCALE_NONE = 0u;
const SCALE_BF16 = 1u;
const SCALE_F16 = 2u;
const SCALE_F32 = 3u;
const SCALE_E8M0 = 4u;
const SCALE_E4M3 = 5u;

const INTEGER = KIND <= KIND_INT4;

// Where a code at the top of the mantissa begins (meaningless for codes of over 8 bits, as is the mask).
const PLACE = (55u - BITS) & 31u;
const STEP = BITS & 15u;
const TOP = ((1u << STEP) - 1u) << PLACE;

fn e4m3(byte: u32) -> f32 {
    let magnitude = byte & 127u;
    let normal = bitcast<f32>((magnitude << 20u) + 0x3c000000u);
    let value = select(normal, f32(magnitude) * 0.001953125, magnitude < 8u);
    return select(value, -value, byte >= 128u);
}

fn e2m1(code: u32) -> f32 {
    let magnitude = code & 7u;
    let power = f32(1u << (max(magnitude >> 1u, 1u) - 1u));
    let value = select((1.0 + 0.5 * f32(magnitude & 1u)) * power, 0.5 * f32(magnitude), magnitude < 2u);
    return select(value, -value, code >= 8u);
}

// The group of a row that part `sub` of unit `unit` is in.
fn group_of(unit: u32, sub: u32) -> u32 {
    var group = select((unit >> GROUP_SHIFT), unit * PARTS + sub, PARTS > 1u);
    if (RAGGED == 1u) {
        group = min(group, GROUPS - 1u); // a unit filled up with zeros
    }
    return group;
}

// The 32 bits in which code `k` ends at the top of the mantissa. Lower places hold the codes before it.
fn window(words: ptr<function, array<u32, BITS>>, k: u32) -> u32 {
    let top = k * BITS;
    if (top < PLACE) {
        return (*words)[0] << (PLACE - top);
    }
    let start = top - PLACE;
    let word = start >> 5u;
    let shift = start & 31u;
    if (shift <= 9u) {
        return (*words)[word] >> shift;
    }
    return ((*words)[word] >> shift) | ((*words)[word + 1u] << (32u - shift));
}

// Codes 4j .. 4j + 3 as they are multiplied: see above for integers, the value itself for all other kinds.
fn quad(words: ptr<function, array<u32, BITS>>, j: u32) -> vec4<f32> {
    switch KIND {
        case KIND_AFFINE, KIND_INT4: {
            let last = window(words, 4u * j + 3u);
            var bits: vec4<u32>;
            if (SHARE == 4u) {
                bits = vec4(last) & vec4(TOP >> ((3u * STEP) & 31u), TOP >> ((2u * STEP) & 31u), TOP >> STEP, TOP);
            } else if (SHARE == 2u) {
                let second = window(words, 4u * j + 1u);
                bits = vec4(second, second, last, last) & vec4(TOP >> STEP, TOP, TOP >> STEP, TOP);
            } else {
                let first = window(words, 4u * j);
                bits = vec4(first, window(words, 4u * j + 1u), window(words, 4u * j + 2u), last) & vec4(TOP);
            }
            return bitcast<vec4<f32>>(bits | vec4(0x3f800000u));
        }
        case KIND_FP4: {
            let nibbles = (*words)[j >> 1u] >> (16u * (j & 1u));
            return vec4(e2m1(nibbles & 15u), e2m1((nibbles >> 4u) & 15u), e2m1((nibbles >> 8u) & 15u), e2m1((nibbles >> 12u) & 15u));
        }
        case KIND_FP8: {
            let word = (*words)[j];
            return vec4(e4m3(word & 255u), e4m3((word >> 8u) & 255u), e4m3((word >> 16u) & 255u), e4m3(word >> 24u));
        }
        case KIND_BF16: {
            let low = (*words)[2u * j];
            let high = (*words)[2u * j + 1u];
            return bitcast<vec4<f32>>(vec4(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
        }
        case KIND_F16: {
            return vec4(unpack2x16float((*words)[2u * j]), unpack2x16float((*words)[2u * j + 1u]));
        }
        default: {
            return bitcast<vec4<f32>>(
                vec4((*words)[4u * j], (*words)[4u * j + 1u], (*words)[4u * j + 2u], (*words)[4u * j + 3u]));
        }
    }
}

// 2^f of the four places of a quad; 1 for kinds that are not integers.
fn place_factors() -> vec4<f32> {
    if (!INTEGER) {
        return vec4(1.0);
    }
    let one = f32(1u << STEP);
    if (SHARE == 4u) {
        return vec4(one * one * one * one, one * one * one, one * one, one);
    }
    if (SHARE == 2u) {
        return vec4(one * one, one, one * one, one);
    }
    return vec4(one);
}

// Codes 4j .. 4j + 3 exactly, integers divided by their 2^f.
fn placed(words: ptr<function, array<u32, BITS>>, j: u32) -> vec4<f32> {
    let raw = quad(words, j);
    if (!INTEGER) {
        return raw;
    }
    return raw - vec4(1.0);
}

// The values of codes 4j .. 4j + 3, before scale and bias.
fn values(words: ptr<function, array<u32, BITS>>, j: u32) -> vec4<f32> {
    return placed(words, j) * place_factors();
}
