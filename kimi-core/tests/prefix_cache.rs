//! Sequences that begin alike share pages, and compute what they share once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

mod toy;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kimi_core::batch::{Batch, Output, SequenceId};
use kimi_core::sampler::{SampleError, SamplingParams};
use kimi_core::scheduler::{FinishReason, NewSequence, Scheduler, SchedulerConfig, SequenceEvent};
use kimi_core::stage::{CacheConfig, SequenceOutput, StageError};
use toy::{VOCAB, sampled};

const PAGE: usize = 16;

fn scheduler(pages: usize, stages: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        context_tokens: 100_000,
        cache: CacheConfig { pages, page_tokens: PAGE },
        token_budget: 128,
        max_sequences: 32,
        stages,
        queues: stages > 1,
        chains: false,
        max_drafts: 0,
        prefix_cache: true,
    })
}

/// `common` tokens that all have, then some of its own.
fn chat(who: u32, common: usize, own: usize, max_tokens: u32) -> NewSequence {
    let common = (0..common as u32).map(|i| i % VOCAB);
    NewSequence {
        prompt: common.chain((0..own as u32).map(|i| (i + who + 1) * 7 % VOCAB)).collect(),
        params: Arc::new(SamplingParams::greedy()),
        seed: 1,
        max_tokens: Some(max_tokens),
        stop_ids: vec![],
        top_logprobs: 0,
        constraint: None,
        min_length: None,
        drafter: None,
    }
}

/// Completes a batch: the token after each is its position.
fn complete(scheduler: &mut Scheduler, batch: &Batch) -> Vec<SequenceEvent> {
    let asked = batch.sequences.iter().filter(|s| s.output != Output::None);
    let token = |s: &kimi_core::batch::SequenceSlice| (s.start + s.tokens.len() as u32) % VOCAB;
    let outputs =
        asked.map(|s| SequenceOutput { id: s.id, sampled: vec![Ok(sampled(token(s)))], logits: vec![] });
    scheduler.complete(batch.step, outputs.collect())
}

/// Runs until nothing is left to do. Returns tokens computed for each sequence, and its cached tokens.
fn run(scheduler: &mut Scheduler) -> BTreeMap<u64, (usize, u32)> {
    let mut all: BTreeMap<u64, (usize, u32)> = BTreeMap::new();
    let mut in_flight = VecDeque::new();
    loop {
        while let Some(batch) = scheduler.next_batch() {
            batch.sequences.iter().for_each(|s| all.entry(s.id.0).or_default().0 += s.tokens.len());
            in_flight.push_back(batch);
        }
        let Some(batch) = in_flight.pop_front() else { return all };
        for event in complete(scheduler, &batch) {
            if let SequenceEvent::Finished { id, cached, .. } = event {
                all.entry(id.0).or_default().1 = cached;
            }
        }
    }
}

#[test]
fn a_text_that_sixteen_chats_begin_with_is_computed_once() {
    for stages in [1, 3] {
        let mut scheduler = scheduler(1000, stages);
        for who in 0..16 {
            scheduler.add(chat(who, 500, 10, 5)).unwrap();
        }
        let computed = run(&mut scheduler);
        // Four of each answer's five tokens are computed. A shared page is full: 31 of them, and 4 tokens more each.
        assert_eq!(computed[&0], (514, 0));
        for who in 1..16 {
            assert_eq!(computed[&who], (18, 496), "chat {who} over {stages} stages");
        }
        let stats = scheduler.stats();
        assert_eq!((stats.prefix.hits, stats.prefix.misses, stats.prefix.tokens), (15, 1, 15 * 496));
        assert_eq!(stats.pages_used, 0);
        assert!(stats.prefix.pages >= 31, "{stats:?}");
    }
}

#[test]
fn chats_that_share_pages_need_less_room() {
    // Sixteen chats of 33 pages each, in a cache of 80 pages.
    let mut scheduler = scheduler(80, 1);
    for who in 0..16 {
        scheduler.add(chat(who, 500, 10, 5)).unwrap();
    }
    let computed = run(&mut scheduler);
    assert_eq!(computed.values().map(|(tokens, _)| tokens).sum::<usize>(), 514 + 15 * 18);
    assert_eq!(scheduler.stats().evictions, 0);
}

#[test]
fn a_second_turn_begins_behind_the_first_ones_answer() {
    let mut scheduler = scheduler(100, 1);
    let first = chat(0, 100, 0, 60);
    scheduler.add(first.clone()).unwrap();
    assert_eq!(run(&mut scheduler)[&0], (159, 0));
    let answer = (100..160).map(|position| position % VOCAB);
    let prompt = first.prompt.iter().copied().chain(answer).chain([3, 4, 5]).collect();
    scheduler.add(NewSequence { prompt, ..chat(0, 0, 0, 1) }).unwrap();
    // 159 tokens were computed, which is nine full pages.
    assert_eq!(run(&mut scheduler)[&1], (163 - 144, 144));
}

#[test]
fn the_last_token_is_computed_though_its_page_is_known() {
    let mut scheduler = scheduler(100, 1);
    for _ in 0..2 {
        scheduler.add(chat(0, 4 * PAGE, 0, 1)).unwrap();
        run(&mut scheduler);
    }
    let stats = scheduler.stats();
    assert_eq!((stats.prefix.hits, stats.prefix.tokens), (1, 3 * PAGE as u64));
    assert_eq!(stats.prefix.pages, 4, "the page computed again is not known twice");
}

#[test]
fn nobody_waits_for_a_chat_that_is_gone_or_rests() {
    for pause in [false, true] {
        let mut scheduler = scheduler(1000, 1);
        let ids: Vec<_> = (0..3).map(|who| scheduler.add(chat(who, 500, 10, 5)).unwrap()).collect();
        let batch = scheduler.next_batch().unwrap();
        assert_eq!(batch.sequences.iter().map(|s| s.id).collect::<Vec<_>>(), [ids[0]], "the others wait");
        if pause {
            scheduler.set_paused(ids[0], true);
        } else {
            assert!(scheduler.cancel(ids[0]).is_some());
        }
        complete(&mut scheduler, &batch);
        let computed = run(&mut scheduler);
        // What the first had computed before it rested is shared; a cancelled one's batch in flight is not.
        assert_eq!(computed[&1], if pause { (514 - 128, 128) } else { (514, 0) });
        assert_eq!(computed[&2], (18, 496));
        scheduler.set_paused(ids[0], false);
        let rest = run(&mut scheduler);
        assert_eq!(
            rest.get(&0).map(|(tokens, _)| *tokens),
            pause.then_some(18),
            "it takes the others' pages"
        );
    }
}

#[test]
fn what_a_failed_sequence_computed_is_forgotten() {
    let mut scheduler = scheduler(100, 1);
    scheduler.add(chat(0, 200, 0, 5)).unwrap();
    let first = scheduler.next_batch().unwrap();
    complete(&mut scheduler, &first);
    assert_eq!(scheduler.stats().prefix.pages, 8);
    let second = scheduler.next_batch().unwrap();
    scheduler.failed(second.step, &StageError::Stopped);
    assert_eq!((scheduler.stats().prefix.pages, scheduler.pool().available()), (0, 100));

    let id = scheduler.add(chat(0, 100, 0, 5)).unwrap();
    let batch = scheduler.next_batch().unwrap();
    let sampled = vec![Err(SampleError::NothingAllowed { vocabulary: 1 })];
    let events = scheduler.complete(batch.step, vec![SequenceOutput { id, sampled, logits: vec![] }]);
    assert!(matches!(events[..], [SequenceEvent::Failed { .. }]), "{events:?}");
    assert_eq!((scheduler.stats().prefix.pages, scheduler.pool().available()), (0, 100));
}

#[test]
fn a_lost_stage_takes_all_pages_with_it() {
    let mut scheduler = scheduler(100, 1);
    scheduler.add(chat(0, 100, 0, 5)).unwrap();
    run(&mut scheduler);
    let id = scheduler.add(chat(0, 100, 0, 5)).unwrap();
    let batch = scheduler.next_batch().unwrap();
    assert_eq!(batch.sequences[0].start, 96);
    scheduler.forget_cache();
    assert_eq!(scheduler.stats().prefix.pages, 0);
    let again = scheduler.next_batch().unwrap();
    assert_eq!((again.sequences[0].id, again.sequences[0].start), (id, 0));
    assert!(complete(&mut scheduler, &batch).is_empty(), "the step is not in flight any more");
    assert_eq!(scheduler.stats().prefix.pages, 0);
}

#[test]
fn an_evicted_sequence_finds_what_is_left_of_its_pages() {
    let mut scheduler = scheduler(20, 1);
    let [old, young] = [200, 70].map(|tokens| scheduler.add(chat(tokens, 0, tokens as usize, 60)).unwrap());
    let mut starts: Vec<(SequenceId, u32)> = Vec::new();
    let mut ended = Vec::new();
    while let Some(batch) = scheduler.next_batch() {
        starts.extend(batch.sequences.iter().filter(|s| s.tokens.len() > 1).map(|s| (s.id, s.start)));
        for event in complete(&mut scheduler, &batch) {
            if let SequenceEvent::Finished { id, reason: FinishReason::Length, cached, .. } = event {
                ended.push((id, cached));
            }
        }
    }
    assert!(scheduler.stats().evictions > 0);
    let last = starts.last().unwrap();
    assert!(last.0 == young && last.1 > 0, "{starts:?}");
    assert_eq!(ended, [(old, 0), (young, 0)], "its own pages are not counted");
}
