// A unit of activations times a unit of codes, by dot products of four signed bytes.
//
// The activations are fixed-point numbers of 23 bits below a power of two that the unit's largest one fits, as three
// planes of bytes (digits from -128 to 127 to the base 256). A cut is four codes that one shift and one mask bring into
// the four bytes of a word, each at its own place; what it is multiplied with is divided by 2^place. Every sum is an
// exact integer. Which codes a cut has is found by kimi-quant/src/gpu/cuts.rs, which fills in the lines in capitals.

struct Prepared {
    planes: array<vec3<u32>, CUTS>, // lowest digits first
    down: f32,                      // what a result is multiplied with
    sum: f32,                       // of the activations
}

// Unsigned, with 128 added to each digit.
fn fixed(value: f32) -> u32 {
    return bitcast<u32>(value + 12582912.0) + (0x00808080u - 0x4b400000u);
}

fn planes(a: f32, b: f32, c: f32, d: f32) -> vec3<u32> {
    let number = vec4(fixed(a), fixed(b), fixed(c), fixed(d));
    var digits: vec3<u32>;
    @unroll for (var i = 0u; i < 3u; i++) {
        let digit = number >> vec4(8u * i);
        let low = insertBits(digit.x, digit.y, 8u, 8u);
        digits[i] = insertBits(low, insertBits(digit.z, digit.w, 8u, 8u), 16u, 16u);
    }
    return digits ^ vec3(0x80808080u);
}

fn prepare(v: array<vec4<f32>, UNIT / 4u>, factor: f32) -> Prepared {
    var largest = vec4(0.0);
    var sum = vec4(0.0);
    var all = v;
    @unroll for (var q = 0u; q < UNIT / 4u; q++) {
        largest = max(largest, abs(all[q]));
        sum += all[q];
    }
    let peak = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let exponent = clamp(bitcast<u32>(peak) >> 23u, 30u, 254u);
    let up = bitcast<f32>((275u - exponent) << 23u); // the largest comes below 2^22
    var prepared: Prepared;
    prepared.down = bitcast<f32>((exponent - 21u) << 23u) * factor;
    prepared.sum = ((sum.x + sum.y) + (sum.z + sum.w)) * factor;
    PREPARE_CUTS
    return prepared;
}

fn unit_product(words: array<u32, WORDS>, groups: array<vec2<f32>, PARTS>, x: Prepared) -> f32 {
    var low = 0;
    var middle = 0;
    var high = 0;
    MULTIPLY_CUTS
    let product = fma(f32(high), 65536.0, f32(middle * 256 + low)) * x.down;
    return fma(groups[0].x, product + CODE_OFFSET * x.sum, groups[0].y * x.sum);
}
