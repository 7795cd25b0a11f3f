//! Fields of other servers that would change the answer and are not known here: refused by name, so that nobody thinks
//! that they worked.

use serde_json::{Map, Value, json};

use super::error::ApiError;

/// A field, the value besides `null` and `false` with which it changes nothing, and what to do instead.
type Foreign = (&'static str, Option<f64>, &'static str);

const SAMPLING: &str = "sampling knows temperature, top_p, top_k, min_p, penalties and logit_bias";
const TOOLS: &str = "use tools and tool_choice";
const FORMAT: &str = "use response_format, whose types are json_object, json_schema, regex and lark";
const TEXT: &str = "this model takes and gives text only";

#[rustfmt::skip]
const FOREIGN: &[Foreign] = &[
    ("functions", None, TOOLS),
    ("function_call", None, TOOLS),
    ("web_search_options", None, "this server searches nothing; declare a search of yours in tools"),
    ("moderation", None, "this server judges no texts"),
    ("personality", None, "say in the instructions how the model is to be"),
    ("plugins", None, "declare what the model may call in tools"),
    ("audio", None, TEXT),
    ("prediction", None, "leave it out"),
    ("guided_decoding_backend", None, FORMAT),
    ("grammar", None, FORMAT),
    ("ebnf", None, FORMAT),
    ("format", None, FORMAT),
    ("bad_words", None, "use logit_bias with -100"),
    ("allowed_token_ids", None, "use logit_bias"),
    ("logits_processors", None, SAMPLING),
    ("use_beam_search", None, SAMPLING),
    ("beam_width", Some(1.0), SAMPLING),
    ("length_penalty", Some(1.0), SAMPLING),
    ("early_stopping", None, SAMPLING),
    ("mirostat", Some(0.0), SAMPLING),
    ("mirostat_mode", Some(0.0), SAMPLING),
    ("dry_multiplier", Some(0.0), SAMPLING),
    ("xtc_probability", Some(0.0), SAMPLING),
    ("typical_p", Some(1.0), SAMPLING),
    ("tfs_z", Some(1.0), SAMPLING),
    ("top_a", Some(0.0), SAMPLING),
    ("top_n_sigma", Some(-1.0), SAMPLING),
    ("epsilon_cutoff", Some(0.0), SAMPLING),
    ("eta_cutoff", Some(0.0), SAMPLING),
    ("dynatemp_range", Some(0.0), SAMPLING),
    ("smoothing_factor", Some(0.0), SAMPLING),
    ("no_repeat_ngram_size", Some(0.0), "use the penalties"),
    ("repetition_context_size", None, "the penalties look at the whole answer"),
    ("repeat_last_n", Some(-1.0), "the penalties look at the whole answer"),
    ("samplers", None, SAMPLING),
    ("max_new_tokens", None, "use max_completion_tokens"),
    ("n_predict", Some(-1.0), "use max_completion_tokens"),
    ("min_new_tokens", Some(0.0), "use min_tokens"),
    ("stop_regex", None, "use stop"),
    ("include_stop_str_in_output", None, "a stop string is never part of the answer"),
    ("no_stop_trim", None, "a stop string is never part of the answer"),
    ("truncate_prompt_tokens", None, "shorten the messages"),
    ("prompt_logprobs", None, "use logprobs, which the answer has"),
    ("return_tokens_as_token_ids", None, "use /v1/tokenize"),
    ("chat_template", None, "the template is the model's; chat_template_kwargs sets its variables"),
    ("options", None, "put what it holds beside the other fields"),
    ("extra_body", None, "put what it holds beside the other fields, as OpenAI's Python package does"),
    ("documents", None, "put them into the messages"),
    ("lora", None, "adapters are not supported"),
    ("image_data", None, TEXT),
];

/// Refuses the first field that is foreign and not neutral.
///
/// # Errors
/// 400 that names it and says what to use.
pub(super) fn refuse(fields: &Map<String, Value>) -> Result<(), ApiError> {
    for &(name, neutral, instead) in FOREIGN {
        if fields.get(name).is_some_and(|value| !is_neutral(value, neutral)) {
            let message = format!("is not supported by this server; {instead}, or leave it out");
            return Err(ApiError::field(name, "unsupported_parameter", message));
        }
    }
    for (name, neutral, why) in ONLY {
        if fields.get(name).is_some_and(|value| !value.is_null() && *value != neutral()) {
            let message = format!("only {} is supported: {why}", neutral());
            return Err(ApiError::field(name, "unsupported_parameter", message));
        }
    }
    Ok(())
}

/// A field, the one value that it may have, and why.
type Only = (&'static str, fn() -> Value, &'static str);

/// Fields with one value that is what happens here.
const ONLY: [Only; 2] = [
    ("skip_special_tokens", || json!(true), "the model's markers are never part of the answer"),
    ("verbosity", || json!("medium"), "how long an answer is must be said in the messages"),
];

fn is_neutral(value: &Value, neutral: Option<f64>) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(found) => neutral.is_some() && found.as_f64() == neutral,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_would_change_the_answer_are_named() {
        let refused = |body: Value| refuse(body.as_object().unwrap()).err().and_then(|error| error.param);
        for name in FOREIGN.iter().map(|field| field.0) {
            assert_eq!(refused(json!({name: {"a": 1}})).as_deref(), Some(name));
            assert_eq!(refused(json!({name: null})), None, "{name}");
        }
        assert_eq!(refused(json!({"mirostat": 0, "typical_p": 1, "use_beam_search": false})), None);
        assert_eq!(refused(json!({"mirostat": 2})).as_deref(), Some("mirostat"));
        assert_eq!(refused(json!({"skip_special_tokens": true, "user": "x", "seed": 1})), None);
        assert_eq!(refused(json!({"verbosity": "medium"})), None);
        assert_eq!(refused(json!({"verbosity": "low"})).as_deref(), Some("verbosity"));
        assert_eq!(refused(json!({"skip_special_tokens": false})).as_deref(), Some("skip_special_tokens"));
    }
}
