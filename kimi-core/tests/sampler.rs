//! The sampler: mlx-lm's numbers, the order of its steps, its errors; random numbers and stop strings.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::shared;
use kimi_core::sampler::filters::{
    answer_penalties, argmax, log_softmax, min_p, most_likely, repetition_penalty, top_k, top_p,
};
use kimi_core::sampler::{
    Draw, RawSamplingParams, SampleError, SamplingParams, StopStrings, TokenCounts, TokenMask, sample,
    uniform,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn rows(file: &SafeTensors<'_>, name: &str) -> Vec<Vec<f32>> {
    let tensor = file.tensor(&format!("sampler.{name}")).expect("a tensor");
    let values: Vec<f32> =
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    values.chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
}

#[test]
fn filters_and_penalties_equal_mlx_lm() {
    let Some(bytes) = shared("oracle/golden/unit_misc.safetensors") else { return };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("sampler.rep_tokens").unwrap();
    let tokens: Vec<u32> =
        tokens.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    type Step<'a> = Box<dyn Fn(&mut [f32]) + 'a>;
    // mlx-lm's penalties don't tell prompt from answer.
    let mut counts = TokenCounts::default();
    tokens.iter().for_each(|&token| counts.add(token));
    let counts = counts.as_slice();
    let steps: Vec<(&str, Step<'_>)> = vec![
        ("top_p_0.1", Box::new(|l| top_p(l, 0.1))),
        ("top_p_0.5", Box::new(|l| top_p(l, 0.5))),
        ("top_p_0.9", Box::new(|l| top_p(l, 0.9))),
        ("min_p_0.02", Box::new(|l| min_p(l, 0.02))),
        ("min_p_0.1", Box::new(|l| min_p(l, 0.1))),
        ("top_k_1", Box::new(|l| top_k(l, 1))),
        ("top_k_5", Box::new(|l| top_k(l, 5))),
        ("top_k_40", Box::new(|l| top_k(l, 40))),
        ("rep_penalty_1.3", Box::new(move |l| repetition_penalty(l, counts, 1.3))),
        ("presence_0.5", Box::new(move |l| answer_penalties(l, counts, 0.5, 0.0))),
        ("frequency_0.5", Box::new(move |l| answer_penalties(l, counts, 0.0, 0.5))),
        ("logprobs", Box::new(log_softmax)),
    ];
    for (name, step) in steps {
        for (input, expected) in rows(&file, "logprobs").into_iter().zip(rows(&file, name)) {
            let mut found = input;
            step(&mut found);
            for (token, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let same = found == expected || (found - expected).abs() <= 2e-6;
                assert!(same, "{name}, token {token}: found {found}, expected {expected}");
            }
        }
    }
}

fn params(change: impl FnOnce(&mut RawSamplingParams)) -> SamplingParams {
    let mut raw = RawSamplingParams::default();
    change(&mut raw);
    SamplingParams::new(raw).expect("parameters")
}

fn choose(logits: &[f32], params: &SamplingParams, uniform: f32) -> u32 {
    sample(&mut logits.to_vec(), params, &Draw { uniform, ..Draw::default() }).expect("a token").token
}

#[test]
fn greedy_takes_the_lowest_of_the_likeliest() {
    assert_eq!(choose(&[1.0, 3.0, 2.0, 3.0], &SamplingParams::greedy(), 0.9), 1);
    let mut logits = [1.0, 3.0, 2.0, 3.0];
    let draw = Draw { top_logprobs: 3, ..Draw::default() };
    let found = sample(&mut logits, &SamplingParams::greedy(), &draw).unwrap();
    let total: f32 = [1.0f32, 3.0, 2.0, 3.0].iter().map(|l| l.exp()).sum();
    assert!((found.logprob - (3.0 - total.ln())).abs() < 1e-6);
    assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [2.0f32, 0.0, 1.0, -3.0];
    let hot = params(|p| p.temperature = 2.0);
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l / 2.0).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut counts = [0.0; 4];
    for position in 0..40_000 {
        counts[choose(&logits, &hot, uniform(1, position)) as usize] += 1.0;
    }
    for (count, weight) in counts.iter().zip(&weights) {
        let p = weight / total;
        let five_deviations = 5.0 * (p * (1.0 - p) / 40_000.0).sqrt();
        assert!((count / 40_000.0 - p).abs() < five_deviations, "{counts:?}");
    }
    assert_eq!(choose(&logits, &hot, 0.0), 0);
    assert_eq!(choose(&logits, &hot, 0.999_999_9), 3);
}

#[test]
fn filters_look_at_the_distribution_before_the_temperature() {
    let logits = [2.0f32, 1.9, 0.0, -1.0];
    let last = |change: fn(&mut RawSamplingParams)| {
        let params = params(|p| {
            p.temperature = 2.0;
            change(p);
        });
        choose(&logits, &params, 0.999_999_9)
    };
    assert_eq!(last(|_| ()), 3);
    assert_eq!(last(|p| p.top_k = 2), 1);
    assert_eq!(last(|p| p.top_k = -1), 3);
    // Of its own 0.478 and, at the temperature, 0.393.
    assert_eq!(last(|p| p.top_p = 0.43), 0);
    assert_eq!(last(|p| p.top_p = 0.0), 0);
    assert_eq!(last(|p| p.min_p = 0.1), 2);
    assert_eq!(last(|p| p.logit_bias = vec![(3, -100.0), (77, 5.0)]), 2);
    assert_eq!(last(|p| (p.top_k, p.logit_bias) = (1, vec![(2, 50.0)])), 2);
}

#[test]
fn penalties_count_the_answer_and_repetition_the_prompt_too() {
    let logits = [3.0f32, 2.9, 2.8];
    let token = |params: &SamplingParams, prompt: &[u32], answer: &[u32]| {
        let mut counts = TokenCounts::new(prompt, params);
        answer.iter().for_each(|&token| counts.add(token));
        let draw = Draw { counts: counts.as_slice(), ..Draw::default() };
        sample(&mut logits.to_vec(), params, &draw).unwrap().token
    };
    let presence = params(|p| p.presence_penalty = 0.15);
    assert!(presence.has_penalties() && !SamplingParams::greedy().has_penalties());
    assert_eq!(token(&presence, &[0, 0, 0], &[]), 0);
    assert_eq!(token(&presence, &[], &[0, 500]), 1);
    assert_eq!(token(&presence, &[], &[0, 0, 0, 1]), 0);
    let frequency = params(|p| p.frequency_penalty = 0.08);
    assert_eq!(token(&frequency, &[0, 0, 0], &[0]), 0);
    assert_eq!(token(&frequency, &[], &[0, 0]), 1);
    let far_back: Vec<u32> = [0, 0].into_iter().chain(100..200_000).collect();
    assert_eq!(token(&frequency, &[], &far_back), 1);
    let repetition = params(|p| p.repetition_penalty = 1.1);
    assert_eq!((token(&repetition, &[0], &[]), token(&repetition, &[], &[0, 0])), (1, 1));
    let far_back: Vec<u32> = [0, 1].into_iter().chain(100..200_000).collect();
    assert_eq!(token(&repetition, &far_back, &[0]), 2);
    // With both, a token of the prompt alone is not taken for one of the answer.
    let both = params(|p| (p.repetition_penalty, p.presence_penalty) = (1.01, 0.5));
    assert_eq!(token(&both, &[0], &[1]), 0);
}

#[test]
fn only_allowed_tokens_are_chosen() {
    let mut logits = vec![0.0f32; 70];
    logits[3] = 9.0;
    logits[65] = 1.0;
    let words = [0u32, 0, 0b11];
    let draw = Draw { allowed: Some(TokenMask(&words)), top_logprobs: 9, ..Draw::default() };
    let found = sample(&mut logits.clone(), &SamplingParams::greedy(), &draw).unwrap();
    assert_eq!((found.token, found.top.len()), (65, 2));
    assert!((found.logprob - -(1.0 + (-1.0f32).exp()).ln()).abs() < 1e-6);
    let nothing = Draw { allowed: Some(TokenMask(&[])), ..Draw::default() };
    let error = sample(&mut logits, &SamplingParams::greedy(), &nothing).unwrap_err();
    assert_eq!(error, SampleError::NothingAllowed { vocabulary: 70 });
}

#[test]
fn damaged_logits_are_errors() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = sample(&mut [0.0, bad], &SamplingParams::greedy(), &Draw::default()).unwrap_err();
        assert!(matches!(error, SampleError::NotFinite { token: 1, .. }));
    }
    assert_eq!(sample(&mut [], &SamplingParams::greedy(), &Draw::default()), Err(SampleError::NoLogits));
}

#[test]
fn parameters_out_of_range_name_their_field() {
    type Change = fn(&mut RawSamplingParams);
    let cases: &[(&str, Change)] = &[
        ("temperature", |p| p.temperature = -0.1),
        ("temperature", |p| p.temperature = f32::NAN),
        ("temperature", |p| p.temperature = 2.1),
        ("top_p", |p| p.top_p = 1.5),
        ("top_p", |p| p.top_p = f32::NEG_INFINITY),
        ("top_k", |p| p.top_k = -2),
        ("top_k", |p| p.top_k = i64::MAX),
        ("min_p", |p| p.min_p = -0.5),
        ("repetition_penalty", |p| p.repetition_penalty = 0.0),
        ("repetition_penalty", |p| p.repetition_penalty = 1e-40),
        ("repetition_penalty", |p| p.repetition_penalty = f32::INFINITY),
        ("presence_penalty", |p| p.presence_penalty = 2.5),
        ("frequency_penalty", |p| p.frequency_penalty = -2.5),
        ("frequency_penalty", |p| p.frequency_penalty = f32::NAN),
        ("logit_bias", |p| p.logit_bias = vec![(1, 101.0)]),
        ("logit_bias", |p| p.logit_bias = vec![(1, f32::NAN)]),
        ("logit_bias", |p| p.logit_bias = vec![(1, 0.0); 1 << 17]),
    ];
    for &(field, change) in cases {
        let mut raw = RawSamplingParams::default();
        change(&mut raw);
        let error = SamplingParams::new(raw).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
    // Deserialized parameters are checked as well.
    let json = serde_json::to_string(&params(|p| (p.top_p, p.seed) = (0.5, Some(u64::MAX)))).unwrap();
    assert_eq!(serde_json::from_str::<SamplingParams>(&json).unwrap().seed(), Some(u64::MAX));
    assert!(serde_json::from_str::<SamplingParams>(&json.replace("0.5", "-0.5")).is_err());
}

fn stopped(strings: &[&str], deltas: &[&str]) -> (String, Option<usize>) {
    let mut stop = StopStrings::new(strings.iter().map(|s| (*s).to_owned()).collect()).expect("stop strings");
    let (mut text, mut matched) = (String::new(), None);
    for delta in deltas {
        let output = stop.push(delta);
        text.push_str(&output.text);
        matched = matched.or(output.matched);
    }
    text.push_str(&stop.finish());
    (text, matched)
}

#[test]
fn stop_strings_end_the_text_before_them() {
    assert_eq!(stopped(&[], &["a", "b"]), ("ab".into(), None));
    assert_eq!(stopped(&["\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".into(), Some(0)));
    assert_eq!(stopped(&["END", "ND"], &["xEN", "Dy"]), ("x".into(), Some(0)));
    assert_eq!(stopped(&["abcd", "bc"], &["abc", "d"]), ("a".into(), Some(1)));
    assert_eq!(stopped(&["aab"], &["aaa", "b!"]), ("a".into(), Some(0)));
    assert_eq!(stopped(&["月光"], &["日月", "火"]), ("日月火".into(), None));
    let mut stop = StopStrings::new(vec!["stop".into()]).unwrap();
    assert_eq!(stop.push("a st").text, "a ");
    assert_eq!(stop.push("ar").text, "star");
    assert!(StopStrings::new(vec![String::new()]).is_err());
    assert!(StopStrings::new(vec!["x".into(); 65]).is_err());
}

proptest! {
    #[test]
    fn the_split_of_the_text_does_not_matter(text in "[abé]{0,24}", strings in prop::collection::vec("[abé]{1,4}", 0..4)) {
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let chars: Vec<&str> = ends.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        let whole = stopped(&strings, &[&text]);
        prop_assert_eq!(&stopped(&strings, &chars), &whole);
        match whole.1 {
            Some(which) => prop_assert!(text[whole.0.len()..].starts_with(strings[which])),
            None => prop_assert!(whole.0 == text && !strings.iter().any(|s| text.contains(s))),
        }
    }

    #[test]
    fn filters_keep_what_their_definitions_keep(
        logits in prop::collection::vec(-15.0f32..15.0, 1..300),
        flat in any::<bool>(),
        p in 0.0f32..1.0,
        k in 1usize..40,
    ) {
        // Rounded logits have many ties.
        let mut logprobs: Vec<f32> = logits.iter().map(|l| if flat { (l / 10.0).round() } else { l.round() }).collect();
        log_softmax(&mut logprobs);
        let best = argmax(&logprobs).unwrap();
        let total: f64 = logprobs.iter().map(|&l| f64::from(l).exp()).sum();
        prop_assert!((total - 1.0).abs() < 1e-5);

        let mut by_top_p = logprobs.clone();
        top_p(&mut by_top_p, p);
        for (&l, &kept) in logprobs.iter().zip(&by_top_p) {
            let above: f64 = logprobs.iter().filter(|&&o| o > l).map(|&o| f64::from(o).exp()).sum();
            // Sums in another order may differ in the last places.
            if (above - f64::from(p) * total).abs() > 1e-9 {
                prop_assert_eq!(kept.is_finite(), above < f64::from(p) * total);
            }
        }
        prop_assert!(by_top_p[best].is_finite());

        let mut by_top_k = logprobs.clone();
        top_k(&mut by_top_k, k);
        let expected = most_likely(&logprobs, k);
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logprobs.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        sorted.truncate(k);
        prop_assert_eq!(&expected, &sorted);
        prop_assert_eq!(by_top_k.iter().filter(|l| l.is_finite()).count(), k.min(logprobs.len()));
        prop_assert!(expected.iter().all(|&(token, l)| by_top_k[token as usize] == l));
    }
}
