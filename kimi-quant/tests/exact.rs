//! Exact products are the same bits as ever: hashes of them for every format and instruction set.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Random;
use kimi_quant::cpu::{Cpu, Isa};
use kimi_quant::{Backend, BitWidth, FloatType, Format, PackedMatrix};

/// Formats by name, each with some groups.
fn formats() -> Vec<(&'static str, Vec<Format>)> {
    let affine =
        |bits| [32, 64, 128].map(|group| Format::Affine { bits, group, scales: FloatType::Bf16 }).to_vec();
    vec![
        ("2 bits", affine(BitWidth::B2)),
        ("3 bits", affine(BitWidth::B3)),
        ("4 bits", affine(BitWidth::B4)),
        ("5 bits", affine(BitWidth::B5)),
        ("6 bits", affine(BitWidth::B6)),
        ("8 bits", affine(BitWidth::B8)),
        ("int4", vec![Format::Int4 { group: 32, scales: FloatType::F16 }]),
        ("mxfp4", vec![Format::Mxfp4]),
        ("nvfp4", vec![Format::Nvfp4]),
        ("mxfp8", vec![Format::Mxfp8]),
        ("fp8", vec![Format::Fp8 { scales: FloatType::F32 }]),
        ("bf16", vec![Format::Float(FloatType::Bf16)]),
    ]
}

/// Bytes that are floats of `t` near one, of either sign.
fn floats(t: FloatType, bytes: usize, random: &mut Random) -> Vec<u8> {
    let values = random.f32s(bytes / t.bytes());
    match t {
        FloatType::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn matrix(format: Format, rows: usize, cols: usize, random: &mut Random) -> PackedMatrix {
    let [weight, scales, biases] = format.bytes(rows, cols).unwrap();
    let weight = match format {
        Format::Float(t) => floats(t, weight, random),
        // 0x7f and 0xff have no value in e4m3.
        Format::Mxfp8 | Format::Fp8 { .. } => {
            random.bytes(weight).into_iter().map(|b| if b & 0x7f == 0x7f { 1 } else { b }).collect()
        }
        _ => random.bytes(weight),
    };
    let scales = match format {
        Format::Affine { scales: t, .. } | Format::Int4 { scales: t, .. } | Format::Fp8 { scales: t } => {
            floats(t, scales, random)
        }
        Format::Nvfp4 => random.bytes(scales).into_iter().map(|b| b & 0x7e).collect(),
        _ => random.bytes(scales).into_iter().map(|b| 118 + b % 16).collect(),
    };
    let biases = floats(FloatType::Bf16, biases, random);
    PackedMatrix::new(rows, cols, format, weight.into(), scales.into(), biases.into()).unwrap()
}

/// FNV-1a of the bits of products of one, two, four and eleven tokens, with whole blocks and with padded ones.
fn hash(cpu: Cpu, formats: &[Format]) -> u64 {
    let mut random = Random(17);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &format in formats {
        for cols in [1024, 3 * 128] {
            let m = matrix(format, 21, cols, &mut random);
            for tokens in [1, 2, 4, 11] {
                let x = cpu.upload(tokens, cols, &random.f32s(tokens * cols)).unwrap();
                let mut y = cpu.upload(tokens, 21, &vec![0.0; tokens * 21]).unwrap();
                cpu.project_add(&x, &m, &mut y).unwrap();
                for byte in cpu.download(&y).unwrap().iter().flat_map(|v| v.to_bits().to_le_bytes()) {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
    }
    hash
}

/// Of an instruction set's exact products, in the order of [`formats`]; made when there were no others.
const HASHES: &[(&str, [u64; 12])] = &[
    (
        "scalar",
        [
            0xc430_b912_9430_4eb6,
            0xe258_3f27_96df_53aa,
            0xfd94_cd4d_a499_edf0,
            0xd816_c0e0_1afb_8315,
            0x7ed0_01e4_a588_6c52,
            0xa5a8_434a_b415_a891,
            0xe114_8d71_4347_d285,
            0x0f82_adff_29e4_62e5,
            0xc7b7_256a_c67e_9567,
            0x5704_3ef9_5cf4_db97,
            0xf58d_45a1_39e1_1820,
            0x1d4f_bd2b_734e_a632,
        ],
    ),
    (
        "AVX2",
        [
            0x2ee9_0121_f54e_05ce,
            0xee72_5b01_9c1a_4b81,
            0x5730_8de1_1d94_eb90,
            0x76f6_376d_0024_5bc0,
            0xfe2b_d017_c70d_194e,
            0x407b_600c_4627_a1ed,
            0x4aea_2f81_68c7_ab98,
            0x2112_5c16_ac30_8f24,
            0x9c53_7240_0a72_7697,
            0xe389_af78_e5f3_c98e,
            0xd6d0_f01f_526a_7571,
            0xe36e_bc0d_4666_99ce,
        ],
    ),
    (
        "AVX-512",
        [
            0x8184_d4a2_684b_a416,
            0x4f42_a560_8488_1e57,
            0xe9e3_b2d0_9676_3ab6,
            0x2c02_e1b3_eac4_df4f,
            0x2ce6_30a8_6e49_506d,
            0xb87f_1acf_569e_a3e2,
            0x4c2c_a0de_5888_3155,
            0x19ec_17e4_d229_c7c4,
            0x08bb_0d15_88ed_bf7a,
            0xfebb_1f0d_158b_257f,
            0xd73e_1f33_2728_417e,
            0xf733_b40d_bb98_fa0c,
        ],
    ),
    (
        "AVX-512 VNNI",
        [
            0x7d06_ad69_2391_b375,
            0x0717_3308_fb68_572a,
            0xc3e9_2c91_46f1_de06,
            0x2c02_e1b3_eac4_df4f,
            0x2ce6_30a8_6e49_506d,
            0xb87f_1acf_569e_a3e2,
            0xb87f_d4b0_025f_bb6e,
            0x19ec_17e4_d229_c7c4,
            0x08bb_0d15_88ed_bf7a,
            0xfebb_1f0d_158b_257f,
            0xd73e_1f33_2728_417e,
            0xf733_b40d_bb98_fa0c,
        ],
    ),
];

#[test]
fn exact_products_keep_their_bits() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa).unwrap();
        let found: Vec<u64> = formats().iter().map(|(_, formats)| hash(cpu, formats)).collect();
        // Its exact kernels are those of AVX2.
        let name = if isa.name() == "AVX-VNNI" { "AVX2" } else { isa.name() };
        // Other machines' instruction sets have no hashes here.
        let Some((_, expected)) = HASHES.iter().find(|(known, _)| *known == name) else {
            println!("{}: {found:#018x?}", isa.name());
            continue;
        };
        for (((name, _), found), expected) in formats().iter().zip(&found).zip(expected) {
            assert_eq!(found, expected, "{}, {name}: {found:#018x}", isa.name());
        }
    }
}
