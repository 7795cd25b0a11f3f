//! The body of `POST /v1/chat/completions`.

use kimi_core::sampler::{MAX_TOP_LOGPROBS, RawSamplingParams, SamplingParams};
use kimi_core::{CancelFlag, ChatRequest};
use serde_json::Value;

use super::error::ApiError;
use super::json::{Field, Fields};
use super::messages;

/// `temperature` of a request that has none: what Moonshot recommends for K2-Instruct.
const DEFAULT_TEMPERATURE: f32 = 0.6;

/// A checked request.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    /// Which model, if the request says so.
    pub(super) model: Option<String>,
    /// What the model is asked.
    pub(super) chat: ChatRequest,
    /// Whether the answer comes as a stream of events.
    pub(super) stream: bool,
    /// Whether a stream ends with what it took.
    pub(super) include_usage: bool,
    /// Whether the answer may have several tool calls.
    pub(super) parallel_tool_calls: bool,
}

impl CompletionRequest {
    /// Checks a request's fields. `cancel` ends the making of its prompt.
    ///
    /// # Errors
    /// 400 that names the field, what was expected and what was found.
    pub(super) fn new(fields: &mut Fields, cancel: CancelFlag) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let (logprobs, top_logprobs) = logprobs(fields)?;
        let use_tools = tool_choice(fields)?;
        let tools = fields.take("tools").map(messages::tools).transpose()?.unwrap_or_default();
        let kwargs = fields.take("chat_template_kwargs").map(Field::object).transpose()?;
        Ok(Self {
            model: fields.take("model").map(Field::string).transpose()?,
            chat: ChatRequest {
                messages: messages::messages(fields.require("messages")?)?,
                tools: if use_tools { tools } else { Vec::new() },
                template_kwargs: kwargs.map(Fields::into_map).unwrap_or_default(),
                params: sampling(fields)?,
                max_tokens: max_tokens(fields)?,
                stop: stops(fields)?,
                logprobs,
                top_logprobs,
                ignore_eos: flag(fields, "ignore_eos")?.unwrap_or(false),
                parse_tools: use_tools,
                cancel,
                ..ChatRequest::default()
            },
            stream: flag(fields, "stream")?.unwrap_or(false),
            include_usage: include_usage(fields)?,
            parallel_tool_calls: flag(fields, "parallel_tool_calls")?.unwrap_or(true),
        })
    }
}

/// Refuses what would change the answer but is not implemented.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    if let Some(n) = fields.take("n") {
        let path = n.path().to_owned();
        if n.integer(1..=128)? != 1 {
            return Err(ApiError::field(
                &path,
                "unsupported_value",
                "only 1 is supported; send several requests",
            ));
        }
    }
    for key in ["functions", "function_call"] {
        if let Some(field) = fields.take(key) {
            return Err(field.error("unsupported_parameter", "is not supported; use tools and tool_choice"));
        }
    }
    if let Some(modalities) = fields.take("modalities") {
        for modality in modalities.array()? {
            if modality.value() != "text" {
                return Err(modality.error("unsupported_value", "only \"text\" is supported"));
            }
        }
    }
    response_format(fields)
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(format) = fields.take("response_format") else { return Ok(()) };
    let kind = format.object()?.require("type")?;
    match kind.value().as_str() {
        Some("text") => Ok(()),
        Some(found @ ("json_object" | "json_schema")) => {
            let what = "is not supported yet; use \"text\" and ask for JSON in the messages";
            Err(kind.error("unsupported_value", format!("{found:?} {what}")))
        }
        Some(found) => Err(kind.error("invalid_value", format!("expected \"text\", found {found:?}"))),
        None => Err(kind.wrong_type("a string")),
    }
}

/// Whether the model is told of the tools.
fn tool_choice(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(choice) = fields.take("tool_choice") else { return Ok(true) };
    match choice.value() {
        Value::String(word) if word == "auto" => Ok(true),
        Value::String(word) if word == "none" => Ok(false),
        Value::String(word) if word != "required" => {
            Err(choice.error("invalid_value", format!("expected \"auto\" or \"none\", found {word:?}")))
        }
        Value::String(_) | Value::Object(_) => {
            let message = "forcing a tool call is not supported yet; use \"auto\" or \"none\"";
            Err(choice.error("unsupported_value", message))
        }
        _ => Err(choice.wrong_type("\"auto\" or \"none\"")),
    }
}

/// How tokens are chosen. Ranges are checked by [`SamplingParams::new`].
fn sampling(fields: &mut Fields) -> Result<SamplingParams, ApiError> {
    let mut raw = RawSamplingParams { temperature: DEFAULT_TEMPERATURE, ..RawSamplingParams::default() };
    let mut set = |key: &str, to: &mut f32| -> Result<(), ApiError> {
        if let Some(field) = fields.take(key) {
            *to = field.number()? as f32;
        }
        Ok(())
    };
    set("temperature", &mut raw.temperature)?;
    set("top_p", &mut raw.top_p)?;
    set("min_p", &mut raw.min_p)?;
    set("repetition_penalty", &mut raw.repetition_penalty)?;
    set("presence_penalty", &mut raw.presence_penalty)?;
    set("frequency_penalty", &mut raw.frequency_penalty)?;
    if let Some(top_k) = fields.take("top_k") {
        raw.top_k = top_k.integer(i64::MIN..=i64::MAX)?;
    }
    if let Some(seed) = fields.take("seed") {
        raw.seed = Some(seed.integer(i64::MIN..=i64::MAX)?.cast_unsigned());
    }
    if let Some(bias) = fields.take("logit_bias") {
        raw.logit_bias = bias.object()?.into_fields().map(token_bias).collect::<Result<_, _>>()?;
    }
    Ok(SamplingParams::new(raw)?)
}

fn token_bias((key, field): (String, Field)) -> Result<(u32, f32), ApiError> {
    let expected = "expected a token id as the name";
    let token =
        key.parse().map_err(|_| field.error("invalid_value", format!("{expected}, found {key:?}")))?;
    Ok((token, field.number()? as f32))
}

/// `max_completion_tokens`, or `max_tokens` as it was called before.
fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let mut read = |key| -> Result<Option<u32>, ApiError> {
        let field: Option<Field> = fields.take(key);
        Ok(field.map(|f| f.integer(1..=i64::from(u32::MAX))).transpose()?.map(|n| n as u32))
    };
    match (read("max_completion_tokens")?, read("max_tokens")?) {
        (Some(new), Some(old)) if new != old => {
            let message = format!("is {old}, but max_completion_tokens is {new}; give one of them");
            Err(ApiError::field("max_tokens", "invalid_value", message))
        }
        (new, old) => Ok(new.or(old)),
    }
}

/// Stop strings. How many and how long they may be is checked by the model.
fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let Some(field) = fields.take("stop") else { return Ok(Vec::new()) };
    match field.value() {
        Value::String(_) => Ok(vec![field.string()?]),
        Value::Array(_) => field.array()?.into_iter().map(Field::string).collect(),
        _ => Err(field.wrong_type("a string or an array of strings")),
    }
}

/// Whether to report probabilities, and of how many alternatives.
fn logprobs(fields: &mut Fields) -> Result<(bool, u8), ApiError> {
    let logprobs = flag(fields, "logprobs")?.unwrap_or(false);
    let Some(top) = fields.take("top_logprobs") else { return Ok((logprobs, 0)) };
    let path = top.path().to_owned();
    match top.integer(0..=MAX_TOP_LOGPROBS as i64)? {
        1.. if !logprobs => Err(ApiError::field(&path, "invalid_value", "needs \"logprobs\": true")),
        top => Ok((logprobs, top as u8)),
    }
}

fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    match fields.take("stream_options") {
        Some(options) => Ok(flag(&mut options.object()?, "include_usage")?.unwrap_or(false)),
        None => Ok(false),
    }
}

fn flag(fields: &mut Fields, key: &str) -> Result<Option<bool>, ApiError> {
    fields.take(key).map(Field::boolean).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::json;

    fn parse(fields: Value) -> Result<CompletionRequest, ApiError> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        let mut fields = json::parse(body.to_string().as_bytes())?;
        CompletionRequest::new(&mut fields, CancelFlag::default())
    }

    #[test]
    fn every_field_arrives() {
        let request = parse(json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true}, "parallel_tool_calls": false,
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
            "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -100}, "seed": -1,
            "max_completion_tokens": 9, "stop": "END", "logprobs": true, "top_logprobs": 3, "ignore_eos": true,
            "chat_template_kwargs": {"thinking": false}, "n": 1, "response_format": {"type": "text"},
            "tool_choice": "auto", "user": 5, "metadata": {}, "store": true, "service_tier": "auto",
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        }))
        .unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert!(request.stream && request.include_usage && !request.parallel_tool_calls);
        let chat = request.chat;
        let params = RawSamplingParams {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(7, -100.0)],
            seed: Some(u64::MAX),
            ..RawSamplingParams::default()
        };
        assert_eq!(RawSamplingParams::from(chat.params), params);
        assert_eq!((chat.max_tokens, chat.stop), (Some(9), vec!["END".to_owned()]));
        assert_eq!((chat.logprobs, chat.top_logprobs, chat.ignore_eos), (true, 3, true));
        assert_eq!(Value::Object(chat.template_kwargs), json!({"thinking": false}));
        assert_eq!((chat.tools.len(), chat.parse_tools), (1, true));
    }

    #[test]
    fn null_is_absent() {
        let request =
            parse(json!({"stop": null, "temperature": null, "tools": null, "stream": null})).unwrap();
        assert!(!request.stream && request.chat.stop.is_empty());
        assert_eq!(request.chat.params.temperature(), DEFAULT_TEMPERATURE);
    }

    #[test]
    fn without_tool_choice_the_model_is_not_told_of_tools() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let request = parse(json!({"tools": tools, "tool_choice": "none"})).unwrap();
        assert!(request.chat.tools.is_empty() && !request.chat.parse_tools);
    }

    #[test]
    fn messages_of_every_role() {
        let call = json!({"id": "f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let messages = json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "f:0", "content": "42"},
        ]);
        let messages = parse(json!({"messages": messages})).unwrap().chat.messages;
        let text = |i: usize| messages[i].content.as_ref().map(|c| c.text());
        assert_eq!((messages[0].role.as_str(), text(0).as_deref()), ("system", Some("be brief")));
        assert_eq!((messages[1].name.as_deref(), text(1).as_deref()), (Some("ann"), Some("ab")));
        assert_eq!((messages[2].reasoning_content.as_deref(), text(2)), (Some("hm"), None));
        assert_eq!(messages[2].tool_calls[0].function.name, "f");
        assert_eq!((messages[3].tool_call_id.as_deref(), text(3).as_deref()), (Some("f:0"), Some("42")));
    }

    #[test]
    fn limits_of_the_same_thing_must_agree() {
        assert_eq!(
            parse(json!({"max_tokens": 4, "max_completion_tokens": 4})).unwrap().chat.max_tokens,
            Some(4)
        );
        let error = parse(json!({"max_tokens": 4, "max_completion_tokens": 5})).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("max_tokens"));
    }
}
