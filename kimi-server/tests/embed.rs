//! The example for those who embed kimi, run.
#![allow(clippy::unwrap_used)]

#[path = "../examples/embed.rs"]
#[allow(clippy::print_stdout, unreachable_pub)]
mod embed;

#[test]
fn the_example_answers_and_hears_of_a_worker_that_is_lost_while_idle() {
    embed::main().unwrap();
}
